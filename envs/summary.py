"""The part of an observation that sums the decisions up, in as many entries for every network."""

import math
from collections.abc import Sequence

import numpy as np

from amc.costs.symbolic import Geometry
from amc.space import Partial, Space
from envs.observation import PARTS, RECENT, decided_fractions, fraction_of

DEEPEST = 256
"""As many decisions count as 1 on a logarithmic scale."""


class Summary:
    """Sums up decisions of one network.

    Args:
        space: the legal policies.
        rows: the points of the walk.
        columns: the knobs that are alive somewhere.
    """

    def __init__(self, space: Space, rows: Sequence[int], columns: Sequence[int]):
        self._space, self._rows, self._columns = space, list(rows), list(columns)
        self._geometry = Geometry(space)
        self._inputs = np.maximum(self._geometry.inputs(space.largest), 1.0)
        deciders = space.decider[:, space.column("width")]
        self._tied = np.array([np.mean(deciders == row) for row in self._rows])
        layers = space.network.layers
        macs = np.array([float(layers[row].macs) if row < len(layers) else 0.0 for row in self._rows])
        self._weights = macs / max(macs.sum(), 1.0) + 1e-6

    def __call__(self, position: int, partial: Partial, reference: np.ndarray) -> dict[str, np.ndarray]:
        """The parts at one step.

        Args:
            position: decisions made so far; as many as there are after the last one.
            partial: these decisions.
            reference: the uniform completion, [points, knobs].
        """
        decided = decided_fractions(self._space, partial, self._rows, self._columns)
        closed = partial.decided[np.ix_(self._rows, self._columns)]
        recent = np.zeros((RECENT, len(self._columns)))
        last = decided[max(0, position - RECENT) : position][::-1]
        recent[: len(last)] = last
        weights = self._weights[:, None] * closed
        length = len(self._rows)
        parts = [(length * part // PARTS, length * (part + 1) // PARTS) for part in range(PARTS)]
        return {
            "place": self._place(position, reference),
            "reference": self._reference(position, reference),
            "recent": recent,
            "mean": _mean(decided, weights),
            "least": np.where(closed.any(axis=0), np.where(closed, decided, 1.0).min(axis=0), 0.0),
            "by_depth": np.stack([_mean(decided[low:high], weights[low:high]) for low, high in parts]),
        }

    def _place(self, position: int, reference: np.ndarray) -> np.ndarray:
        """How far the walk is, how long, how many layers follow this decision, how many inputs are left."""
        depth = math.log2(1 + len(self._rows)) / math.log2(1 + DEEPEST)
        if position == len(self._rows):
            return np.array([1.0, depth, 0.0, 0.0])
        row = self._rows[position]
        inputs = self._geometry.inputs(reference)
        kept = inputs[row] / self._inputs[row] if row < len(inputs) else 1.0
        return np.array([position / len(self._rows), depth, self._tied[position], kept])

    def _reference(self, position: int, reference: np.ndarray) -> np.ndarray:
        """What the action 0 stands for here."""
        if position == len(self._rows):
            return np.zeros(len(self._columns))
        row = self._rows[position]
        return np.array(
            [fraction_of(self._space, row, column, int(reference[row, column])) for column in self._columns]
        )


def _mean(values: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Means of the columns; 0 where nothing weighs."""
    total = weights.sum(axis=0)
    result: np.ndarray = (values * weights).sum(axis=0) / np.maximum(total, 1e-9)
    return result

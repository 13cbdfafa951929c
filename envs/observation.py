"""What the agent sees: a flat vector in [0, 1], documented entry by entry in `CompressionEnv`."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from amc.network import Layer
from amc.space import Partial, Space

KINDS = {"conv": 0.0, "depthwise": 0.5, "linear": 1.0}
STATIC_FEATURES = ("index", "type", "n", "c", "h", "w", "stride", "k", "macs")
PROGRESS_FEATURES = ("reduced", "rest")
PLACE_FEATURES = ("position", "depth", "tied", "inputs")
RECENT, PARTS = 3, 4
"""Decisions that a summary tells one by one, and parts of the network that it tells by their mean."""

Kind = Literal["positions", "summary"]


def layer_features(layers: Sequence[Layer]) -> np.ndarray:
    """Static features of every layer, float32 [layers, 9], each divided by its largest value."""
    rows = [
        (
            index,
            KINDS[layer.kind],
            layer.out_channels,
            layer.in_channels,
            *layer.in_shape,
            layer.stride,
            layer.kernel_size,
            layer.macs,
        )
        for index, layer in enumerate(layers)
    ]
    table = np.array(rows, dtype=np.float64)
    largest = table.max(axis=0)
    largest[STATIC_FEATURES.index("type")] = 1.0
    return (table / np.maximum(largest, 1e-12)).astype(np.float32)


@dataclass(frozen=True)
class Layout:
    """Sizes of the parts of an observation.

    Attributes:
        steps: decision points of the longest episode; shorter ones are padded with zeros.
        knobs: entries of an action, one a knob that is alive somewhere.
        budgets: how many budgets the observation has room for.
        kind: whether it tells the decisions of every point, or sums them up in as many entries for every
            network.
    """

    steps: int
    knobs: int
    budgets: int
    kind: Kind = "positions"

    @property
    def parts(self) -> dict[str, int]:
        """Name of each part to its number of entries, in order."""
        common = {
            "layer": len(STATIC_FEATURES),
            "progress": len(PROGRESS_FEATURES),
            "previous": self.knobs,
            "alive": self.knobs,
            "budget": self.budgets,
        }
        if self.kind == "positions":
            return {**common, "one_hot": self.steps, "decided": self.steps * self.knobs}
        return {
            **common,
            "place": len(PLACE_FEATURES),
            "reference": self.knobs,
            "recent": RECENT * self.knobs,
            "mean": self.knobs,
            "least": self.knobs,
            "by_depth": PARTS * self.knobs,
        }

    @property
    def size(self) -> int:
        """Entries of an observation."""
        return sum(self.parts.values())

    def slice(self, name: str) -> slice:
        """Where a part lies in the observation."""
        start = 0
        for part, room in self.parts.items():
            if part == name:
                return slice(start, start + room)
            start += room
        raise KeyError(name)

    def join(self, **parts: np.ndarray) -> np.ndarray:
        """One float32 vector [size]; parts shorter than their room are padded with zeros."""
        padded = [
            np.pad(np.asarray(parts[name], dtype=np.float32).reshape(-1), (0, room - np.size(parts[name])))
            for name, room in self.parts.items()
        ]
        return np.clip(np.concatenate(padded), 0.0, 1.0)


def decided_fractions(
    space: Space, partial: Partial, rows: Sequence[int], columns: Sequence[int]
) -> np.ndarray:
    """Decisions so far, [rows, columns]: widths as keep ratios, others by rank, 0 where still open."""
    result = np.zeros((len(rows), len(columns)), dtype=np.float32)
    for position, row in enumerate(rows):
        for entry, column in enumerate(columns):
            if not partial.decided[row, column]:
                continue
            result[position, entry] = fraction_of(space, row, column, int(partial.values[row, column]))
    return result


def fraction_of(space: Space, row: int, column: int, value: int) -> float:
    """A decision in [0, 1]: a width as a keep ratio, others by rank."""
    values = space.legal(row, column)
    if value not in values:  # bits that an operator leaves no meaning
        return 1.0
    if space.knobs[column].name == "width" or len(values) == 1:
        return value / values[-1] if values[-1] else 0.0
    return values.index(value) / (len(values) - 1)

"""Every legal policy of a network as a vector, whatever it costs."""

from collections.abc import Callable

import numpy as np

from agents.box import Point
from agents.episode import play_sequence
from agents.exploration import truncated_normal
from amc.policy import CompressionPolicy
from envs.walk import Walk


class FreeBox:
    """The decisions of a walk without its budgets: each value's place among the legal ones, from -1 to 1.

    An action of the walk says how much of a budget to spend, and cannot overspend it. Here a vector says
    what to keep, and nothing bounds it: the budgets have to be learned.

    Args:
        walk: the decisions to make; its budgets decide nothing but the reference policy.

    Attributes:
        uniform: the reference policy under the walk's budgets.
        openings: what is worth a try right after it.
        size: entries of a vector.
    """

    def __init__(self, walk: Walk):
        self._space = walk.space
        uniform = walk.reference_policy()
        openings = [play_sequence(walk, actions).policy for actions in walk.openings]
        walk.reset()
        self._start = walk.partial
        self._entries = [
            (row, column)
            for row in walk.rows
            for column in walk.columns
            if not self._start.decided[row, column] and walk.space.decider[row, column] == row
        ]
        self.size = len(self._entries)
        self.uniform, *self.openings = map(self._point, [uniform, *openings])

    def play(self, vector: np.ndarray) -> Point:
        """The policy nearest to a vector [size] in [-1, 1]."""
        return self._decide(lambda entry, values: int((vector[entry] + 1.0) / 2.0 * (len(values) - 1) + 0.5))

    def _point(self, policy: CompressionPolicy) -> Point:
        table = self._space.table(policy)
        return self._decide(lambda entry, values: values.index(int(table[self._entries[entry]])))

    def draw(self, rng: np.random.Generator, sigma: float) -> Point:
        """Draw around the reference policy."""
        return self.play(truncated_normal(rng, self.uniform.vector, sigma))

    def _decide(self, choose: Callable[[int, tuple[int, ...]], int]) -> Point:
        """Decide all entries; `choose` gives an entry's place among its legal values."""
        partial, executed = self._start, np.zeros(self.size)
        for entry, (row, column) in enumerate(self._entries):
            if partial.decided[row, column]:
                continue  # its block was left out
            values = self._space.legal(row, column, partial)
            place = choose(entry, values)
            executed[entry] = 2.0 * place / (len(values) - 1) - 1.0 if len(values) > 1 else 0.0
            partial = self._space.decide(partial, row, column, values[place])
        return Point(executed, self._space.policy(partial.values))

"""The open entries of a walk's actions as one vector: what searchers without an observation search in."""

from dataclasses import dataclass

import numpy as np

from agents.episode import Episode, WalkLike, play
from agents.exploration import truncated_normal
from amc.policy import CompressionPolicy


@dataclass(frozen=True)
class Point:
    """A proposal.

    Attributes:
        vector: float64 [size] in [-1, 1]; what was executed, where a vector was rounded to a legal policy.
        policy: what it stands for.
    """

    vector: np.ndarray
    policy: CompressionPolicy


class ActionBox:
    """All actions of an episode in one vector; entries that mean nothing are left out.

    Args:
        walk: the decisions to make.

    Attributes:
        uniform: the reference policy, the vector of zeros.
        openings: what is worth a try right after it.
        size: entries of a vector.
    """

    def __init__(self, walk: WalkLike):
        self._walk = walk
        uniform, largest = (self._constant(level) for level in (0.0, 1.0))
        # Few decisions close others (a block that is left out), and the largest values close none.
        self._open = (uniform.observations + largest.observations)[:-1, walk.alive] > 0.5
        self.size = int(self._open.sum())
        self.uniform = Point(np.zeros(self.size), uniform.policy)
        self.openings = [self._play(actions) for actions in walk.openings]

    def _constant(self, level: float) -> Episode:
        action = np.full(self._walk.action_size, level, dtype=np.float32)
        return play(self._walk, lambda observation: action)

    def play(self, vector: np.ndarray) -> Point:
        """The policy of a vector [size] in [-1, 1]."""
        actions = np.zeros(self._open.shape, dtype=np.float32)
        actions[self._open] = vector
        return self._play(actions)

    def draw(self, rng: np.random.Generator, sigma: float) -> Point:
        """Draw around the reference policy; with the same generator the very draw of `random`."""
        return self._play(truncated_normal(rng, np.zeros(self._open.shape), sigma))

    def _play(self, actions: np.ndarray) -> Point:
        steps = iter(actions)
        episode = play(self._walk, lambda observation: next(steps))
        return Point(episode.actions[self._open].astype(np.float64), episode.policy)

"""One episode, played on a walk without any evaluation: decisions in, a policy out."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from amc.policy import CompressionPolicy


class WalkLike(Protocol):
    """What the searchers ask of `envs.walk.Walk`."""

    action_size: int
    length: int

    @property
    def observation_size(self) -> int:
        """Entries of an observation."""

    @property
    def alive(self) -> slice:
        """Entries of an observation that are 1 where an entry of the action means something, else 0."""

    @property
    def categorical(self) -> np.ndarray:
        """Which entries of an action stand for values without an order, bool [K]."""

    @property
    def openings(self) -> Sequence[np.ndarray]:
        """Actions [T, K] of the episodes that are worth a try right after the reference policy."""

    def reset(self) -> np.ndarray:
        """Start at the first decision; float32 [observation_size]."""

    def step(self, action: np.ndarray) -> tuple[np.ndarray, np.ndarray, bool]:
        """Decide: next observation, executed action [K], and whether it was the last decision."""

    def policy(self) -> CompressionPolicy:
        """The policy decided, after the last step."""


@dataclass(frozen=True)
class Episode:
    """A played episode.

    Attributes:
        observations: float32 [T + 1, observation_size].
        actions: executed actions, float32 [T, K].
        policy: what they add up to.
    """

    observations: np.ndarray
    actions: np.ndarray
    policy: CompressionPolicy


def play(walk: WalkLike, act: Callable[[np.ndarray], np.ndarray]) -> Episode:
    """Play one episode with `act(observation) -> action`."""
    observations, actions, done = [walk.reset()], [], False
    while not done:
        observation, executed, done = walk.step(act(observations[-1]))
        observations.append(observation)
        actions.append(executed)
    return Episode(np.stack(observations), np.stack(actions), walk.policy())


def play_sequence(walk: WalkLike, actions: np.ndarray) -> Episode:
    """Play one episode with actions [T, K] that were chosen before it began."""
    steps = iter(actions)
    return play(walk, lambda observation: next(steps))

"""TuRBO's trust region (Eriksson et al., NeurIPS 2019): a box around the best point, grown and shrunk."""

import math

import numpy as np

LENGTH, SHORTEST, LONGEST = 0.8, 0.5**7, 1.6
"""Side lengths, in units of the whole box: at the start, before a restart, at most."""

SUCCESSES = 3
"""Improvements in a row after which the side is doubled."""


class TrustRegion:
    """The side length of the box, and when it changes.

    Args:
        size: variables.

    Attributes:
        length: geometric mean of the sides, in units of the whole box.
    """

    def __init__(self, size: int):
        self._patience = max(4, math.ceil(size / 2))
        self.length = LENGTH
        self._successes = self._failures = 0

    def hear(self, improved: bool) -> None:
        """Hear whether an evaluation was the best so far."""
        self._successes = self._successes + 1 if improved else 0
        self._failures = 0 if improved else self._failures + 1
        if self._successes == SUCCESSES:
            self.length, self._successes = min(2.0 * self.length, LONGEST), 0
        elif self._failures == self._patience:
            self.length, self._failures = self.length / 2.0, 0
        if self.length < SHORTEST:
            self.length = LENGTH

    def box(self, centre: np.ndarray, scales: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Lower and upper bounds [d] around `centre`, longer where `scales` say that little changes."""
        half = self.length * scales  # the whole box is 2 long
        return np.clip(centre - half, -1.0, 1.0), np.clip(centre + half, -1.0, 1.0)

    def state_dict(self) -> dict[str, float]:
        """Length and counters."""
        return {"length": self.length, "successes": self._successes, "failures": self._failures}

    def load_state_dict(self, state: dict[str, float]) -> None:
        """Continue where `state_dict` was taken."""
        self.length = float(state["length"])
        self._successes, self._failures = int(state["successes"]), int(state["failures"])

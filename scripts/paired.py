"""Paired differences over seeds, with Student's interval."""

import statistics
from collections.abc import Sequence
from dataclasses import dataclass

from scipy.stats import t as student_t

CONFIDENCE = 0.95


@dataclass(frozen=True)
class Paired:
    """A difference between two ways that share their seeds.

    Attributes:
        seeds: how many.
        mean: of the differences.
        half: half of the interval around it.
    """

    seeds: int
    mean: float
    half: float

    @property
    def points(self) -> str:
        """Difference and interval, in hundredths."""
        return f"{100 * self.mean:+.2f} ± {100 * self.half:.2f}"

    @property
    def verdict(self) -> str:
        """`higher`, `lower`, or `no difference` where the interval holds 0."""
        return "no difference" if abs(self.mean) <= self.half else "higher" if self.mean > 0 else "lower"


def paired(differences: Sequence[float]) -> Paired | None:
    """The mean of differences with its 95 % interval; None for fewer than two."""
    count = len(differences)
    if count < 2:
        return None
    error = statistics.stdev(differences) / count**0.5
    half = float(student_t.ppf((1 + CONFIDENCE) / 2, count - 1)) * error
    return Paired(count, statistics.mean(differences), half)

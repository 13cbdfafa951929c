"""Rank correlation of two figures over the same policies, with its bootstrap interval."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy.stats import rankdata

RESAMPLES = 2000
INTERVAL = (2.5, 97.5)
"""Percentiles of the bootstrap distribution."""


@dataclass(frozen=True)
class Correlation:
    """A rank correlation.

    Attributes:
        value: in [-1, 1]; NaN where one side is constant.
        low, high: its 95 % bootstrap interval.
    """

    value: float
    low: float
    high: float


def spearman(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Spearman's rho of each row of x and y, [resamples, n]; ties share their mean rank."""
    ranks = [rankdata(values, axis=-1) for values in (x, y)]
    a, b = (r - r.mean(axis=-1, keepdims=True) for r in ranks)
    return _ratio((a * b).sum(axis=-1), (a * a).sum(axis=-1) * (b * b).sum(axis=-1))


def kendall(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Kendall's tau-b of each row of x and y, [resamples, n]."""
    a, b = (np.sign(values[..., :, None] - values[..., None, :]) for values in (x, y))
    pairs = (-2, -1)
    return _ratio((a * b).sum(axis=pairs), (a * a).sum(axis=pairs) * (b * b).sum(axis=pairs))


def _ratio(product: np.ndarray, squares: np.ndarray) -> np.ndarray:
    """A correlation from its sums; NaN where one side is constant."""
    root = np.sqrt(np.where(squares > 0, squares, np.nan))
    return np.asarray(product / root)


MEASURES = {"spearman": spearman, "kendall": kendall}


def correlate(x: Sequence[float], y: Sequence[float], seed: int = 0) -> dict[str, Correlation]:
    """Both rank correlations of two figures; policies are drawn with replacement for the intervals.

    Args:
        x: one figure a policy, [n].
        y: another figure of the same policies, [n].
        seed: draws the resamples, in which constant sides are left out.
    """
    first, second = np.asarray(x, dtype=float), np.asarray(y, dtype=float)
    drawn = np.random.default_rng(seed).integers(0, len(first), (RESAMPLES, len(first)))
    found = {}
    for name, measure in MEASURES.items():
        spread = measure(first[drawn], second[drawn])
        known = spread[~np.isnan(spread)]
        low, high = np.percentile(known, INTERVAL) if len(known) else (np.nan, np.nan)
        found[name] = Correlation(float(measure(first, second)), float(low), float(high))
    return found

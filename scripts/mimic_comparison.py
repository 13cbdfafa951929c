"""Paired differences between the ways in which students learn, over seeds."""

import statistics
from collections.abc import Sequence
from itertools import combinations
from typing import Any

from scipy.stats import t as student_t

from amc.recovery.mimic import MODES

Row = dict[str, Any]

METRICS = ("mAP", "AP50", "matching")
CONFIDENCE = 0.95


def comparisons(rows: Sequence[Row]) -> list[Row]:
    """Every pair of modes on every data set, for every metric that both have; two seeds or more."""
    students = [row for row in rows if row["part"] == "student"]
    return [
        compared
        for data in sorted({row["data"] for row in students})
        for one, other in combinations(MODES, 2)
        for metric in METRICS
        if (compared := comparison(students, data, one, other, metric)) is not None
    ]


def comparison(rows: Sequence[Row], data: str, one: str, other: str, metric: str) -> Row | None:
    """Mean of (other - one) over common seeds with its 95 % interval; None for fewer than two seeds.

    The interval is Student's t on paired differences; the verdict is "no difference" where it holds 0.
    """
    values = [by_seed(rows, data, mode, metric) for mode in (one, other)]
    seeds = sorted(set(values[0]) & set(values[1]))
    if len(seeds) < 2:
        return None
    differences = [values[1][seed] - values[0][seed] for seed in seeds]
    mean = statistics.mean(differences)
    error = statistics.stdev(differences) / len(seeds) ** 0.5
    half = float(student_t.ppf((1 + CONFIDENCE) / 2, len(seeds) - 1)) * error
    verdict = "no difference" if abs(mean) <= half else "higher" if mean > 0 else "lower"
    return {
        "data": data,
        "metric": metric,
        "mode": other,
        "against": one,
        "seeds": len(seeds),
        "difference": mean,
        "half_interval": half,
        "verdict": verdict,
    }


def by_seed(rows: Sequence[Row], data: str, mode: str, metric: str) -> dict[int, float]:
    """Seed to figure, for one mode on one data set."""
    return {
        row["seed"]: row[metric]
        for row in rows
        if (row["data"], row["mode"]) == (data, mode) and metric in row
    }

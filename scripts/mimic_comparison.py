"""Paired differences between the ways in which students learn, over seeds."""

from collections.abc import Sequence
from itertools import combinations
from typing import Any

from amc.recovery.mimic import MODES
from scripts.paired import paired

Row = dict[str, Any]

METRICS = ("mAP", "AP50", "matching")


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
    found = paired([values[1][seed] - values[0][seed] for seed in seeds])
    if found is None:
        return None
    return {
        "data": data,
        "metric": metric,
        "mode": other,
        "against": one,
        "seeds": found.seeds,
        "difference": found.mean,
        "half_interval": found.half,
        "verdict": found.verdict,
    }


def by_seed(rows: Sequence[Row], data: str, mode: str, metric: str) -> dict[int, float]:
    """Seed to figure, for one mode on one data set."""
    return {
        row["seed"]: row[metric]
        for row in rows
        if (row["data"], row["mode"]) == (data, mode) and metric in row
    }

"""Whether the transfer results meet what was asked of them, with standard errors and a rule for ties."""

import math
import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from agents.outcome import ACTOR
from scripts.results_runner import Row, Rows
from scripts.transfer_rows import HOLD_BUDGETS
from scripts.transfer_tables import (
    Cell,
    Table,
    level_rows,
    level_table,
    mean_score,
    transfer_rows_of,
    transfer_table,
)

ALLOWED = 0.005
"""By how much one agent may stay behind five agents of N evaluations each."""
AGENTS = ((ACTOR, "its actor alone"), ("ddpg", "best of its search"))
RULE = (
    "Differences are in points, paired by seed. The standard error is that of their mean over the seeds, at "
    "least what one image counts; of a single seed that of one accuracy on the split. What is asked is *met* "
    "where the difference is beyond the bound by more than a standard error, *missed* where it falls short "
    "by more than one, and otherwise a *tie*."
)


@dataclass(frozen=True)
class Difference:
    """A mean over seeds, and its standard error; both as shares."""

    mean: float
    error: float

    def verdict(self, bound: float = 0.0) -> str:
        """Whether it lies beyond a bound."""
        if abs(self.mean - bound) <= self.error:
            return "tie"
        return "met" if self.mean > bound else "missed"

    @property
    def points(self) -> str:
        """In points: `+1.43 ± 0.80`."""
        return f"{100 * self.mean:+.2f} ± {100 * self.error:.2f}"


def difference(pairs: Sequence[tuple[float, float]], images: int | None) -> Difference | None:
    """The first of each pair less the second; None without a pair.

    Args:
        pairs: scores in [0, 1], a pair a seed.
        images: that a score was measured on; None where a row does not tell.
    """
    if not pairs:
        return None
    gaps = [one - other for one, other in pairs]
    if len(gaps) > 1:
        error = statistics.stdev(gaps) / math.sqrt(len(gaps))
        return Difference(statistics.fmean(gaps), max(error, 1 / images if images else 0.0))
    share = pairs[0][1]
    return Difference(gaps[0], math.sqrt(share * (1 - share) / images) if images else 0.0)


def level_verdicts(rows: Sequence[Row]) -> Table:
    """One agent for every budget against what was asked, on the test split."""
    table = Table(["one agent", "asked", "difference", "seeds", "verdict"])
    for policy, label in AGENTS:
        for asked, how, bound in (
            ("above five agents of N / 5", "fifth", 0.0),
            (f"within {100 * ALLOWED:g} point of five agents of N", "full", -ALLOWED),
        ):
            pairs = _pairs(rows, how, _mean_of(policy), _mean_of("ddpg"))
            found = difference(pairs, _images(rows, "test"))
            if found:
                table.lines.append([label, asked, found.points, len(pairs), found.verdict(bound)])
        table.lines.extend(_above_uniform(rows, policy, label))
    return table


def transfer_verdicts(rows: Sequence[Row]) -> Table:
    """Whether 10 evaluations of adaptation match 100 from scratch, setting by setting and split by split.

    Matching is no less by more than a standard error; a tie is therefore enough.
    """
    splits = ("reward", "test")
    table = Table(["network, budget", "seeds", *(f"{split} split" for split in splits), "10 matches 100"])
    for network in dict.fromkeys(row["network"] for row in rows):
        for budget in HOLD_BUDGETS:
            here = [row for row in rows if (row["network"], row["budget"]) == (network, budget)]
            known = {(row["how"], str(row["evaluations"]), row["seed"]): row["best"] for row in here}
            seeds = [seed for how, count, seed in sorted(known) if (how, count) == ("adapted", "10")]
            seeds = [seed for seed in seeds if ("scratch", "100", seed) in known]
            found = [
                difference(
                    [
                        (known["adapted", "10", seed][split], known["scratch", "100", seed][split])
                        for seed in seeds
                    ],
                    _images(here, split),
                )
                for split in splits
                if here
            ]
            if seeds:
                told = [each for each in found if each is not None]
                words = ["missed" if each.verdict() == "missed" else "met" for each in told]
                said = words[0] if len(set(words)) == 1 else f"{words[0]} ({words[1]} on the test split)"
                cells = [each.points for each in told]
                table.lines.append([f"{network}, {budget}", len(seeds), *cells, said])
    return table


def _above_uniform(rows: Sequence[Row], policy: str, label: str) -> list[list[Cell]]:
    """Whether every level of the range is better than the uniform policy's there."""
    mine = [row for row in rows if row["how"] == "one"]
    words: dict[str, list[str]] = {"met": [], "tie": [], "missed": []}
    for level in mine[0]["levels"] if mine else ():
        pairs = [
            (row["levels"][level][policy]["test"], row["levels"][level]["uniform"]["test"]) for row in mine
        ]
        gap = difference(pairs, _images(mine, "test"))
        assert gap is not None
        words[gap.verdict()].append(level.removeprefix("macs="))
    if not mine:
        return []
    counts = f"better at {len(words['met'])}, tie at {len(words['tie'])}, worse at {len(words['missed'])}"
    verdict = "missed" if words["missed"] else "tie" if words["tie"] else "met"
    where = f" (at {', '.join(words['missed'])})" if words["missed"] else ""
    return [[label, "better than uniform everywhere", counts, len(mine), verdict + where]]


def _mean_of(policy: str) -> Callable[[Row], float]:
    return lambda row: mean_score(row, policy, "test")


def _images(rows: Sequence[Row], split: str) -> int | None:
    """How many images a split has: an actor that was never adapted has scored nothing there by itself."""
    counts = (row.get(f"{split}_images") for row in rows)
    return next((count for count in counts if count), None)


def _pairs(
    rows: Sequence[Row], how: str, one: Callable[[Row], float], other: Callable[[Row], float]
) -> list[tuple[float, float]]:
    """Scores of the one agent and of other arms, a pair for each seed that both have."""
    by = {(row["how"], row["seed"]): row for row in rows}
    seeds = sorted({row["seed"] for row in rows if ("one", row["seed"]) in by and (how, row["seed"]) in by})
    return [(one(by["one", seed]), other(by[how, seed])) for seed in seeds]


def tables(rows: Rows) -> dict[str, Any]:
    """Every table of the page, by what it tells and by network or group: one object a line."""
    made = list(rows.values())
    levels, unseen = level_rows(made), transfer_rows_of(made)
    return {
        "levels": {name: level_table(mine).objects() for name, mine in levels.items()},
        "level_verdicts": {name: level_verdicts(mine).objects() for name, mine in levels.items()},
        "unseen": {name: transfer_table(mine).objects() for name, mine in unseen.items()},
        "unseen_verdicts": {name: transfer_verdicts(mine).objects() for name, mine in unseen.items()},
    }

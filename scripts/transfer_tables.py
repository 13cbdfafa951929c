"""The tables of the transfer results, as a page shows them and as objects with the column names as keys."""

import statistics
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from agents.outcome import ACTOR
from scripts.results_page import markdown_table
from scripts.results_runner import Row
from scripts.search_page import spread
from scripts.transfer_rows import ADAPTED, GROUPS, HOLD_BUDGETS, LEVEL_BUDGETS, SCRATCH

Cell = str | int | list[float]
"""A word, a count, or scores in [0, 1] over seeds."""
ARMS = (
    ("uniform", "one", "uniform"),
    ("one agent, best of its search", "one", "ddpg"),
    ("one agent, its actor alone", "one", ACTOR),
    ("five agents of N / 5", "fifth", "ddpg"),
    ("five agents of N", "full", "ddpg"),
)
"""Label, row, and policy of the row."""


@dataclass(frozen=True)
class Table:
    """Headings, and lines of as many cells."""

    headings: Sequence[str]
    lines: list[list[Cell]] = field(default_factory=list)

    def markdown(self) -> str:
        """For a page: scores as mean and standard deviation over seeds."""
        shown = [[spread(cell) if isinstance(cell, list) else cell for cell in line] for line in self.lines]
        return markdown_table(self.headings, shown)

    def objects(self) -> list[dict[str, Any]]:
        """One object a line, its keys the headings; deviations have keys of their own."""
        return [self._object(line) for line in self.lines]

    def _object(self, line: Sequence[Cell]) -> dict[str, Any]:
        found: dict[str, Any] = {}
        for name, cell in zip(self.headings, line, strict=True):
            found[name] = statistics.fmean(cell) if isinstance(cell, list) else cell
            if isinstance(cell, list) and len(cell) > 1:
                found[f"{name}, deviation"] = statistics.stdev(cell)
        return found


def level_table(rows: Sequence[Row]) -> Table:
    """Test scores of one network at the compared budgets, a line an arm."""
    evaluations = {row["how"]: row["evaluations"] for row in rows}
    budgets = [f"macs={budget}" for budget in LEVEL_BUDGETS]
    table = Table(["test split", "evaluations", *budgets, "mean", "mean, reward split"])
    for label, how, policy in ARMS:
        mine = [row for row in rows if row["how"] == how]
        if mine:
            cells: list[Cell] = [[row["levels"][name][policy]["test"] for row in mine] for name in budgets]
            means: list[Cell] = [
                [mean_score(row, policy, split) for row in mine] for split in ("test", "reward")
            ]
            table.lines.append(
                [label, str(evaluations[how]) if policy != "uniform" else "1 each", *cells, *means]
            )
    return table


def mean_score(row: Row, policy: str, split: str) -> float:
    """Mean of a policy's scores over the compared budgets."""
    return statistics.fmean(row["levels"][f"macs={budget}"][policy][split] for budget in LEVEL_BUDGETS)


def transfer_table(rows: Sequence[Row]) -> Table:
    """Both splits, a line an arm and a number of evaluations."""
    table = Table(["network, budget", "agent", "evaluations", "seeds", "reward split", "test split"])
    for network in dict.fromkeys(row["network"] for row in rows):
        for budget in HOLD_BUDGETS:
            here = [row for row in rows if (row["network"], row["budget"]) == (network, budget)]
            name = f"{network}, {budget}"
            if here:
                table.lines.append([name, "uniform", "1", "", *_both_splits(here[:1], "uniform")])
            for how, counts in (("adapted", ADAPTED), ("scratch", SCRATCH)):
                for count in counts:
                    mine = [row for row in here if row["how"] == how and str(row["evaluations"]) == count]
                    if mine:
                        table.lines.append([name, how, count, len(mine), *_both_splits(mine, "best")])
    return table


def level_rows(rows: Sequence[Row]) -> dict[str, list[Row]]:
    """The rows of one training for every budget, by network in the order of the plan."""
    names = dict.fromkeys(name for group in GROUPS.values() for name in group.levels)
    found = {
        name: [row for row in rows if row["part"] == "levels" and row["network"] == name] for name in names
    }
    return {name: mine for name, mine in found.items() if mine}


def transfer_rows_of(rows: Sequence[Row]) -> dict[str, list[Row]]:
    """The rows of networks never seen, by group."""
    found = {
        name: [row for row in rows if row["part"] == "transfer" and row["network"] in group.held_out]
        for name, group in GROUPS.items()
    }
    return {name: mine for name, mine in found.items() if mine}


def _both_splits(rows: Sequence[Row], policy: str) -> list[Cell]:
    return [[row[policy][split] for row in rows] for split in ("reward", "test")]

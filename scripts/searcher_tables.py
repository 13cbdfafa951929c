"""The tables of the searchers' comparison: one object a row, with the column names as keys."""

import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from scripts.results_runner import Row, Rows
from scripts.search_comparison import Setting
from scripts.search_rows import FIXED
from scripts.search_words import against
from scripts.searcher_rows import BEFORE, SEARCHERS, TODAY

WORDS = {"macs": "the MACs", "latency": "the measured latency"}
COST_COLUMN = "of the budget's cost"
"""Name of the column that tells what the best policy costs, as a share of the original's."""
Line = dict[str, Any]


@dataclass(frozen=True)
class Contest(Setting):
    """The searches on one network under one budget, up to a number of evaluations.

    Attributes:
        cost: "macs" or "latency".
        evaluations: after which the searches are looked at; a rule ends before.
    """

    cost: str = "macs"
    evaluations: int = 0

    @property
    def title(self) -> str:
        """Network, budget and evaluations in words."""
        share = f"{float(self.budget):.0%} of {WORDS[self.cost]}"
        return f"{self.network}, {share}, {self.evaluations} evaluations"

    @property
    def searchers(self) -> list[str]:
        """Who has searched here."""
        return [name for name in SEARCHERS if self.of(name)]

    @property
    def decides(self) -> bool:
        """Whether there is more than one searcher to choose from: rules are no searchers."""
        return sum(name not in FIXED for name in self.searchers) > 1

    def best(self, row: Row) -> Row:
        """What a search had found by then."""
        ended = [best for best in row["best"] if best["evaluations"] <= self.evaluations]
        found: Row = (ended or row["best"])[-1]
        return found

    def finals(self, searcher: str, figure: str = "reward_accuracy") -> dict[str, float]:
        """Seed to a figure of the best policy by then."""
        return {row["seed"]: self.best(row)[figure] for row in self.of(searcher)}


def tables(rows: Rows) -> dict[str, list[Line]]:
    """Every table of the page; the rows of both settings say whose they are."""
    blocks = {settings: contests(under(rows, settings)) for settings in (TODAY, BEFORE)}
    return {
        "advice": [
            {"settings": settings, **line}
            for settings, found in blocks.items()
            for line in advice_lines(found)
        ],
        "figures": [
            {"settings": settings, **about(contest), **figure_line(contest, name)}
            for settings, found in blocks.items()
            for contest in found
            for name in contest.searchers
        ],
    }


def under(rows: Rows, settings: str) -> list[Row]:
    """The rows of these settings; the first ones were written when there was one."""
    return [row for row in rows.values() if row.get("settings", BEFORE) == settings]


def about(contest: Contest) -> Line:
    """What tells a contest from the others."""
    names = ("network", "cost", "budget", "evaluations")
    return {name: getattr(contest, name) for name in names}


def contests(rows: Sequence[Row]) -> list[Contest]:
    """What has been compared, in the order of the rows."""
    found = []
    for network, cost, budget in dict.fromkeys((row["network"], row["cost"], row["budget"]) for row in rows):
        own = tuple(
            row for row in rows if (row["network"], row["cost"], row["budget"]) == (network, cost, budget)
        )
        counts = {best["evaluations"] for row in own if row["searcher"] not in FIXED for best in row["best"]}
        found += [Contest(network, budget, own, cost, count) for count in sorted(counts)]
    return found


def leaders(contest: Contest) -> list[str]:
    """The searcher with the best mean, and those that tie with it."""
    best = max(contest.searchers, key=contest.mean)
    others = [name for name in contest.searchers if name != best]
    return [best, *(name for name in others if against(contest, best, name)[0])]


def advice_lines(found: Sequence[Contest]) -> list[Line]:
    """Searchers that all contests have, those that lead or tie most often first, then the fastest."""
    drawn = [contest for contest in found if contest.decides]
    names = [name for name in SEARCHERS if drawn and all(contest.of(name) for contest in drawn)]
    led = {name: sum(name in leaders(contest) for contest in drawn) for name in names}
    ranked = sorted(names, key=lambda name: (-led[name], own_seconds(drawn, name)))
    return [
        {
            "searcher": name,
            "best or tied": led[name],
            "contests": len(drawn),
            "points behind the best, mean": round(behind(drawn, name), 2),
            "seconds of a search": round(own_seconds(drawn, name), 1),
        }
        for name in ranked
    ]


def behind(found: Sequence[Contest], searcher: str) -> float:
    """Points of the reward split that a searcher is behind the best mean, over all contests."""
    return 100 * statistics.fmean(
        contest.mean(searcher) - max(contest.mean(name) for name in contest.searchers) for contest in found
    )


def own_seconds(found: Sequence[Contest], searcher: str) -> float:
    """Seconds of a search, over all contests."""
    return statistics.fmean(contest.mean(searcher, "seconds") for contest in found)


def figure_line(contest: Contest, searcher: str) -> Line:
    """One searcher in a contest: means over its seeds; shares, not percentages."""
    own = contest.of(searcher)
    test = contest.mean(searcher, "test_untuned")
    cost = contest.mean(searcher, "macs_fraction" if contest.cost == "macs" else "cost_fraction")
    return {
        "searcher": searcher,
        "seeds": len(own),
        "reward split": round(contest.mean(searcher), 6),
        "reward split, deviation": deviation(contest.finals(searcher)),
        "test un-tuned": round(test, 6),
        "test un-tuned, deviation": deviation(contest.finals(searcher, "test_untuned")),
        "points": round(100 * (test - own[0]["original_test"]), 4),
        "found at": round(contest.mean(searcher, "found_at"), 2),
        COST_COLUMN: round(cost, 5),
        "search s": round(contest.mean(searcher, "seconds"), 1),
    }


def deviation(finals: dict[str, float]) -> float | None:
    """The standard deviation of one search; None of a single seed."""
    return round(statistics.stdev(finals.values()), 6) if len(finals) > 1 else None

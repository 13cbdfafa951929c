"""The page of the searchers' comparison: which one to use, and the tables behind that."""

import statistics
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

if not __package__:  # started as a file: Python then looks in scripts/ and not in the folder above it
    sys.path[0] = str(Path(__file__).resolve().parents[1])

from amc.errors import UserError
from scripts.cli import run
from scripts.results_page import markdown_table, read_figures, where_and_when, write_page
from scripts.results_runner import Row, Rows
from scripts.search_comparison import Setting
from scripts.search_page import spread
from scripts.search_rows import FIXED
from scripts.search_words import against
from scripts.searcher_rows import SEARCHERS, plan

WORDS = {"macs": "the MACs", "latency": "the measured latency"}


@dataclass(frozen=True)
class SearcherPage:
    """Options of the page."""

    figures: Path = Path("docs/results/searchers.json")
    """What scripts/searcher_results.py has written; the page goes beside it."""


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

    def best(self, row: Row) -> Row:
        """What a search had found by then."""
        ended = [best for best in row["best"] if best["evaluations"] <= self.evaluations]
        found: Row = (ended or row["best"])[-1]
        return found

    def finals(self, searcher: str, figure: str = "reward_accuracy") -> dict[str, float]:
        """Seed to a figure of the best policy by then."""
        return {row["seed"]: self.best(row)[figure] for row in self.of(searcher)}


def main(options: SearcherPage) -> None:
    """Write the page of the searchers' comparison from the figures."""
    rows: Rows = read_figures(options.figures).get("rows", {})
    if not rows:
        raise UserError(f"{options.figures} has no rows yet: scripts/searcher_results.py makes them.")
    found = contests(list(rows.values()))
    parts = ["# Searchers, compared", *overview(rows), *advice(found), *winners(found), *tables(found)]
    write_page(
        options.figures.with_suffix(".md"), [*parts, *missing(rows), *where_and_when(list(rows.values()))]
    )
    print(options.figures.with_suffix(".md"))


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


def overview(rows: Rows) -> list[str]:
    """What all sections share."""
    planned, hours = plan(rows), sum(row["seconds"] for row in rows.values()) / 3600
    done = sum(spec.name in rows for spec in planned)
    return [
        "All searchers begin with the uniform policy and spend the same number of evaluations. Channels go "
        "in the order of their weights and layers are refitted symmetrically, as was the default when this "
        "comparison began: the same everywhere, with more left to search than under the defaults of today. "
        "`uniform` is a rule of one evaluation; `shallow` and `deep` are ramps of eight slopes. The figures "
        "at half of "
        "the evaluations are read off the longer search, whose exploration is planned for all of them. The "
        "reward split decides; the test split is only looked at afterwards. On the other networks the three "
        "searchers that were best on ResNet-20 search with one seed. Searches under MACs are those of the "
        "[search table](search.md) where it has them.",
        f"{done} of {len(planned)} rows are measured; those took {hours:.1f} hours of one core. "
        "`python -m scripts.searcher_results` makes the missing ones, with `--data-root`, `--weights-dir` "
        "and `--weights-56`; `python -m scripts.searcher_page` writes this page from them.",
    ]


def leaders(contest: Contest) -> list[str]:
    """The searcher with the best mean, and those that tie with it."""
    best = max(contest.searchers, key=contest.mean)
    others = [name for name in contest.searchers if name != best]
    return [best, *(name for name in others if against(contest, best, name)[0])]


def advice(found: Sequence[Contest]) -> list[str]:
    """Which searcher to use: the one that leads or ties most often, and fewer seconds where that is equal."""
    drawn = [contest for contest in found if any(name not in FIXED for name in contest.searchers)]
    names = [name for name in SEARCHERS if all(contest.of(name) for contest in drawn)]
    if not drawn or not names:
        return ["## Which one to use", "*Not measured yet.*"]
    led = {name: sum(name in leaders(contest) for contest in drawn) for name in names}
    first = max(led.values())
    ranked = sorted(names, key=lambda name: (-led[name], own_seconds(drawn, name)))
    table = [
        [
            name,
            f"{led[name]} of {len(drawn)}",
            f"{behind(drawn, name):+.2f}",
            f"{own_seconds(drawn, name):.0f}",
        ]
        for name in ranked
    ]
    equal = [f"`{name}`" for name in ranked if led[name] == first]
    said = (
        f"Use {equal[0]}: it has the best mean, or ties with the best, in {first} of {len(drawn)} contests."
    )
    also = f" {', '.join(equal[1:])} {'does' if len(equal) == 2 else 'do'} so as often." if equal[1:] else ""
    headings = ["searcher", "best or tied", "points behind the best, mean", "seconds of a search"]
    return ["## Which one to use", said + also, markdown_table(headings, table)]


def behind(found: Sequence[Contest], searcher: str) -> float:
    """Points of the reward split that a searcher is behind the best mean, over all contests."""
    return 100 * statistics.fmean(
        contest.mean(searcher) - max(contest.mean(name) for name in contest.searchers) for contest in found
    )


def own_seconds(found: Sequence[Contest], searcher: str) -> float:
    """Seconds of a search, over all contests."""
    return statistics.fmean(contest.mean(searcher, "seconds") for contest in found)


def winners(found: Sequence[Contest]) -> list[str]:
    """Who wins where."""
    lines = []
    for contest in found:
        best, *ties = leaders(contest)
        rest = [name for name in contest.searchers if name not in (best, *ties)]
        said = [f"**{best}** ({contest.mean(best):.2%})"]
        said += (
            [f"tied with it: {', '.join(against(contest, best, name)[1] for name in ties)}"] if ties else []
        )
        said += [f"behind: {', '.join(against(contest, best, name)[1] for name in rest)}"] if rest else []
        lines.append(f"* {contest.title}: {'; '.join(said)}.")
    about = (
        "Means on the reward split; differences in points, paired by seed, with their standard error. One "
        "below the standard error of an accuracy on the reward split is a tie."
    )
    return ["## Who wins where", about, "\n".join(lines)]


def tables(found: Sequence[Contest]) -> list[str]:
    """All searchers of all contests."""
    headings = [
        "searcher",
        "seeds",
        "reward split",
        "test un-tuned",
        "points",
        "found at",
        "of the budget's cost",
    ]
    headings += ["search s"]
    parts = ["## Figures", "Means over seeds, ± the standard deviation of one search."]
    for contest in found:
        lines = [line(contest, name) for name in contest.searchers]
        parts += [f"### {contest.title}", markdown_table(headings, lines)]
    return parts


def line(contest: Contest, searcher: str) -> list[str]:
    """One searcher in a table."""
    own = contest.of(searcher)
    tests = list(contest.finals(searcher, "test_untuned").values())
    lost = statistics.fmean(tests) - own[0]["original_test"]
    key = "macs_fraction" if contest.cost == "macs" else "cost_fraction"
    return [
        searcher,
        str(len(own)),
        spread(list(contest.finals(searcher).values())),
        spread(tests),
        f"{100 * lost:+.2f}",
        f"{contest.mean(searcher, 'found_at'):.0f}",
        f"{contest.mean(searcher, key):.3f}",
        f"{contest.mean(searcher, 'seconds'):.0f}",
    ]


def missing(rows: Rows) -> list[str]:
    """What nobody has measured; rows that differ in the seed only share a line."""
    seeds: dict[str, list[str]] = {}
    for spec in plan(rows):
        if spec.name not in rows:
            seeds.setdefault(spec.name.rpartition("/")[0], []).append(spec.seed)
    listed = [f"* `{name}`: seeds {', '.join(found)}" for name, found in seeds.items()]
    return ["## Not measured yet", "\n".join(listed)] if listed else []


if __name__ == "__main__":
    run(main)

"""The page of the searchers' comparison: which one to use, and the tables behind that."""

import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

if not __package__:  # started as a file: Python then looks in scripts/ and not in the folder above it
    sys.path[0] = str(Path(__file__).resolve().parents[1])

from amc.errors import UserError
from scripts.cli import run
from scripts.results_page import (
    AGAIN,
    NOTHING,
    labelled,
    markdown_table,
    of_before,
    read_figures,
    save_figures,
    where_and_when,
    write_page,
)
from scripts.results_runner import Row, Rows
from scripts.search_page import about
from scripts.search_words import against
from scripts.searcher_rows import (
    BEFORE,
    BEST,
    BUDGET,
    FIRST,
    OTHERS,
    SEEDS,
    TODAY,
    Spec,
    best_searchers,
    plan,
    with_table,
)
from scripts.searcher_tables import (
    COST_COLUMN,
    Contest,
    Line,
    advice_lines,
    contests,
    figure_line,
    leaders,
    tables,
    under,
)


@dataclass(frozen=True)
class SearcherPage:
    """Options of the page."""

    figures: Path = Path("docs/results/searchers.json")
    """What scripts/searcher_results.py has written; the page goes beside it, and its tables into it."""
    table: Path = Path("docs/results/search.json")
    """Figures of scripts/search_results.py, whose searches under MACs are taken as they are."""


def main(options: SearcherPage) -> None:
    """Write the page of the searchers' comparison from the figures."""
    figures = read_figures(options.figures)
    own: Rows = figures.get("rows", {})
    if not own:
        raise UserError(f"{options.figures} has no rows yet: scripts/searcher_results.py makes them.")
    rows = with_table(own, read_figures(options.table).get("rows", {}))
    now, before = (contests(under(rows, settings)) for settings in (TODAY, BEFORE))
    parts = ["# Searchers, compared", *overview(rows), *advice(now), *block(now, "## Under today's defaults")]
    parts += earlier(before)
    save_figures(options.figures, {"tables": tables(rows), "rows": own})
    where = where_and_when(list(rows.values()))
    write_page(options.figures.with_suffix(".md"), [*parts, *missing(rows), *where])
    print(options.figures.with_suffix(".md"))


def overview(rows: Rows) -> list[str]:
    """What all sections share."""
    planned, hours = plan(rows), sum(row["seconds"] for row in rows.values()) / 3600
    done = sum(spec.name in rows for spec in planned)
    others = f", and {len(rows) - done} that are not planned" if len(rows) > done else ""
    return [
        "All searchers begin with the same policy and spend the same number of evaluations. `uniform` (one "
        "keep ratio) and `balanced` (about the same predicted error in all layers) are rules of one "
        "evaluation; `shallow` and `deep` are ramps of eight slopes; `greedy` draws nothing either, and one "
        "seed says all. "
        "**The figures at half of the evaluations are read off the longer search**, whose exploration is "
        "planned for all of them: two readings of the same runs, not two experiments. The reward split "
        f"decides; the test split is only looked at afterwards. On the other networks the {BEST} searchers "
        f"that are best on {FIRST} search with one seed. Searches under MACs are those of the "
        "[search table](search.md) where it has them.",
        f"{done} of {len(planned)} rows are measured{others}; those that are shown took {hours:.1f} hours. "
        "`python -m scripts.searcher_results` makes the missing ones "
        f"{AGAIN}, with `--data-root`, `--weights-dir` "
        "and `--weights-56`; searches under latency have a folder of their own, `--latency-runs`. "
        "`python -m scripts.searcher_page` writes this page from them.",
        *of_before(rows.values(), marked=" († in the tables)"),
    ]


def advice(found: Sequence[Contest]) -> list[str]:
    """Which searcher to use under today's defaults."""
    title, lines = "## Which one to use", advice_lines(found)
    if not lines:
        return [
            title,
            f"{NOTHING} Under today's defaults no two searchers have been compared on the same network and "
            "budget; what was measured under earlier ones is further below, and need not hold.",
        ]
    return [title, *said(lines)]


def said(lines: Sequence[Line]) -> list[str]:
    """The one that leads or ties most often, and is faster where that is equal, in words and as a table."""
    first, total = lines[0]["best or tied"], lines[0]["contests"]
    equal = [f"`{line['searcher']}`" for line in lines if line["best or tied"] == first]
    text = f"Use {equal[0]}: it has the best mean, or ties with the best, in {first} of {total} contests."
    text += f" {', '.join(equal[1:])} {'does' if len(equal) == 2 else 'do'} so as often." if equal[1:] else ""
    headings = ["searcher", "best or tied", "points behind the best, mean", "seconds of a search"]
    cells = [
        [
            line["searcher"],
            f"{line['best or tied']} of {total}",
            f"{line['points behind the best, mean']:+.2f}",
            f"{line['seconds of a search']:.0f}",
        ]
        for line in lines
    ]
    return [text, markdown_table(headings, cells)]


def earlier(found: Sequence[Contest]) -> list[str]:
    """The block with which the comparison began."""
    if not found:
        return []
    about_it = (
        "When this comparison began, channels went in the order of their weights (`--importance l2`), layers "
        "were refitted symmetrically and searches started from the uniform policy: the same for all, with "
        "more left to search than there is today. No advice for today's defaults follows from it."
    )
    title = "## Under the settings with which the comparison began"
    lines = advice_lines(found)
    return [title, about_it, *(said(lines)[1:] if lines else []), *block(found)]


def block(found: Sequence[Contest], title: str = "") -> list[str]:
    """Who wins where, and all figures."""
    parts = [title] if title else []
    return [*parts, *winners(found), *figures_of(found)] if found else [*parts, NOTHING]


def winners(found: Sequence[Contest]) -> list[str]:
    """Who wins where."""
    lines = []
    for contest in found:
        best, *ties = leaders(contest)
        rest = [name for name in contest.searchers if name not in (best, *ties)]
        told = [f"**{best}** ({contest.mean(best):.2%})"]
        told += (
            [f"tied with it: {', '.join(against(contest, best, name)[1] for name in ties)}"] if ties else []
        )
        told += [f"behind: {', '.join(against(contest, best, name)[1] for name in rest)}"] if rest else []
        lines.append(f"* {contest.title}: {'; '.join(told)}.")
    explained = (
        "Means on the reward split; differences in points, paired by seed, with their standard error. One "
        "below the standard error of an accuracy on the reward split is a tie."
    )
    return ["### Who wins where", explained, "\n".join(lines)]


def figures_of(found: Sequence[Contest]) -> list[str]:
    """All searchers of all contests."""
    parts = ["### Figures", "Means over seeds, ± the standard deviation of one search."]
    for contest in found:
        lines = [figure_line(contest, name) for name in contest.searchers]
        headings = [name for name in lines[0] if not name.endswith("deviation")]
        table = markdown_table(headings, [cells(line, contest.of(str(line["searcher"]))) for line in lines])
        parts += [f"#### {contest.title}", about(contest), table]
    return parts


def cells(line: Line, rows: Sequence[Row]) -> list[str]:
    """One searcher in a table, and the rows behind it."""
    return [
        labelled(line["searcher"], rows),
        str(line["seeds"]),
        *(spread(line[name], line[f"{name}, deviation"]) for name in ("reward split", "test un-tuned")),
        f"{line['points']:+.2f}",
        f"{line['found at']:.0f}",
        f"{line[COST_COLUMN]:.3f}",
        f"{line['search s']:.0f}",
    ]


def spread(mean: float, deviation: float | None) -> str:
    """Mean and standard deviation."""
    return f"{mean:.2%}" + ("" if deviation is None else f" ± {100 * deviation:.2f}")


def missing(rows: Rows) -> list[str]:
    """What nobody has measured; rows that differ in the seed only share a line."""
    seeds: dict[str, list[str]] = {}
    for spec in plan(rows):
        if spec.name not in rows:
            seeds.setdefault(replace(spec, seed="*").name, []).append(spec.seed)
    listed = [f"* `{name}`: seeds {', '.join(found)}" for name, found in seeds.items()]
    if not best_searchers(rows):
        listed += [
            f"* `{Spec(network, 'macs', BUDGET, '*', SEEDS[0]).name}`: the {BEST} searchers that are best on "
            f"{FIRST}, once all its seeds under MACs are measured"
            for network in OTHERS
        ]
    return ["## Not measured yet", "\n".join(listed)] if listed else []


if __name__ == "__main__":
    run(main)

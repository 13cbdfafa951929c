"""The page of the search results: tables and curves of whatever rows there are."""

import statistics
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

if not __package__:  # started as a file: Python then looks in scripts/ and not in the folder above it
    sys.path[0] = str(Path(__file__).resolve().parents[1])

from amc.errors import UserError
from amc.files import write_atomically
from scripts.cli import run
from scripts.main_job import CIFAR_TEST_IMAGES, standard_error
from scripts.results_page import (
    AGAIN,
    NOTHING,
    labelled,
    markdown_table,
    of_before,
    read_figures,
    where_and_when,
    write_page,
)
from scripts.results_runner import Row, Rows
from scripts.search_comparison import Setting, contests, settings
from scripts.search_page_goals import smallest, sparse
from scripts.search_page_measured import proxies, ranking, seen
from scripts.search_page_speed import speed, workers
from scripts.search_page_without import without
from scripts.search_plots import curves_png
from scripts.search_rows import NETWORKS, VARIANTS, plan
from scripts.search_words import (
    anchors,
    differences,
    search_goal,
    unmeasured,
    winner,
)

SCORE_HEADINGS = (
    *("seeds", "reward split, half", "reward split", "test un-tuned, half", "test un-tuned", "points"),
    "test fine-tuned (epochs)",
)
"""Half: the best policy of the first half of the evaluations."""


@dataclass(frozen=True)
class SearchPage:
    """Options of the page."""

    figures: Path = Path("docs/results/search.json")
    """What scripts/search_results.py has written; the page goes beside it."""
    images: Path = Path("docs/images")
    """Folder of the plots."""


def main(options: SearchPage) -> None:
    """Write the page of the search results and its plots from the figures."""
    rows: Rows = read_figures(options.figures).get("rows", {})
    if not rows:
        raise UserError(f"{options.figures} has no rows yet: scripts/search_results.py makes them.")
    options.images.mkdir(parents=True, exist_ok=True)
    made = list(rows.values())
    parts = ["# Search, measured", *overview(rows), *goals(made), *table(made), *curves(made, options)]
    parts += [
        *comparison(made),
        *variants(made),
        *smallest(made),
        *sparse(made),
        *without(made),
        *ranking(made, options.images),
        *proxies(made),
        *seen(made),
        *speed(made),
        *workers(made),
    ]
    write_page(options.figures.with_suffix(".md"), [*parts, *missing(rows), *where_and_when(made)])
    print(options.figures.with_suffix(".md"))


def searches(rows: Sequence[Row], variant: str | None = None) -> list[Row]:
    """The rows of the table of this variant; None for the default."""
    return [row for row in rows if row["part"] == "table" and row.get("variant") == variant]


def all_searches(rows: Sequence[Row]) -> list[Row]:
    """The rows of the table of all variants."""
    return [row for row in rows if row["part"] == "table"]


def overview(rows: Rows) -> list[str]:
    """What all sections share."""
    planned = {spec.name for spec in plan()}
    hours = sum(row["seconds"] for row in rows.values()) / 3600
    return [
        "Budgets are fractions of the MACs. All searchers start from the same policy (`balanced`, "
        "or `uniform` where that scores better) and spend "
        "the same number of evaluations; a policy met again counts too. `uniform` (one keep ratio) and "
        "`balanced` (about the same predicted error in all layers) are rules of one evaluation; `shallow` "
        "and `deep` are ramps of eight slopes from the uniform policy and show the best of these. The "
        "figures at half of the evaluations are read off the same search, whose exploration is planned for "
        "all of them. Scores of the reward split decide; the test split is only looked at afterwards.",
        f"{len(planned & set(rows))} of {len(planned)} rows are measured; those that are took {hours:.1f} "
        "hours. `python -m scripts.search_results` makes the missing ones "
        f"{AGAIN}, with `--data-root`, "
        "`--weights-dir` and `--weights-56`; `python -m scripts.search_page` writes this page from them.",
        *of_before(rows.values(), marked=" († in the tables of searchers)"),
    ]


def goals(rows: Sequence[Row]) -> list[str]:
    """The goals, in words."""
    found = settings(searches(rows))
    return ["## Goals", *anchors(rows), *(search_goal(found) if found else [])]


def table(rows: Sequence[Row]) -> list[str]:
    """All searchers on all networks."""
    found = settings(searches(rows))
    title = "## Searchers at equal evaluations"
    if not found:
        return [title, NOTHING]
    headings = ["searcher", *SCORE_HEADINGS, "search s (threads)"]
    parts = [title, "Means over seeds, ± the standard deviation of one search."]
    for setting in found:
        lines = [line(setting, name, rows) for name in setting.searchers]
        parts += [f"### {setting.title}", about(setting), markdown_table(headings, lines)]
    return [*parts, commands("table", "tuned", "headline")]


def about(setting: Setting) -> str:
    """The uncompressed network, and how exact one accuracy is."""
    row = setting.rows[0]
    said = (
        f"Original: {row['original_reward']:.2%} on the reward split, {row['original_test']:.2%} on the test "
        f"split. Standard error of one accuracy: {setting.standard_error:.2%} on the reward split of "
        f"{row['reward_images']} images, {test_error(setting):.2%} on the test split."
    )
    seen = " **The weights have seen the images of the reward split in training**, so it reads higher."
    return said + (seen if row["seen"] else "")


def test_error(setting: Setting) -> float:
    """Standard error of one accuracy on the test split."""
    best = max(setting.mean(name, "test_untuned") for name in setting.searchers)
    return standard_error(best, CIFAR_TEST_IMAGES)


def line(setting: Setting, searcher: str, rows: Sequence[Row]) -> list[str]:
    """One searcher in the table."""
    own = setting.of(searcher)
    tests = [row["best"][-1]["test_untuned"] for row in own]
    lost = statistics.fmean(tests) - own[0]["original_test"]
    halves = [row["best"][0] for row in own if len(row["best"]) > 1]
    threads = sorted({row["threads"] for row in own})
    return [
        labelled(searcher, own),
        str(len(own)),
        spread([best["reward_accuracy"] for best in halves]),
        spread([row["best"][-1]["reward_accuracy"] for row in own]),
        spread([best["test_untuned"] for best in halves]),
        spread(tests),
        f"{100 * lost:+.2f}",
        fine_tuned(own, rows),
        f"{statistics.fmean(row['best'][-1]['seconds'] for row in own):.0f} ({', '.join(map(str, threads))})",
    ]


def spread(values: Sequence[float]) -> str:
    """Mean and standard deviation; nothing of nothing."""
    if not values:
        return ""
    deviation = f" ± {100 * statistics.stdev(values):.2f}" if len(values) > 1 else ""
    return f"{statistics.fmean(values):.2%}{deviation}"


def fine_tuned(searched: Sequence[Row], rows: Sequence[Row]) -> str:
    """Accuracies after fine-tuning, of the seed that was chosen."""
    example = searched[0]
    keys = ("network", "budget", "searcher", "variant")
    tuned = [
        row
        for row in rows
        if row["part"] in ("tuned", "headline") and all(row.get(key) == example.get(key) for key in keys)
    ]
    shown = sorted(tuned, key=lambda row: int(row["epochs"]))
    return ", ".join(labelled(f"{row['test_tuned']:.2%} ({row['epochs']})", [row]) for row in shown)


def curves(rows: Sequence[Row], options: SearchPage) -> list[str]:
    """Best so far over evaluations, a picture a network."""
    found = contests(all_searches(rows))
    parts = ["## Best so far"]
    for network in NETWORKS:
        panels = [setting for setting in found if setting.network == network]
        if panels:
            name = f"search_curves_{network}.png"
            write_atomically(options.images / name, curves_png(panels))
            parts.append(f"![Best so far on {network}](../images/{name})")
    if len(parts) == 1:
        return [*parts, NOTHING]
    band = (
        "Lines are means over seeds, bands reach from the worst seed to the best; rules are dashed. Where "
        "nobody has searched with the defaults yet, other settings are drawn, named in the title."
    )
    return [*parts, band]


def comparison(rows: Sequence[Row]) -> list[str]:
    """Who wins where."""
    found = contests(all_searches(rows))
    title = "## Which searcher wins where"
    if not found:
        return [title, NOTHING]
    lines = [cells for setting in found for cells in differences(setting)]
    headings = ["network, budget", "DDPG against", "pairs", "reward split", "test un-tuned", "verdict"]
    return [
        title,
        "Differences are paired by seed, in points, with their standard error. One below the standard error "
        "of an accuracy on the reward split is a tie. Settings that are not the default's are named.",
        "\n".join(winner(setting) for setting in found),
        *([markdown_table(headings, lines)] if lines else []),
    ]


def variants(rows: Sequence[Row]) -> list[str]:
    """The default beside other orders of channels, and other reconstructions, on ResNet-20."""
    title = "## Order of channels and reconstruction: the default against others"
    others = {kind: settings(searches(rows, kind)) for kind in VARIANTS}
    kinds = {"default": settings(searches(rows)), **others}
    if not any(others.values()):
        return [title, NOTHING]
    lines = [
        [f"{setting.title}, {name}", kind, *line(setting, name, rows)[1:-1]]
        for kind, found in kinds.items()
        for setting in found
        for name in setting.searchers
        if setting.network == "resnet20"
    ]
    headings = ["network, budget, searcher", "variant", *SCORE_HEADINGS]
    said = (
        "By default channels go in the order of the Optimal Brain Surgeon (`--importance obs`), and least "
        "squares refits layers to their inputs in the compressed network (`--reconstruct asymmetric`). "
        "`none` refits nothing, `symmetric` refits to inputs in the original network; `l2` does that too, "
        "with channels ranked by their weights and searches that start from the uniform policy."
    )
    patterns = [f"*{kind}" for kind in VARIANTS]
    return [title, said, markdown_table(headings, sorted(lines)), commands(*patterns)]


def missing(rows: Rows) -> list[str]:
    """What nobody has measured."""
    listed = unmeasured([spec for spec in plan() if spec.name not in rows])
    return ["## Not measured yet", "\n".join(listed)] if listed else []


def commands(*parts: str) -> str:
    """How the rows of a section are regenerated."""
    patterns = [part if part.startswith("*") else f"{part}/*" for part in parts]
    lines = "\n".join(f"python -m scripts.search_results --only '{pattern}'" for pattern in patterns)
    return f"```\n{lines}\n```"


if __name__ == "__main__":
    run(main)

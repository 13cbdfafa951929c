"""Sections of the page of the search results that are not about searchers: rankings and proxies."""

import statistics
from collections.abc import Sequence
from pathlib import Path

from amc.files import write_atomically
from scripts.proxy_correlation import conclusion
from scripts.results_page import NOTHING, markdown_table
from scripts.results_runner import Row
from scripts.search_plots import untuned_png

UNTUNED = "untuned.png"


def ranking(rows: Sequence[Row], images: Path) -> list[str]:
    """Policies without a search, by what decides which channels go and where; draws them into a folder."""
    title = "## Without a search: which channels go, and from where"
    made = [row for row in rows if row["part"] == "ranking"]
    if not made:
        return [title, NOTHING]
    lines = [
        [
            f"{row['network']}, {float(budget):.0%} of the MACs, {split}",
            *(f"{score[split]:.2%}" for score in found.values()),
        ]
        for row in made
        for budget, found in row["scores"].items()
        for split in ("reward", "test")
    ]
    names = list(next(iter(made[0]["scores"].values())))
    said = (
        "One evaluation each, un-tuned. Channels go by their weights (`l1`, `l2`), by their batch-norm "
        "scales (`bn`), by their effect on the loss (`taylor`), or by what least squares cannot make up for "
        "(`obs`, the Optimal Brain Surgeon); with one keep ratio for all layers, or with about the same "
        "predicted error in all of them (balanced), from which searches start. Layers are refitted to their "
        "inputs in the pruned network, but for the last two columns."
    )
    write_atomically(images / UNTUNED, untuned_png(made))
    picture = f"![Accuracy without fine-tuning against MACs](../images/{UNTUNED})"
    table = markdown_table(["network, budget, split", *names], lines)
    return [title, said, picture, table, command("ranking/*")]


def proxies(rows: Sequence[Row]) -> list[str]:
    """What un-tuned accuracy says of fine-tuned accuracy."""
    title = "## Does the reward mean anything?"
    made = [row for row in rows if row["part"] == "proxy"]
    if not made:
        return [title, NOTHING]
    lines = [
        proxy_line(row, name)
        for row in made
        for name in sorted(row["proxies"], key=lambda name: -(row["rank_correlation"][name] or 0.0))
    ]
    said = (
        "Random policies at half of the MACs, from the distribution that searches start with: scores as a "
        "search with that reward sees them, against the test accuracy after fine-tuning what the default "
        "delivers. Seconds are the median of an evaluation."
    )
    headings = ["network", "score on the reward split", "seconds", "its mean"]
    headings += ["Spearman with tuned test [95 %]", "Spearman with its own test [95 %]"]
    concluded = [
        f"* {row['network']}: " + conclusion(row["rank_correlation"], row["proxy_seconds"], row["default"])
        for row in made
    ]
    return [title, said, markdown_table(headings, lines), "\n".join(concluded), command("proxy/*")]


def proxy_line(row: Row, name: str) -> list[str]:
    """One un-tuned score: how it ranks policies against the fine-tuned one, and against the test split."""
    return [
        f"{row['network']}, {row['policies']} policies, {row['epochs']} epochs",
        name + (" (the default)" if name == row["default"] else ""),
        f"{row['proxy_seconds'][name]:.2f}",
        f"{row['mean_score'][name]['reward']:.2%}",
        interval(row["proxies"][name]["spearman"]),
        interval(row["reward_against_test"][name]["spearman"]),
    ]


def seen(rows: Sequence[Row]) -> list[str]:
    """Whether the reward split ranks policies as the test split does, also for weights that have seen it."""
    title = "## Does a reward split that the weights have seen still rank policies?"
    made = [row for row in rows if row["part"] == "seen"]
    if not made:
        return [title, NOTHING]
    said = (
        "Random policies at half of the MACs, un-tuned. The test split is ranked here for information only: "
        "nothing is chosen by it, here or in any search."
    )
    lines = [
        [
            row["network"],
            "seen in training" if row["seen"] else "unseen",
            str(len(row["scores"]["reward"])),
            *(f"{statistics.fmean(row['scores'][split]):.2%}" for split in ("reward", "test")),
            interval(row["spearman"]),
        ]
        for row in made
    ]
    headings = ["network", "reward split", "policies", "mean on it", "mean on the test split"]
    headings += ["Spearman of the two [95 %]"]
    return [title, said, markdown_table(headings, lines), command("seen/*")]


def interval(found: dict[str, float | None]) -> str:
    """A correlation and its confidence interval; "none" where all scores are alike."""
    if found["value"] is None:
        return "none"
    return f"{found['value']:+.2f} [{found['low']:+.2f}, {found['high']:+.2f}]"


def command(pattern: str) -> str:
    """How rows are regenerated."""
    return f"```\npython -m scripts.search_results --only '{pattern}'\n```"

"""Section of the page of the search results about parts of the agent: each search with it, and without."""

from collections.abc import Sequence
from statistics import fmean

from scripts.results_page import NOTHING, markdown_table
from scripts.results_runner import Row
from scripts.search_comparison import Setting
from scripts.search_page_measured import command
from scripts.search_rows import BUDGETS, WITHOUT, WITHOUT_SEEDS

AGENT = "ddpg"


def without(rows: Sequence[Row]) -> list[str]:
    """What each part of the agent is worth, paired by seed."""
    title = "## Parts of the agent, on and off"
    said = (
        "DDPG with its defaults against DDPG that evaluates its own proposals and not the best of many by a "
        "Gaussian process (`unscreened`: `--candidates 1`), and against DDPG that starts from one keep ratio "
        "(`uniform-start`: `--reference uniform`). Differences are paired by seed, in points, with their "
        "standard error; below the standard error of an accuracy on the reward split they are ties."
    )
    lines = [
        cells
        for kind in WITHOUT
        for network in WITHOUT_SEEDS
        for budget in BUDGETS
        for cells in without_line(rows, network, budget, kind)
    ]
    commands = [command(f"*/{kind}") for kind in WITHOUT]
    if not lines:
        return [title, said, NOTHING, *commands]
    headings = ["network, budget", "without", "pairs", "reward split, with", "without", "difference"]
    headings += ["on the test split", "verdict"]
    return [title, said, markdown_table(headings, lines), *commands]


def without_line(rows: Sequence[Row], network: str, budget: str, kind: str) -> list[list[str]]:
    """One comparison as a table line; none where no seed has both."""
    place = {"part": "table", "network": network, "budget": budget, "searcher": AGENT}
    own = [row for row in rows if all(row.get(key) == value for key, value in place.items())]
    default = [row for row in own if "variant" not in row]
    off = [{**row, "searcher": kind} for row in own if row.get("variant") == kind]
    setting = Setting(network, budget, (*default, *off))
    reward, test = (setting.difference(AGENT, kind, figure) for figure in ("reward_accuracy", "test_untuned"))
    if reward is None or test is None:
        return []
    verdict = "tie" if setting.is_tie(reward) else "helps" if reward.mean > 0 else "**harms**"
    scores = [setting.finals(who) for who in (AGENT, kind)]
    means = [f"{fmean(each[seed] for seed in scores[0] if seed in scores[1]):.2%}" for each in scores]
    return [[setting.title, kind, str(reward.pairs), *means, str(reward), str(test), verdict]]

"""The section of the agent's searches for a detector and retrieval networks."""

import statistics
from collections.abc import Sequence
from typing import Any

from scripts.mimic_page import spread
from scripts.paired import paired
from scripts.results_page import AGAIN, NOTHING, markdown_table
from scripts.task_search_results import EVALUATIONS, SETTINGS

Row = dict[str, Any]

NETWORKS = ("original", "uniform", "balanced", "ddpg")
COSTS = {"macs": ("MMACs", 1e6), "size": ("kB", 1e3), "code": ("code bits", 1.0)}
NOT_SCORES = {"reward", "test", "costs"}


def section(rows: list[Row]) -> list[str]:
    """The parts of the section, from its rows in `tasks.json`."""
    tables = [part for name in SETTINGS for part in networks(name, rows)]
    return ["## The agent on detectors and retrieval networks", overview(), *tables, *pairs(rows)]


def overview() -> str:
    """What the tables share."""
    return (
        f"DDPG's best of {EVALUATIONS} evaluations against the uniform policy (one keep ratio, or one "
        "fraction of all knobs' ranges) under the same budget, without fine-tuning. The score on the reward "
        "split is what a search maximises; the test split is looked at afterwards, and further scores are of "
        "it. All seeds of a setting compress the same network. `python -m scripts.task_search_results` makes "
        f"the missing rows {AGAIN}."
    )


def networks(name: str, rows: Sequence[Row]) -> list[str]:
    """Scores and costs in one setting, means and standard deviations over seeds."""
    mine = [row for row in rows if row["setting"] == name]
    title = f"### {SETTINGS[name].title[0].upper()}{SETTINGS[name].title[1:]}"
    if not mine:
        return [title, NOTHING]
    score, first = mine[0]["score"], mine[0]["networks"]["original"]
    more = [key for key in first if key not in NOT_SCORES]
    costs = [key for key in COSTS if key in first["costs"]]
    table = []
    for network in NETWORKS:
        found = [row["networks"][network] for row in mine if network in row["networks"]]
        if found:
            scores = [spread([each[key] for each in found]) for key in ("reward", "test", *more)]
            sizes = [
                f"{statistics.mean(each['costs'][c] for each in found) / COSTS[c][1]:.2f}" for c in costs
            ]
            table.append([network, len(found), *scores, *sizes])
    scored = [f"reward-split {score}", f"test {score}", *(f"test {key}" for key in more)]
    return [title, markdown_table(["network", "seeds", *scored, *(COSTS[c][0] for c in costs)], table)]


def pairs(rows: Sequence[Row]) -> list[str]:
    """What the agent gains over the uniform policy, paired over seeds."""
    table = []
    for name in SETTINGS:
        mine = [row["networks"] for row in rows if row["setting"] == name]
        for split in ("reward", "test"):
            found = paired([each["ddpg"][split] - each["uniform"][split] for each in mine])
            if found is not None:
                table.append([f"{name}, {split} split", found.seeds, found.points, found.verdict])
    headings = ["ddpg - uniform", "seeds", "points (95 % interval)", "verdict"]
    return ["### What the agent gains", markdown_table(headings, table) if table else NOTHING]

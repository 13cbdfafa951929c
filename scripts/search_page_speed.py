"""Sections of the page of the search results about time: what an evaluation takes, and what workers gain."""

from collections.abc import Sequence

from envs.problem_config import ProblemConfig
from scripts.results_page import NOTHING, markdown_table
from scripts.results_runner import Row
from scripts.search_page_measured import command

EFFICIENCY_GOAL, SECONDS_GOALS = 0.85, {"resnet56": 0.6, "mobilenet_v1": 1.2}
"""For MobileNet-V1 a tenth of what the authors' code takes."""
CORES, LOAD = 4, 1.0
"""The goals are about so many cores, and a machine whose load is below that before the measurement."""


def speed(rows: Sequence[Row]) -> list[str]:
    """Seconds an evaluation, and where they go."""
    title = "## Seconds per evaluation"
    made = [row for row in rows if row["part"] == "seconds"]
    if not made:
        return [title, NOTHING]
    headings = ["network", "refitted", "images scored", "re-normalizing", "here (threads)", "one worker"]
    headings += ["all (workers)", "cores", "load before", "best", "goal", "verdict"]
    said = (
        "Wall time of one evaluation of a random policy at half of the MACs, in seconds: in the searching "
        "process with all of its threads, with one worker process of one thread, and with all workers at "
        "once. Images for re-normalizing are passed a second time only where the refitting has not done it. "
        f"Goals are about {CORES} cores at a load below {LOAD:g}; others are shown and not judged."
    )
    return [
        title,
        said,
        markdown_table(headings, [speed_line(row) for row in made]),
        "Milliseconds of each part in the searching process, heard from the evaluator; the agent's proposal "
        "and learning come on top.",
        markdown_table(*parts_table(made)),
        command("seconds/*"),
    ]


def speed_line(row: Row) -> list[str]:
    """One network's evaluation against its goal."""
    seconds, goal = row["seconds_per_evaluation"], SECONDS_GOALS[row["network"]]
    return [
        *_network(row),
        str(row["reward_images"]),
        str(row["calibration_images"]),
        f"{row['in_process']:.2f} ({row['threads']})",
        f"{row['one_worker']:.2f}",
        f"{row['all_workers']:.2f} ({row['workers']})",
        str(_cores(row)),
        f"{row['load'][0]:.1f}",
        f"{seconds:.2f}",
        f"{goal:.1f}",
        verdict(row, seconds <= goal),
    ]


def parts_table(rows: Sequence[Row]) -> tuple[list[str], list[list[str]]]:
    """Headings and lines of the parts of evaluations, the parts in their order."""
    parts = list(dict.fromkeys(part for row in rows for part in row["phases"]))
    lines = [
        [*_network(row), *(f"{row['phases'][part]:.1f}" if part in row["phases"] else "" for part in parts)]
        for row in rows
    ]
    return ["network", "refitted", *parts], lines


def _network(row: Row) -> list[str]:
    return [row["network"], row.get("variant") or ProblemConfig().reconstruct]


def _cores(row: Row) -> int:
    """Cores that the measuring process could use."""
    return int(row["origin"]["machine"]["cores_allowed"])


def verdict(row: Row, reached: bool) -> str:
    """Whether a goal is met, where the machine was the one that the goal is about."""
    cores, load = _cores(row), row["load"][0]
    if cores != CORES:
        return f"not judged: {cores} cores"
    if row["workers"] != CORES:
        return f"not judged: {row['workers']} workers"
    if load >= LOAD:
        return f"not judged: load {load:.1f}"
    return "met" if reached else "**missed**"


def workers(rows: Sequence[Row]) -> list[str]:
    """Efficiency of several workers."""
    title = "## More cores"
    lines = [
        [
            row["network"],
            str(row["workers"]),
            str(_cores(row)),
            f"{row['load'][0]:.1f}",
            f"{row['one_worker']:.2f}",
            f"{row['all_workers']:.2f}",
            f"{row['efficiency']:.2f}",
            verdict(row, row["efficiency"] >= EFFICIENCY_GOAL),
        ]
        for row in rows
        if row["part"] == "workers"
    ]
    if not lines:
        return [title, NOTHING]
    headings = ["network", "workers", "cores", "load before", "one worker, s an evaluation", "all workers"]
    headings += ["efficiency", f"goal {EFFICIENCY_GOAL} at {CORES} workers on {CORES} cores"]
    return [title, markdown_table(headings, lines), command("workers/*")]

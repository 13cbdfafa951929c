"""The page of the cooling results: tables of whatever rows there are."""

import math
import statistics
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

if not __package__:  # started as a file: Python then looks in scripts/ and not in the folder above it
    sys.path[0] = str(Path(__file__).resolve().parents[1])

from amc.errors import UserError
from scripts.cli import run
from scripts.cooling_rows import ONE_SHOT, plan
from scripts.main_job import CIFAR_TEST_IMAGES, standard_error
from scripts.results_page import AGAIN, markdown_table, read_figures, where_and_when, write_page
from scripts.results_runner import Row, Rows
from scripts.results_runs import recipe
from scripts.search_comparison import Difference
from scripts.search_page import spread

SCHEDULES = (ONE_SHOT, "linear", "exponential")


@dataclass(frozen=True)
class CoolingPage:
    """Options of the page."""

    figures: Path = Path("docs/results/cooling.json")
    """What scripts/cooling_results.py has written; the page goes beside it."""


def main(options: CoolingPage) -> None:
    """Write the page of the cooling results from the figures."""
    rows: Rows = read_figures(options.figures).get("rows", {})
    if not rows:
        raise UserError(f"{options.figures} has no rows yet: scripts/cooling_results.py makes them.")
    made = list(rows.values())
    parts = ["# Cooling, measured", *overview(rows), *claim(made), *tables(made), *rounds(made)]
    write_page(options.figures.with_suffix(".md"), [*parts, *missing(rows), *where_and_when(made)])
    print(options.figures.with_suffix(".md"))


def overview(rows: Rows) -> list[str]:
    """What the tables share."""
    hours, example = sum(row["seconds"] for row in rows.values()) / 3600, next(iter(rows.values()))
    return [
        "A search in rounds prunes under a budget that tightens, and fine-tunes between rounds what it has "
        "left (Chen, Tung, Vedula and Mori, ECCV 2018); the claim is that this beats one search under the "
        f"final budget where compression is strong. Every row has {example['evaluations']} evaluations and "
        f"{example['epochs']} epochs of fine-tuning in all, with one recipe (peak learning rate "
        f"{recipe(Path(), Path(), 1, False).lr}): in rounds both are divided equally, and the last share of "
        "the epochs comes after the last round. Each share warms up and decays on its own. Budgets are "
        "fractions of the MACs. The reward split decides; the test split is only looked at afterwards.",
        f"{len(rows)} of {len(plan())} rows are measured; those took {hours:.1f} hours of one core. "
        "`python -m scripts.cooling_results` makes the missing ones "
        f"{AGAIN}; `python -m scripts.cooling_page` writes "
        "this page from them.",
    ]


def settings(rows: Sequence[Row]) -> Iterator[tuple[str, str, str]]:
    """Network, budget and searcher of the rows, in the order of the plan."""
    wanted = dict.fromkeys((spec.network, spec.budget, spec.searcher) for spec in plan())
    made = {(row["network"], row["budget"], row["searcher"]) for row in rows}
    return (setting for setting in wanted if setting in made)


def of(rows: Sequence[Row], setting: tuple[str, str, str], schedule: str) -> dict[str, Row]:
    """Seed to row."""
    keys = ("network", "budget", "searcher", "schedule")
    wanted = dict(zip(keys, (*setting, schedule), strict=True))
    return {row["seed"]: row for row in rows if all(row[key] == value for key, value in wanted.items())}


def difference(rows: Sequence[Row], setting: tuple[str, str, str], schedule: str) -> Difference | None:
    """How much better a schedule is than one shot on the test split, over the seeds that both have."""
    ours, theirs = of(rows, setting, schedule), of(rows, setting, ONE_SHOT)
    both = [ours[seed]["test_tuned"] - theirs[seed]["test_tuned"] for seed in ours if seed in theirs]
    if not both:
        return None
    error = statistics.stdev(both) / len(both) ** 0.5 if len(both) > 1 else None
    return Difference(statistics.fmean(both), error, len(both))


def title(setting: tuple[str, str, str]) -> str:
    """The setting in words."""
    network, budget, searcher = setting
    return f"{network}, {float(budget):.0%} of the MACs, {searcher}"


def claim(rows: Sequence[Row]) -> list[str]:
    """Whether gradual beats at once, setting by setting."""
    said = []
    for setting in settings(rows):
        for schedule in SCHEDULES[1:]:
            found = difference(rows, setting, schedule)
            if found is not None:
                said.append(
                    f"* {title(setting)}: {schedule} {found} points, {verdict(rows, setting, found)}."
                )
    text = "\n".join(said) if said else "*Not measured yet.*"
    about = (
        "Accuracy on the test split after all fine-tuning, in rounds less one-shot, paired by seed, with the "
        "standard error. A difference below that, or below the standard error of the difference of two "
        "accuracies, is a tie."
    )
    return ["## Does gradual beat one-shot?", about, text]


def verdict(rows: Sequence[Row], setting: tuple[str, str, str], found: Difference) -> str:
    """A tie, or who is better."""
    scores = [row["test_tuned"] for row in of(rows, setting, ONE_SHOT).values()]
    of_both = math.sqrt(2) * standard_error(max(scores), CIFAR_TEST_IMAGES)
    if abs(found.mean) < max(found.error or 0.0, of_both):
        return "a tie"
    return "**rounds are better**" if found.mean > 0 else "**one-shot is better**"


def tables(rows: Sequence[Row]) -> list[str]:
    """All schedules of all settings."""
    headings = ["network, budget, searcher", "schedule", "seeds", "reward split un-tuned", "test un-tuned"]
    headings += ["test fine-tuned", "points", "MACs", "hours"]
    lines = [
        line(setting, schedule, list(found.values()))
        for setting in settings(rows)
        for schedule in SCHEDULES
        if (found := of(rows, setting, schedule))
    ]
    about = (
        "Means over seeds, ± the standard deviation of one search. Un-tuned is before the last fine-tuning; "
        "in rounds, that network has been fine-tuned before."
    )
    return ["## Accuracy", about, markdown_table(headings, lines)]


def line(setting: tuple[str, str, str], schedule: str, found: Sequence[Row]) -> list[str]:
    """One schedule in the table."""
    tuned = [row["test_tuned"] for row in found]
    return [
        title(setting),
        schedule,
        str(len(found)),
        spread([row["reward_untuned"] for row in found]),
        spread([row["test_untuned"] for row in found]),
        spread(tuned),
        f"{100 * (statistics.fmean(tuned) - found[0]['original_test']):+.2f}",
        f"{statistics.fmean(row['macs_fraction'] for row in found):.3f}",
        f"{statistics.fmean(row['seconds'] for row in found) / 3600:.2f}",
    ]


def rounds(rows: Sequence[Row]) -> list[str]:
    """What happens round by round."""
    headings = ["network, budget, searcher", "schedule", "round", "may cost", "costs", "kept the budget"]
    headings += ["uniform", "best", "fine-tuned"]
    lines = []
    for setting in settings(rows):
        for schedule in SCHEDULES[1:]:
            found = list(of(rows, setting, schedule).values())
            for group in zip(*(row["rounds"] for row in found), strict=True) if found else ():
                lines.append([title(setting), schedule, *round_cells(group)])
    about = (
        "Means over seeds; accuracies on the reward split: of the round's uniform policy, of its best one, "
        "and of that after the fine-tuning that follows the round. Kept the budget: the share of evaluated "
        "policies; ddpg cannot overspend."
    )
    return ["## Round by round", about, markdown_table(headings, lines) if lines else "*Not measured yet.*"]


def round_cells(group: Sequence[Row]) -> list[str]:
    """A round in the table, as the mean over seeds."""

    def mean(name: str) -> str:
        values = [each[name] for each in group if name in each]
        return f"{statistics.fmean(values):.2%}" if values else ""

    kept = statistics.fmean(each["feasible"] / each["evaluations"] for each in group)
    costs = statistics.fmean(each["costs"]["macs"] for each in group)
    start = [str(group[0]["round"]), f"{group[0]['budgets']['macs']:.3f}", f"{costs:.3f}", f"{kept:.0%}"]
    return [*start, mean("uniform_score"), mean("score"), mean("tuned_score")]


def missing(rows: Rows) -> list[str]:
    """What nobody has measured; rows that differ in the seed only share a line."""
    seeds: dict[str, list[str]] = {}
    for spec in plan():
        if spec.name not in rows:
            seeds.setdefault(spec.name.rpartition("/")[0], []).append(spec.seed)
    listed = [f"* `{name}`: seeds {', '.join(found)}" for name, found in seeds.items()]
    return ["## Not measured yet", "\n".join(listed)] if listed else []


if __name__ == "__main__":
    run(main)

"""The page of the transfer results: tables of whatever rows there are."""

import statistics
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

if not __package__:  # started as a file: Python then looks in scripts/ and not in the folder above it
    sys.path[0] = str(Path(__file__).resolve().parents[1])

from agents.outcome import ACTOR
from amc.errors import UserError
from scripts.cli import run
from scripts.results_page import markdown_table, read_figures, where_and_when, write_page
from scripts.results_runner import Row, Rows
from scripts.search_page import spread
from scripts.transfer_rows import ADAPTED, GROUPS, HOLD_BUDGETS, LEVEL_BUDGETS, SCRATCH, plan

ARMS = (
    ("uniform", "one", "uniform"),
    ("one agent, best of its search", "one", "ddpg"),
    ("one agent, its actor alone", "one", ACTOR),
    ("five agents of N / 5", "fifth", "ddpg"),
    ("five agents of N", "full", "ddpg"),
)
"""Label, row, and policy of the row."""
NOT_YET = "*Not measured yet.*"


@dataclass(frozen=True)
class TransferPage:
    """Options of the page."""

    figures: Path = Path("docs/results/transfer.json")
    """What scripts/transfer_results.py has written; the page goes beside it."""


def main(options: TransferPage) -> None:
    """Write the page of the transfer results from the figures."""
    rows: Rows = read_figures(options.figures).get("rows", {})
    if not rows:
        raise UserError(f"{options.figures} has no rows yet: scripts/transfer_results.py makes them.")
    made = list(rows.values())
    parts = ["# Every budget, and networks never seen, measured", *overview(rows), *levels(made)]
    write_page(
        options.figures.with_suffix(".md"), [*parts, *transfers(made), *missing(rows), *where_and_when(made)]
    )
    print(options.figures.with_suffix(".md"))


def overview(rows: Rows) -> list[str]:
    """What the tables share."""
    hours = sum(row["seconds"] for row in rows.values()) / 3600
    return [
        "All scores are before any fine-tuning. The reward split decides which policy is the best of a "
        "search and therefore flatters it; the test split is only looked at afterwards. Budgets are "
        "fractions of the MACs. Channels go in the order of their weights, layers are refitted symmetrically "
        "and searches start from the uniform policy, as was the default when these rows were begun.",
        f"{len(rows)} of {len(plan())} rows are measured; those took {hours:.2f} hours. `python -m "
        "scripts.transfer_results` makes the missing ones; `python -m scripts.transfer_page` writes this "
        "page.",
    ]


def levels(rows: Sequence[Row]) -> list[str]:
    """One agent for every budget against one for each."""
    parts = ["## One training, every budget"]
    for network in dict.fromkeys(name for group in GROUPS.values() for name in group.levels):
        mine = [row for row in rows if row["part"] == "levels" and row["network"] == network]
        if mine:
            parts += [f"### {network}", *level_table(mine)]
    return parts if len(parts) > 1 else [*parts, NOT_YET]


def level_table(rows: Sequence[Row]) -> list[str]:
    """Test scores at the compared budgets, a line an arm."""
    seeds = sorted({row["seed"] for row in rows})
    evaluations = {row["how"]: row["evaluations"] for row in rows}
    headings = ["test split", "evaluations", *(f"macs={budget}" for budget in LEVEL_BUDGETS), "mean"]
    headings += ["mean, reward split"]
    lines = []
    for label, how, policy in ARMS:
        mine = [row for row in rows if row["how"] == how]
        if not mine:
            continue
        cells = [
            spread([row["levels"][f"macs={budget}"][policy]["test"] for row in mine])
            for budget in LEVEL_BUDGETS
        ]
        means = [spread([mean_score(row, policy, split) for row in mine]) for split in ("test", "reward")]
        lines.append([label, str(evaluations[how]) if policy != "uniform" else "1 each", *cells, *means])
    about = f"Seeds {', '.join(seeds)}; original {rows[0]['original_test']:.2%} on the test split."
    return [about, markdown_table(headings, lines), *gaps(rows)]


def mean_score(row: Row, policy: str, split: str) -> float:
    """Mean of a policy's scores over the compared budgets."""
    return statistics.fmean(row["levels"][f"macs={budget}"][policy][split] for budget in LEVEL_BUDGETS)


def gaps(rows: Sequence[Row]) -> list[str]:
    """Differences of the one agent's actor from the other arms, paired by seed."""
    by = {(row["how"], row["seed"]): row for row in rows}
    said = []
    for label, how, policy in (ARMS[0], *ARMS[3:]):
        both = [
            mean_score(by["one", seed], ACTOR, "test") - mean_score(by[how, seed], policy, "test")
            for seed in sorted({row["seed"] for row in rows})
            if ("one", seed) in by and (how, seed) in by
        ]
        if both:
            said.append(
                f"* The one agent's actor less {label}: {100 * statistics.fmean(both):+.2f} points on the "
                f"test split, mean over the budgets and {len(both)} seed{'s' if len(both) > 1 else ''}."
            )
    return ["\n".join(said)] if said else []


def transfers(rows: Sequence[Row]) -> list[str]:
    """A trained agent on networks that it has never seen, against training from scratch."""
    parts = ["## Networks never seen"]
    for name, group in GROUPS.items():
        mine = [row for row in rows if row["part"] == "transfer" and row["network"] in group.held_out]
        if mine:
            parts += [
                f"### {name}",
                f"Trained on {', '.join(group.training)} together, {group.training_evaluations} evaluations; "
                f"held out before that: {', '.join(group.held_out)}.",
                transfer_table(mine),
                verdicts(mine),
            ]
    return parts if len(parts) > 1 else [*parts, NOT_YET]


def transfer_table(rows: Sequence[Row]) -> str:
    """Both splits, a line an arm and a number of evaluations."""
    headings = ["network, budget", "agent", "evaluations", "seeds", "reward split", "test split"]
    lines = []
    for network in dict.fromkeys(row["network"] for row in rows):
        for budget in HOLD_BUDGETS:
            here = [row for row in rows if (row["network"], row["budget"]) == (network, budget)]
            if here:
                lines.append([f"{network}, {budget}", "uniform", "1", "", *both_splits(here[:1], "uniform")])
            for how, counts in (("adapted", ADAPTED), ("scratch", SCRATCH)):
                for count in counts:
                    mine = [row for row in here if row["how"] == how and str(row["evaluations"]) == count]
                    if mine:
                        cells = both_splits(mine, "best")
                        lines.append([f"{network}, {budget}", how, count, str(len(mine)), *cells])
    return markdown_table(headings, lines)


def both_splits(rows: Sequence[Row], policy: str) -> list[str]:
    """Mean and deviation of a policy's scores."""
    return [spread([row[policy][split] for row in rows]) for split in ("reward", "test")]


def verdicts(rows: Sequence[Row]) -> str:
    """Whether 10 evaluations of adaptation reach what 100 from scratch do, setting by setting."""
    said = []
    for network in dict.fromkeys(row["network"] for row in rows):
        for budget in HOLD_BUDGETS:
            here = [row for row in rows if (row["network"], row["budget"]) == (network, budget)]
            found = {
                (row["how"], str(row["evaluations"]), row["seed"]): row["best"]["reward"] for row in here
            }
            pairs = [
                found["adapted", "10", seed] - found["scratch", "100", seed]
                for seed in sorted({row["seed"] for row in here})
                if ("adapted", "10", seed) in found and ("scratch", "100", seed) in found
            ]
            if pairs:
                said.append(
                    f"* {network} at {budget}: adapted with 10 less from scratch with 100: "
                    f"{100 * statistics.fmean(pairs):+.2f} points on the reward split, {len(pairs)} "
                    f"seed{'s' if len(pairs) > 1 else ''}."
                )
    return "\n".join(said) if said else NOT_YET


def missing(rows: Rows) -> list[str]:
    """What has not been measured yet."""
    names = [spec.name for spec in plan() if spec.name not in rows]
    listed = "\n".join(f"* `{name}`" for name in names)
    return ["## Not measured yet", listed] if names else []


if __name__ == "__main__":
    run(main)

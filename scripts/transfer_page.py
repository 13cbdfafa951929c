"""The page of the transfer results: tables of whatever rows there are."""

import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

if not __package__:  # started as a file: Python then looks in scripts/ and not in the folder above it
    sys.path[0] = str(Path(__file__).resolve().parents[1])

from amc.errors import UserError
from amc.files import write_atomically
from scripts.cli import run
from scripts.results_page import AGAIN, of_before, read_figures, save_figures, where_and_when, write_page
from scripts.results_runner import Row, Rows
from scripts.transfer_plot import pareto_png
from scripts.transfer_rows import GROUPS, plan
from scripts.transfer_tables import level_rows, level_table, transfer_rows_of, transfer_table
from scripts.transfer_verdicts import RULE, level_verdicts, tables, transfer_verdicts

IMAGE = "transfer_levels.png"
NOT_YET = "*Not measured yet.*"
EARLIER = (
    ", with channels in the order of their weights (`--importance l2`), symmetric refits and searches from "
    "the uniform policy"
)
"""What else was different then."""


@dataclass(frozen=True)
class TransferPage:
    """Options of the page."""

    figures: Path = Path("docs/results/transfer.json")
    """What scripts/transfer_results.py has written; its tables are written again, and the page beside it."""
    images: Path = Path("docs/images")
    """Folder of the drawing."""


def main(options: TransferPage) -> None:
    """Write the page of the transfer results from the figures."""
    figures = read_figures(options.figures)
    rows: Rows = figures.get("rows", {})
    if not rows:
        raise UserError(f"{options.figures} has no rows yet: scripts/transfer_results.py makes them.")
    made = list(rows.values())
    if networks := level_rows(made):
        options.images.mkdir(parents=True, exist_ok=True)
        write_atomically(options.images / IMAGE, pareto_png(networks))
    image = os.path.relpath(options.images / IMAGE, options.figures.parent)
    parts = ["# Every budget, and networks never seen, measured", *overview(rows), *levels(made, image)]
    save_figures(options.figures, {**figures, "tables": tables(rows), "rows": figures["rows"]})
    parts += [*transfers(made), *missing(rows), *where_and_when(made)]
    write_page(options.figures.with_suffix(".md"), parts)
    print(options.figures.with_suffix(".md"))


def overview(rows: Rows) -> list[str]:
    """What the tables share."""
    hours = sum(row["seconds"] for row in rows.values()) / 3600
    return [
        "All scores are before any fine-tuning. The reward split decides which policy is the best of a "
        "search and therefore flatters it; the test split is only looked at afterwards. Budgets are "
        "fractions of the MACs. Rows are made with the defaults of their day. Today searches start from the "
        "balanced or the uniform policy, whichever scores better; an agent of several networks decides "
        "relative to the balanced one.",
        f"{len(rows)} of {len(plan())} rows are measured; those took {hours:.2f} hours. `python -m "
        "scripts.transfer_results` makes the missing ones "
        f"{AGAIN}; `python -m scripts.transfer_page` writes this "
        "page.",
        *of_before(rows.values(), EARLIER),
    ]


def levels(rows: Sequence[Row], image: str) -> list[str]:
    """One agent for every budget against one for each."""
    parts = ["## One training, every budget"]
    networks = level_rows(rows)
    if networks:
        parts += [
            "The actor of one training decides for every budget at once and without any further search; the "
            "other agents search for one budget each. Bands: the range over seeds.",
            f"![Score against the fraction of the MACs]({image})",
            RULE,
        ]
    for network, mine in networks.items():
        seeds = sorted({row["seed"] for row in mine})
        about = f"Seeds {', '.join(seeds)}; original {mine[0]['original_test']:.2%} on the test split."
        tables = [level_table(mine).markdown(), level_verdicts(mine).markdown()]
        parts += [f"### {network}", about, *tables]
    return parts if networks else [*parts, NOT_YET]


def transfers(rows: Sequence[Row]) -> list[str]:
    """A trained agent on networks that it has never seen, against training from scratch."""
    parts = ["## Networks never seen"]
    groups = transfer_rows_of(rows)
    for name, mine in groups.items():
        group, judged = GROUPS[name], transfer_verdicts(mine)
        parts += [
            f"### {name}",
            f"Trained on {', '.join(group.training)} together, {group.training_evaluations} evaluations; "
            f"held out before that: {', '.join(group.held_out)}.",
            transfer_table(mine).markdown(),
            "Asked: with 10 evaluations an adapted agent matches what one from scratch reaches with 100. The "
            "difference is the former less the latter; a tie is a match.",
            judged.markdown() if judged.lines else NOT_YET,
        ]
    return parts if groups else [*parts, NOT_YET]


def missing(rows: Rows) -> list[str]:
    """What has not been measured yet."""
    names = [spec.name for spec in plan() if spec.name not in rows]
    listed = "\n".join(f"* `{name}`" for name in names)
    return ["## Not measured yet", listed] if names else []


if __name__ == "__main__":
    run(main)

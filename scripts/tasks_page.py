"""The page of the tasks beyond classification: one section for each that has rows."""

import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

if not __package__:  # started as a file: Python then looks in scripts/ and not in the folder above it
    sys.path[0] = str(Path(__file__).resolve().parents[1])

from amc.errors import UserError
from scripts import codec_page, few_labels_page, mimic_page, retrieval_page
from scripts.cli import run
from scripts.results_page import read_figures, write_page
from scripts.tasks_rows import TASKS_FILE

Row = dict[str, Any]
Section = Callable[[list[Row]], list[str]]
"""From the rows of a section to the parts of the page: a heading of level two, then text and tables."""

SECTIONS: dict[str, Section] = {
    "detection": mimic_page.section,
    "retrieval": retrieval_page.section,
    "codecs": codec_page.section,
    "few_labels": few_labels_page.section,
}
"""Entry of the figures file to its section, in the order of the page."""


@dataclass(frozen=True)
class TasksPage:
    """Options of the page."""

    figures: Path = TASKS_FILE
    """What the runners of the tasks have written; the page goes beside it."""


def main(options: TasksPage) -> None:
    """Write the page of the tasks beyond classification from the figures."""
    figures = read_figures(options.figures)
    present = {name: section for name, section in SECTIONS.items() if figures.get(name)}
    if not present:
        raise UserError(f"{options.figures} has no rows yet: the runners of the tasks make them.")
    parts = [part for name, section in present.items() for part in section(figures[name])]
    page = options.figures.with_suffix(".md")
    write_page(page, ["# Beyond classification, measured", *parts])
    print(page)


if __name__ == "__main__":
    run(main)

"""The page of the tasks beyond classification: one section for each, whatever rows it has."""

import re
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

if not __package__:  # started as a file: Python then looks in scripts/ and not in the folder above it
    sys.path[0] = str(Path(__file__).resolve().parents[1])

from amc.errors import UserError
from scripts import (
    codec_page,
    codec_results,
    few_labels_page,
    few_labels_results,
    mimic_page,
    mimic_results,
    retrieval_page,
    retrieval_results,
    task_search_page,
    task_search_results,
)
from scripts.cli import run
from scripts.results_page import read_figures, save_figures, where_and_when, write_page
from scripts.results_runner import SpecLike
from scripts.tasks_rows import TASKS_FILE

Row = dict[str, Any]
TABLES = "tables"
"""Entry of the figures file that holds the page's tables."""
CELL = re.compile(r"([+-]?\d+(?:\.\d+)?)(%?)(?: ± (\d+(?:\.\d+)?(?:e[+-]?\d+)?))?")


@dataclass(frozen=True)
class Section:
    """A part of the page.

    Attributes:
        parts: from the section's rows to a heading of level two, then text and tables.
        plan: every row that is to be made.
    """

    parts: Callable[[list[Row]], list[str]]
    plan: Callable[[], Sequence[SpecLike]]


SECTIONS = {
    "detection": Section(mimic_page.section, mimic_results.plan),
    "retrieval": Section(retrieval_page.section, retrieval_results.plan),
    "codecs": Section(codec_page.section, codec_results.plan),
    "few_labels": Section(few_labels_page.section, few_labels_results.plan),
    "searches": Section(task_search_page.section, task_search_results.plan),
}
"""Entry of the figures file to its section, in the order of the page."""


@dataclass(frozen=True)
class TasksPage:
    """Options of the page."""

    figures: Path = TASKS_FILE
    """What the runners of the tasks have written; the page goes beside it, and its tables into it."""


def main(options: TasksPage) -> None:
    """Write the page of the tasks beyond classification from the figures, and its tables as objects."""
    figures = read_figures(options.figures)
    rows = {name: figures.get(name, []) for name in SECTIONS}
    if not any(rows.values()):
        raise UserError(f"{options.figures} has no rows yet: the runners of the tasks make them.")
    parts = [part for name, section in SECTIONS.items() for part in section.parts(rows[name])]
    page = options.figures.with_suffix(".md")
    made = [row for some in rows.values() for row in some]
    parts = ["# Beyond classification, measured", *parts]
    write_page(page, [*parts, *missing(rows), *where_and_when(made)])
    save_figures(options.figures, {**figures, TABLES: tables(parts)})
    print(page)


def missing(rows: Mapping[str, Sequence[Row]]) -> list[str]:
    """What nobody has measured; rows that differ in the seed only share a line."""
    seeds: dict[str, list[str]] = {}
    for name, section in SECTIONS.items():
        done = {row["name"] for row in rows[name]}
        for key in (spec.name for spec in section.plan() if spec.name not in done):
            front, _, last = key.rpartition("/")
            row, seed = (front, [last]) if last.isdigit() else (key, [])
            seeds.setdefault(f"{name}: `{row}`", []).extend(seed)
    listed = [f"* {row}{', seeds ' * bool(found)}{', '.join(found)}" for row, found in seeds.items()]
    return ["## Not measured yet", "\n".join(listed)] if listed else []


def tables(parts: Sequence[str]) -> list[dict[str, Any]]:
    """The tables among the parts of a page: where each stands, and its rows by column name."""
    found, places = [], {"## ": "", "### ": ""}
    for part in parts:
        level = part[: part.find(" ") + 1]
        if level in places:
            places |= {level: part.removeprefix(level), **({"### ": ""} if level == "## " else {})}
        elif part.startswith("| "):
            head, _, *lines = (line.strip("| ").split(" | ") for line in part.splitlines())
            width = len(head)
            rows = [[*cells, *[""] * (width - len(cells))] for cells in lines]
            objects = [dict(zip(head, map(value, cells), strict=True)) for cells in rows]
            found.append({"section": places["## "], "table": places["### "], "rows": objects})
    return found


def value(cell: str) -> Any:
    """What a cell says: a number, shares as such, with what follows a plus-minus; other text as it is."""
    cell = cell.strip()
    said = CELL.fullmatch(cell)
    if said is None:
        return cell or None
    number, percent, about = said.groups()
    scale = 100 if percent else 1
    if about is None:
        return round(float(number) / scale, 6) if percent or "." in number else int(number)
    return {"mean": round(float(number) / scale, 6), "plus_minus": round(float(about) / scale, 6)}


if __name__ == "__main__":
    run(main)

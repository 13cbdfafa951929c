"""Rows of `docs/results/tasks.json`: one list for each task, all in one file."""

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import torch

from scripts.results_page import read_figures, save_figures
from scripts.results_runner import Row, Rows, Runner, SpecLike

TASKS_FILE = Path("docs/results/tasks.json")
"""Figures of all tasks beyond classification; `scripts/tasks_page.py` writes the page beside it."""

Spec = TypeVar("Spec", bound=SpecLike)


@dataclass(frozen=True)
class TaskRunner(Runner[Spec]):
    """Makes the rows of one section, which is an entry of the file: a list of rows, each with its "name".

    Whatever follows from the rows is computed when the page is written, so `summary` is not asked.

    Attributes:
        section: the entry, a key of `scripts.tasks_page.SECTIONS`.
    """

    section: str = ""

    def rows(self) -> Rows:
        """The section's rows made so far, by name."""
        return {row["name"]: row for row in read_figures(self.out).get(self.section, [])}

    def save(self, spec: Spec, row: Row) -> None:
        """Write the file with one more row, beside what other processes have made meanwhile."""
        key = self.key(spec)
        rows = {**self.rows(), key: {"name": key, **row}}
        save_figures(self.out, {**read_figures(self.out), self.section: list(rows.values())})
        print(f"{spec.name}: {row['seconds']:.1f} s", file=sys.stderr)


def no_summary(rows: Rows) -> Row:
    """Nothing: see `TaskRunner`."""
    return {}


def place(device: str) -> torch.device:
    """Where networks are trained and scored: `auto` is a GPU where there is one."""
    return torch.device("cuda" if device != "cpu" and torch.cuda.is_available() else "cpu")

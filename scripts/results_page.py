"""Result pages: figures as JSON, and the same figures as a small Markdown page with how they were made."""

import json
import subprocess
from collections.abc import Iterable, Mapping, Sequence
from datetime import date
from pathlib import Path
from typing import Any

from agents.run_config import REFITS
from amc.files import write_atomically, write_json
from amc.targets import describe_machine

Table = list[dict[str, Any]]
"""One object a row, with the column names as keys."""
NOTHING = "*Not measured yet.*"
AGAIN = (
    "(with `--again` and another folder as `--runs` the measured ones too; what is finished in a folder is "
    "read, not repeated)"
)
"""Said behind the command that makes missing rows."""


def read_figures(path: Path) -> dict[str, Any]:
    """The figures gathered so far; empty where there are none."""
    if not path.exists():
        return {}
    figures = json.loads(path.read_text())
    return figures if isinstance(figures, dict) else {}


def save_figures(path: Path, figures: dict[str, Any]) -> None:
    """Write the figures with where they come from."""
    path.parent.mkdir(parents=True, exist_ok=True)
    write_json(path, figures)


def origin() -> dict[str, Any]:
    """Commit, date and machine of a measurement."""
    machine = describe_machine()
    return {
        "commit": commit(),
        "date": date.today().isoformat(),
        "machine": machine,
        "refits": REFITS,
    }


def is_of_before(row: Mapping[str, Any]) -> bool:
    """Whether networks of a row were refitted and re-normalized in another way than today."""
    origin = row.get("searched", row.get("origin", {}))
    return bool(origin.get("refits") != REFITS)


def labelled(name: str, rows: Iterable[Mapping[str, Any]]) -> str:
    """A name in a table, with a dagger where some of its rows are of before."""
    return f"{name} †" if any(map(is_of_before, rows)) else name


def of_before(rows: Iterable[Mapping[str, Any]], besides: str = "", marked: str = "") -> list[str]:
    """A sentence about rows whose networks were refitted and re-normalized in another way, if there are any.

    Args:
        rows: of any results.
        besides: in what else they differ from those made today.
        marked: says how tables mark them, where they do.
    """
    before = sum(map(is_of_before, rows))
    if not before:
        return []
    return [
        f"{before} rows{marked} were made before the statistics of batch norms were paired with the "
        "original's, or before layers were fitted to what a ReLU lets through ([tried.md](../tried.md))"
        f"{besides}. Un-tuned, where channels were pruned, they read lower than the same would today, by up "
        "to three points. They are to be compared among themselves."
    ]


def commit() -> str:
    """The commit that is checked out, with a plus where the tree differs from it."""
    try:
        head = subprocess.run(
            ["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=True
        )
        changed = subprocess.run(
            ["git", "status", "--porcelain", "--untracked-files=no"], capture_output=True
        )
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
    return head.stdout.strip() + ("+" if changed.stdout.strip() else "")


def markdown_table(headings: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    """A Markdown table; the first column is left-aligned, the others right-aligned."""
    marks = [":--", *(["--:"] * (len(headings) - 1))]
    lines = [headings, marks, *rows]
    return "\n".join("| " + " | ".join(str(cell) for cell in line) + " |" for line in lines)


def shown(table: Table) -> str:
    """Rows by column names as a Markdown table, or that there are none yet."""
    if not table:
        return NOTHING
    columns = list(dict.fromkeys(name for row in table for name in row))
    return markdown_table(columns, [[row.get(name, "") for name in columns] for row in table])


def write_page(path: Path, parts: Sequence[str]) -> None:
    """Write a Markdown page from its parts."""
    write_atomically(path, ("\n\n".join(parts) + "\n").encode())


def where_and_when(rows: Sequence[dict[str, Any]]) -> list[str]:
    """Machines, dates and commits of rows, as the last section of a page.

    A row that was taken from another file says in `searched` where its search ran.
    """
    found = sorted({place(row.get("searched", row["origin"])) for row in rows})
    return ["## Where and when", "\n".join(f"* {text}" for text in found)]


def place(origin: dict[str, Any]) -> str:
    """Where and when a row was measured, from what `origin` said."""
    machine = origin["machine"]
    return f"{machine.get('cpu')}, {machine.get('cores')} cores, {origin['date']}, commit {origin['commit']}"

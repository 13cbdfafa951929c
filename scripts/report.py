"""Write the report of a search, or compare several."""

import sys
from dataclasses import dataclass
from pathlib import Path

import tyro

if not __package__:  # started as a file: Python then looks in scripts/ and not in the folder above it
    sys.path[0] = str(Path(__file__).resolve().parents[1])

from agents.report import write_report
from scripts.cli import run as run_script


@dataclass(frozen=True)
class Report:
    """Options of the report."""

    runs: tyro.conf.Positional[tuple[Path, ...]]
    """Run directories, finished or not; several are compared on one page."""
    against: tuple[Path, ...] = ()
    """Other searches for the same thing, such as one with --algorithm random: their curves are drawn on the
    page of a single run."""
    out: Path | None = None
    """The HTML page to write; by default report/index.html in the run, comparison.html for several runs."""


def main(options: Report) -> None:
    """Write what a search found as one HTML page that needs no other file, with its drawings as PNG."""
    for path in write_report(options.runs, options.out, options.against):
        print(path)


if __name__ == "__main__":
    run_script(main)

"""Figures files that are made row by row: any moment to cut, any process to go on, no row twice."""

import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any, Generic, Protocol, TypeVar

from amc.errors import UserError
from scripts.results_page import origin, read_figures, save_figures

Row = dict[str, Any]
Rows = dict[str, Row]


@dataclass(frozen=True)
class RowOptions:
    """Options that all runners share."""

    list: bool = False
    """Only say which rows there are, which are done, and how long those took."""
    again: bool = False
    """Make rows although the output has them already; each is replaced when the new one is finished. What is
    finished in a run directory is read and not repeated: give another folder for new runs."""


class SpecLike(Protocol):
    """What the runner asks of the description of a row."""

    @property
    def name(self) -> str:
        """The row's name, unique in its plan."""

    def to_json(self) -> Row:
        """The fields that mean something."""


Spec = TypeVar("Spec", bound=SpecLike)


@dataclass(frozen=True)
class Runner(Generic[Spec]):
    """Makes rows and keeps them.

    Attributes:
        out: figures file; the rows are under "rows", by key.
        key: a row's key, which may say more than its name: the machine, say.
        make: the figures of a row; its own "seconds" count where earlier, cut calls make them more.
        about: what a row says of itself besides its fields.
        summary: all rows to the other entries of the figures file.
        prepare: missing rows to those that can be made here; refuses what no row could use.
    """

    out: Path
    key: Callable[[Spec], str]
    make: Callable[[Spec], Row]
    about: Callable[[Spec], Row]
    summary: Callable[[Rows], dict[str, Any]]
    prepare: Callable[[list[Spec]], list[Spec]]

    def rows(self) -> Rows:
        """The rows made so far, by whichever process."""
        rows: Rows = read_figures(self.out).get("rows", {})
        return rows

    def chosen(self, specs: Sequence[Spec], pattern: str) -> list[Spec]:
        """The rows whose name or key matches a shell pattern.

        Raises:
            UserError: there are none.
        """
        found = [
            spec for spec in specs if any(fnmatchcase(text, pattern) for text in (spec.name, self.key(spec)))
        ]
        if not found:
            raise UserError(f"No row matches --only '{pattern}'; --list shows them all.")
        return found

    def run(self, specs: Sequence[Spec], options: RowOptions) -> None:
        """Make the missing ones of these rows, or all of them again, or only say which are missing.

        Raises:
            UserError: a row could not be made; the others were.
        """
        if options.list:
            self.show(specs)
            return
        done: Rows = {} if options.again else self.rows()
        wanted = self.prepare([spec for spec in specs if self.key(spec) not in done])
        failed = [spec.name for spec in wanted if not self.add(spec, options.again)]
        if failed:
            raise UserError(f"{len(failed)} of {len(wanted)} rows could not be made: {', '.join(failed)}.")

    def show(self, specs: Sequence[Spec]) -> None:
        """Print every row's key, whether it is done, and the seconds that it took."""
        rows = self.rows()
        for spec in specs:
            key = self.key(spec)
            print(
                f"done    {rows[key]['seconds']:8.1f} s  {key}" if key in rows else f"missing {'':10}  {key}"
            )

    def add(self, spec: Spec, again: bool = False) -> bool:
        """Make one row and write the file; False, with a sentence, where the row cannot be made here."""
        if not again and self.key(spec) in self.rows():
            return True  # another process was faster
        print(f"{spec.name} ...", file=sys.stderr)
        started = time.perf_counter()
        try:
            found = self.make(spec)
        except UserError as error:
            print(f"{spec.name}: {error}", file=sys.stderr)
            return False
        seconds = max(time.perf_counter() - started, found.get("seconds", 0.0))
        about = {**spec.to_json(), **self.about(spec)}
        self.save(spec, {**about, **found, "seconds": round(seconds, 1), "origin": origin()})
        return True

    def save(self, spec: Spec, row: Row) -> None:
        """Write the file with one more row, beside those that other processes have made meanwhile."""
        rows = {**self.rows(), self.key(spec): row}
        save_figures(self.out, {**self.summary(rows), "rows": rows})
        print(f"{spec.name}: {row['seconds']:.1f} s", file=sys.stderr)

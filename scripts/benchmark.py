"""Latency of exported files beside the original's, over several fresh measuring processes."""

import functools
import os
import statistics
import sys
from dataclasses import asdict, dataclass
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

if not __package__:  # started as a file: Python then looks in scripts/ and not in the folder above it
    sys.path[0] = str(Path(__file__).resolve().parents[1])

from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table
from tyro.conf import Positional

from agents.export import ORIGINAL_FILE
from amc.data import load_data
from amc.errors import UserError
from amc.export.model import FLOAT_FILE, INT8_FILE
from amc.files import write_json
from amc.targets import Target, Timing, describe_machine, get_target
from amc.targets.repeats import Summary, measure_in_fresh_processes, summarize
from amc.tasks import Task, load_task
from scripts.cli import console, run
from scripts.evaluate import InTarget
from scripts.low_bits import low_bits_note, refuse_packages, weight_bits_of
from scripts.progress import print_table


@dataclass(frozen=True)
class Benchmark:
    """Options of the measurement."""

    files: Positional[tuple[Path, ...]]
    """Exported original, then the files to compare with it; or one export folder that holds them all."""
    target: str = "openvino"
    """Runtime: a target's name, or package.module:factory."""
    processes: int = 12
    """Fresh measuring processes, one after the other; each measures all files, interleaved."""
    data: str | None = None
    """Also score every file in the runtime on the test images of: digits, cifar10, hf:NAME (extra hub), a
    folder with train/<class>/ and val/<class>/, or package.module:factory; with boxes: shapes, voc."""
    data_root: Path = Path("data")
    """Folder that holds cifar-10-batches-py."""
    side: int | None = None
    """Height and width in pixels for data that can be resized: digits (32 by default), folders (224)."""
    task: str = "classification"
    """What the score is: classification (accuracy), detection (mAP), retrieval (mAP), or
    package.module:factory."""
    out: Path | None = None
    """Also write the figures, with those of every process, to this JSON file."""
    force: bool = False
    """Replace an earlier --out."""


@dataclass(frozen=True)
class Row:
    """What was found out about one file.

    Attributes:
        file: the file.
        score: on the test images, in [0, 1]; None where there are none.
        timings: one a process.
        summary: of the timings, relative to the original's; None for the original itself.
    """

    file: Path
    score: float | None
    timings: tuple[Timing, ...]
    summary: Summary | None

    @property
    def latencies(self) -> list[float]:
        """The smallest cost of one inference in each process, in the target's unit."""
        return [timing.best for timing in self.timings]

    def to_json(self) -> dict[str, Any]:
        """The fields as JSON types; of the timings the figures of each process, without its rounds."""
        return {
            "file": str(self.file),
            "bytes": self.file.stat().st_size,
            "score": self.score,
            "latency": statistics.median(self.latencies),
            **({} if self.summary is None else asdict(self.summary)),
            "processes": [{"best": t.best, "ratio": t.ratio, "reliable": t.reliable} for t in self.timings],
        }


def main(options: Benchmark) -> None:
    """Latency of exported files beside the original's, over several fresh measuring processes."""
    check(options)
    with get_target(options.target) as target:
        files = files_to_measure(options.files, target)
        version = target.runtime_version
        task = load_scored(options)
        rows = benchmark(options, target, files, task)
    print_table(table_of(rows, target.unit, task))
    print(
        f"{options.target} {version}, batch 1 on one core; medians, min..max and the ratio's "
        f"coefficient of variation over {options.processes} fresh processes{_images(task)}"
    )
    note = low_bits_note(bits for file in files for bits in weight_bits_of(file))
    if note is not None:
        print(note)
    if options.out is not None:
        about = {"target": options.target, "runtime": version, "unit": target.unit}
        found = {
            **about,
            **circumstances(options, task),
            "note": note,
            "rows": [row.to_json() for row in rows],
        }
        write_json(options.out, found)


def check(options: Benchmark) -> None:
    """Refuse before any work what cannot be measured, or could not be written after it."""
    if options.processes < 2:
        raise UserError(f"--processes {options.processes} shows no spread: it takes at least 2.")
    out = options.out
    if out is not None and not out.parent.is_dir():
        raise UserError(f"There is no folder {out.parent} to write {out.name} to.")
    if out is not None and (out.is_dir() or (out.exists() and not options.force)):
        raise UserError(f"{out} exists: pass --force to replace a file, or another --out.")


def files_to_measure(given: tuple[Path, ...], target: Target) -> list[Path]:
    """The original and its candidates.

    Raises:
        UserError: one is missing, there is nothing to compare, or the target reads other files.
    """
    refuse_packages(given)
    files = _exported(given[0], target.file_suffix) if len(given) == 1 and given[0].is_dir() else list(given)
    if len(files) < 2:
        raise UserError("Give the original and at least one file to compare it with, or an export folder.")
    for file in files:
        if not file.is_file():
            raise UserError(f"There is no model file {file}.")
        if file.suffix != target.file_suffix:
            raise UserError(f"{target.name} reads {target.file_suffix} files, and {file} is none.")
    return files


def _exported(folder: Path, suffix: str) -> list[Path]:
    original, *models = (
        (folder / name).with_suffix(suffix) for name in (ORIGINAL_FILE, FLOAT_FILE, INT8_FILE)
    )
    found = [model for model in models if model.is_file()]
    if not original.is_file() or not found:
        raise UserError(
            f"{folder} is no complete export: it must hold {original.name} and one of "
            f"{' and '.join(model.name for model in models)}; or name the files, the original first."
        )
    return [original, *found]


def load_scored(options: Benchmark) -> Task | None:
    """The task whose test images score the files; None where only the latency is asked for."""
    if options.data is None:
        return None
    return load_task(options.task, load_data(options.data, options.data_root, options.side))


def benchmark(options: Benchmark, target: Target, files: list[Path], task: Task | None) -> list[Row]:
    """Score the files if there is a task, then measure them in fresh processes; shows how far it is."""
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console()) as progress:
        scores: list[float | None] = [None for _ in files]
        if task is not None:
            scoring = progress.track(files, description="scoring")
            scores = [task.score(InTarget(target, file), "test") for file in scoring]
        target.close()  # its process would share the caches with those that measure
        create = functools.partial(get_target, options.target)
        measuring = measure_in_fresh_processes(create, files, options.processes)
        runs = list(progress.track(measuring, total=options.processes, description="measuring"))
    original, *others = zip(*runs, strict=True)
    summaries = [None, *(summarize(timings, original) for timings in others)]
    return [Row(*fields) for fields in zip(files, scores, [original, *others], summaries, strict=True)]


def circumstances(options: Benchmark, task: Task | None) -> dict[str, Any]:
    """When, where and on which images; what a reader of the figures asks next."""
    date = datetime.now(timezone.utc).isoformat(timespec="seconds")
    found: dict[str, Any] = {"date": date, "machine": describe_machine(), "data": options.data}
    if task is not None:
        found |= {"split": "test", "images": len(task.data.split("test")), "score": task.score_name}
    return found


def table_of(rows: list[Row], unit: str, task: Task | None) -> Table:
    """The rows as a person reads them."""
    table = Table()
    table.add_column("file", overflow="fold")
    scored = [] if task is None else [f"test {task.score_name}"]
    for heading in (*scored, unit, "min..max", "ratio", "CV", "speed-up"):
        table.add_column(heading, justify="right", no_wrap=True)
    table.add_column("")
    for row, name in zip(rows, _short_names([row.file for row in rows]), strict=True):
        score = [] if row.score is None else [f"{row.score:.2%}"]
        low, middle, high = min(row.latencies), statistics.median(row.latencies), max(row.latencies)
        table.add_row(name, *score, f"{middle:.3f}", f"{low:.3f}..{high:.3f}", *_comparison(row))
    return table


def _short_names(files: list[Path]) -> list[str]:
    """Paths without the folders that all files share; names alone if they lie in one folder."""
    paths = [file.absolute() for file in files]
    shared = os.path.commonpath([path.parent for path in paths])
    return [str(path.relative_to(shared)) for path in paths]


def _comparison(row: Row) -> list[str]:
    """Ratio, its coefficient of variation, speed-up and remarks."""
    unreliable = sum(not timing.reliable for timing in row.timings)
    shaky = [f"unreliable in {unreliable} of {len(row.timings)}: busy machine"] if unreliable else []
    found = row.summary
    if found is None:
        return ["", "", "", "; ".join(["original", *shaky])]
    figures = [f"{found.ratio:.3f}", f"{found.ratio_cv:.1%}", f"{1 / found.ratio:.2f}x"]
    return [*figures, "; ".join([found.verdict, *shaky])]


def _images(task: Task | None) -> str:
    return "" if task is None else f"; {len(task.data.split('test'))} test images of {task.data.name}"


if __name__ == "__main__":
    run(main)

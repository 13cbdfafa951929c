"""Accuracy and latency of an exported file in the runtime that will run it."""

import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

if not __package__:  # started as a file: Python then looks in scripts/ and not in the folder above it
    sys.path[0] = str(Path(__file__).resolve().parents[1])

import torch
from rich.table import Table
from torch import Tensor, nn

from amc.data import load_data
from amc.errors import UserError
from amc.files import write_json
from amc.targets import Target, Timing, compare, describe_machine, get_target
from amc.tasks import Task, load_task, score_and_further
from scripts.cli import run
from scripts.low_bits import low_bits_note, refuse_packages, weight_bits_of
from scripts.progress import print_table


@dataclass(frozen=True)
class Evaluate:
    """Options of the evaluation."""

    file: Path
    """Exported model to evaluate, in the format that the target reads."""
    reference: Path | None = None
    """Exported original: evaluated as well, and timed in the same rounds."""
    data: str = "digits"
    """Images: digits, cifar10, hf:NAME (the datasets library, extra hub), a folder with train/<class>/ and
    val/<class>/, or package.module:factory; with boxes: shapes, voc."""
    data_root: Path = Path("data")
    """Folder that holds cifar-10-batches-py."""
    side: int | None = None
    """Height and width in pixels for data that can be resized: digits (32 by default), folders (224)."""
    split: Literal["train", "reward", "test"] = "test"
    """Images that are scored: test, reward (what a search is judged by) or train."""
    task: str = "classification"
    """What the score is: classification (accuracy), detection (mAP), retrieval (mAP), or
    package.module:factory."""
    target: str = "openvino"
    """Runtime: a target's name, or package.module:factory."""
    latency: bool = True
    """Measure the latency of one image on one core; --no-latency only scores."""
    json: Path | None = None
    """Also write the figures to this file, which is replaced."""


@dataclass(frozen=True)
class Row:
    """What was found out about one file.

    Attributes:
        name: "original" or "compressed".
        file: the file.
        score: on the chosen split, in [0, 1].
        size: bytes.
        timing: latency at batch 1, relative to the first row's, or None.
        verdict: "faster", "slower" or "no difference" than the original, or None where nothing was compared.
        further: what else the task measures on the split, by name.
    """

    name: str
    file: Path
    score: float
    size: int
    timing: Timing | None
    verdict: str | None
    further: Mapping[str, float] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        """The fields as JSON types."""
        timing = None if self.timing is None else self.timing.to_json()
        found = {"name": self.name, "file": str(self.file), "score": self.score, "bytes": self.size}
        found |= {"further": dict(self.further)} if self.further else {}
        return {**found, "latency": timing, "verdict": self.verdict}


class InTarget(nn.Module):
    """An exported file as a module, so that any task can score it.

    Args:
        target: runs the file.
        file: the file.
    """

    def __init__(self, target: Target, file: Path):
        super().__init__()
        self.target, self.file = target, file

    def forward(self, x: Tensor) -> Tensor:
        """The file's first output for images [N, C, H, W]."""
        return torch.from_numpy(self.target.run(self.file, x.cpu().numpy()))


def main(options: Evaluate) -> None:
    """Accuracy and latency of an exported file in the runtime that will run it."""
    check(options)
    task = load_task(options.task, load_data(options.data, options.data_root, options.side))
    with get_target(options.target) as target:
        rows = evaluate(options, task, target)
        machine, version, unit = describe_machine(), target.runtime_version, target.unit
    print_table(table_of(rows, options.split, task.score_name, unit))
    images = len(task.data.split(options.split))
    print(
        f"{options.target} {version}, batch 1 on one core; {images} {options.split} images of {options.data}"
    )
    note = low_bits_note(weight_bits_of(options.file))
    if note is not None:
        print(note)
    if options.json is not None:
        source = {"target": options.target, "runtime": version, "unit": unit, "machine": machine}
        split = {"data": options.data, "split": options.split, "images": images, "score": task.score_name}
        write_json(options.json, {**source, **split, "note": note, "rows": [row.to_json() for row in rows]})


def check(options: Evaluate) -> None:
    """Refuse before any work what is missing or could not be written after it."""
    files = [file for file in (options.file, options.reference) if file is not None]
    refuse_packages(files)
    for file in files:
        if not file.is_file():
            raise UserError(f"There is no model file {file}.")
    if options.json is not None and not options.json.parent.is_dir():
        raise UserError(f"There is no folder {options.json.parent} to write {options.json.name} to.")


def evaluate(options: Evaluate, task: Task, target: Target) -> list[Row]:
    """Score and time the file, after the reference if there is one."""
    original = [] if options.reference is None else [("original", options.reference)]
    named = [*original, ("compressed" if original else "file", options.file)]
    scores = [score_and_further(task, InTarget(target, file), options.split) for _, file in named]
    timings = target.measure([file for _, file in named]) if options.latency else []
    rows = []
    for index, ((name, file), (score, further)) in enumerate(zip(named, scores, strict=True)):
        timing = timings[index] if timings else None
        verdict = compare(timings[index], timings[0]) if timings and index else None
        rows.append(Row(name, file, score, file.stat().st_size, timing, verdict, further))
    return rows


def table_of(rows: list[Row], split: str, score_name: str, unit: str) -> Table:
    """The rows as a person reads them."""
    table, further = Table("", "file"), list(rows[0].further)
    scores = [f"{split} {name}" for name in (score_name, *further)]
    for heading in (*scores, "kB", unit, "speed-up", ""):
        table.add_column(heading, justify="right")
    for row in rows:
        table.add_row(
            row.name,
            row.file.name,
            f"{row.score:.2%}",
            *(f"{row.further[name]:.2%}" for name in further),
            f"{row.size / 1000:,.1f}",
            "" if row.timing is None else f"{row.timing.best:.3f}",
            "" if row.timing is None or row.verdict is None else f"{1 / row.timing.ratio:.2f}x",
            _remark(row),
        )
    return table


def _remark(row: Row) -> str:
    shaky = row.timing is not None and not row.timing.reliable
    return "; ".join(
        [*([row.verdict] if row.verdict else []), *(["unreliable: busy machine"] if shaky else [])]
    )


if __name__ == "__main__":
    run(main)

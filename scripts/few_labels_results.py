"""Regenerate the figures of training on few labels, row by row; may be cut at any moment and repeated."""

import sys
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

if not __package__:  # started as a file: Python then looks in scripts/ and not in the folder above it
    sys.path[0] = str(Path(__file__).resolve().parents[1])

from agents.report_confusion import has_few_labels, read_few_labels
from amc.data import load_data
from amc.errors import UserError
from scripts.cli import run as run_script
from scripts.few_labels_tuning import ARMS, Arm, FewLabelsOptions, Place, tune_with_few_labels
from scripts.results_runner import RowOptions
from scripts.tasks_rows import TASKS_FILE, TaskRunner, no_summary

SECTION = "few_labels"
SEEDS = (0, 1, 2)
DATA, MODEL, WIDTH = "cifar10", "resnet20", 0.5
LABELS, UNLABELED = 1000, 9000


@dataclass(frozen=True)
class FewLabelsResults(RowOptions):
    """Options; rows that the output already has are made again only with --again."""

    only: str = "*"
    """Make the rows whose names match this shell pattern, as in 'saas/*'."""
    out: Path = TASKS_FILE
    """Figures file; every finished row is written at once."""
    runs: Path = Path("runs/few_labels")
    """Where weights and unfinished trainings are kept."""
    data_root: Path = Path("data")
    """Folder that holds cifar-10-batches-py."""
    threads: int = 0
    """CPU threads; 0 leaves the choice to PyTorch."""


@dataclass(frozen=True)
class Spec:
    """One row: one arm with one seed.

    Attributes:
        arm: where the labels of the unlabeled images come from.
        seed: of the labelled images, the weights and all else; the arms of one seed share these.
    """

    arm: Arm
    seed: int

    @property
    def name(self) -> str:
        """The row's key."""
        return f"{self.arm}/{self.seed}"

    def to_json(self) -> dict[str, Any]:
        """The fields."""
        return asdict(self)


def main(options: FewLabelsResults) -> None:
    """Make the missing rows of the results on few labels, in order; may be cut anywhere and repeated."""
    runner = TaskRunner[Spec](
        options.out,
        key=lambda spec: spec.name,
        make=lambda spec: row(options, spec),
        about=lambda spec: {"command": command(spec)},
        summary=no_summary,
        prepare=lambda missing: prepare(options, missing),
        section=SECTION,
    )
    runner.run(runner.chosen(plan(), options.only), options)


def plan() -> list[Spec]:
    """Every row; the seeds in the outer loop, so that the arms of a seed are complete early."""
    return [Spec(arm, seed) for seed in SEEDS for arm in ARMS]


def command(spec: Spec) -> str:
    """The command that does what a row does."""
    return (
        f"python -m scripts.fine_tune --labels {LABELS} --unlabeled {UNLABELED} --arm {spec.arm} "
        f"--data {DATA} --model {MODEL} --width {WIDTH} --seed {spec.seed}"
    )


def prepare(options: FewLabelsResults, missing: list[Spec]) -> list[Spec]:
    """Refuse before any work what some row would only notice later."""
    if options.threads < 0:
        raise UserError(f"--threads must be 0 or more, not {options.threads}.")
    if missing:
        load_data(DATA, options.data_root)
    return missing


def row(options: FewLabelsResults, spec: Spec) -> dict[str, Any]:
    """The figures of one training: made, continued or taken as they are."""
    folder = options.runs / spec.name.replace("/", "-")
    found = read_few_labels(folder) if has_few_labels(folder) else trained(options, spec, folder)
    taken = ("test_accuracy", "label_accuracy", "label_source", "macs", "parameters", "cpu_seconds")
    return {
        "data": DATA,
        "network": f"{MODEL}, {WIDTH:g} of its width",
        "labels": found["labeled"],
        "unlabeled": found["unlabeled"],
        **{name: found[name] for name in taken},
    }


def trained(options: FewLabelsResults, spec: Spec, folder: Path) -> dict[str, Any]:
    """Train, or go on where that was cut."""
    few = FewLabelsOptions(
        labels=LABELS,
        unlabeled=UNLABELED,
        arm=spec.arm,
        model=MODEL,
        width=WIDTH,
        data=DATA,
        data_root=options.data_root,
        threads=options.threads,
        device="cpu",
    )
    unfinished = any(path.exists() for path in Place(folder).checkpoints)
    return tune_with_few_labels(few, Place(folder, spec.seed, resume=unfinished))


if __name__ == "__main__":
    run_script(main)

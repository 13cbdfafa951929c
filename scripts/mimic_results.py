"""Regenerate the figures of quantization mimic, row by row; may be cut at any moment and repeated."""

import sys
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal

if not __package__:  # started as a file: Python then looks in scripts/ and not in the folder above it
    sys.path[0] = str(Path(__file__).resolve().parents[1])

import torch
from torch import nn

from amc.data import load_data
from amc.data.boxes import BoxAugmentation, DetectionData
from amc.data.images import ImageData
from amc.detection.features import changed_features
from amc.errors import UserError
from amc.models import build_model
from amc.network import trace
from amc.recovery.mimic import (
    MODES,
    Mimic,
    matching_share,
    mimicking,
    prepare_teacher,
    quantize_features,
    with_adapter,
)
from amc.tasks import DetectionTask
from amc.training import Loss, Recipe
from scripts.cli import run as run_script
from scripts.results_runner import RowOptions
from scripts.results_training import train_once
from scripts.tasks_rows import TASKS_FILE, TaskRunner, no_summary, place

SECTION = "detection"
SEEDS = tuple(range(5))
TEACHER_WIDTH, STUDENT_WIDTH = 1.0, 0.125


@dataclass(frozen=True)
class Setting:
    """How the networks for one data set are trained; chosen before the first figure was seen.

    Attributes:
        recipe: of teacher and students alike.
        upside_down: whether images are also mirrored top to bottom.
    """

    recipe: Recipe
    upside_down: bool


SETTINGS = {
    "shapes": Setting(Recipe(epochs=40, batch_size=16, lr=0.05, weight_decay=1e-4), upside_down=False),
    "bccd": Setting(Recipe(epochs=80, batch_size=8, lr=0.05, weight_decay=1e-4), upside_down=True),
}


@dataclass(frozen=True)
class MimicResults(RowOptions):
    """Options; rows that the output already has are made again only with --again."""

    only: str = "*"
    """Make the rows whose names match this shell pattern, as in 'student/bccd/*'."""
    out: Path = TASKS_FILE
    """Figures file; every finished row is written at once."""
    runs: Path = Path("runs/mimic")
    """Where weights and unfinished trainings are kept."""
    data_root: Path = Path("data")
    """Folder with the blood cells in VOC's layout."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """Where networks are trained and scored."""
    threads: int = 1
    """CPU threads."""

    def weights(self, spec: "Spec") -> Path:
        """The file for a network's weights."""
        return self.runs / (spec.name.replace("/", "-") + ".safetensors")


@dataclass(frozen=True)
class Spec:
    """One row: a trained network.

    Attributes:
        part: "teacher" or "student".
        data: a key of `SETTINGS`.
        mode: how a student learns.
        seed: of its weights, its batches and their augmentation.
    """

    part: str
    data: str
    mode: str = ""
    seed: int = 0

    @property
    def name(self) -> str:
        """The row's key."""
        return "/".join((self.part, self.data, *([self.mode, str(self.seed)] if self.mode else [])))

    def to_json(self) -> dict[str, Any]:
        """The fields."""
        return asdict(self)

    def recipe(self) -> Recipe:
        """How it is trained."""
        return replace(SETTINGS[self.data].recipe, seed=self.seed)


def main(options: MimicResults) -> None:
    """Make the missing rows of the mimic results, in order; may be cut anywhere and repeated."""
    runner = TaskRunner[Spec](
        options.out,
        key=lambda spec: spec.name,
        make=lambda spec: (
            teacher_row(options, spec) if spec.part == "teacher" else student_row(options, spec)
        ),
        about=lambda spec: {"command": f"python -m scripts.mimic_results --only '{spec.name}'"},
        summary=no_summary,
        prepare=lambda missing: prepare(options, missing),
        section=SECTION,
    )
    runner.run(runner.chosen(plan(), options.only), options)


def plan() -> list[Spec]:
    """Every row; the seeds in the outer loop, so that pairs are complete early."""
    students = [Spec("student", data, mode, seed) for data in SETTINGS for seed in SEEDS for mode in MODES]
    return [*(Spec("teacher", data) for data in SETTINGS), *students]


def prepare(options: MimicResults, missing: list[Spec]) -> list[Spec]:
    """Refuse before any work what some row would only notice later; sets the threads."""
    if options.threads < 1:
        raise UserError(f"--threads must be at least 1, not {options.threads}.")
    if options.device == "cuda" and not torch.cuda.is_available():
        raise UserError("PyTorch finds no GPU here: use --device auto or cpu.")
    for data in sorted({spec.data for spec in missing}):
        DetectionTask(load(options, data))
    options.runs.mkdir(parents=True, exist_ok=True)
    torch.set_num_threads(options.threads)
    return missing


def load(options: MimicResults, name: str) -> DetectionData:
    """A data set with the augmentation of its setting."""
    data = load_data("voc" if name == "bccd" else name, options.data_root)
    assert isinstance(data, DetectionData)
    return replace(data, augmentation=BoxAugmentation(flip=True, upside_down=SETTINGS[name].upside_down))


def teacher_row(options: MimicResults, spec: Spec) -> dict[str, Any]:
    """The teacher's scores, with its features as they are and quantized."""
    data = load(options, spec.data)
    task = DetectionTask(data)
    model = teacher(options, spec, task)
    teaching = prepare_teacher(model, data, Mimic().bits)
    found = figures(model, task, TEACHER_WIDTH)
    with changed_features(model, lambda features: quantize_features(features, teaching.stride)):
        quantized = task.precision(model, "test")
    return {**found, "mAP_quantized": quantized.coco, "AP50_quantized": quantized.half}


def teacher(options: MimicResults, spec: Spec, task: DetectionTask) -> nn.Module:
    """The trained teacher of a data set; trained here if nobody has done so."""
    model = build(spec.seed, task, TEACHER_WIDTH).to(place(options.device))
    train(options, Spec("teacher", spec.data), model, task.data, task.loss)
    return model


def student_row(options: MimicResults, spec: Spec) -> dict[str, Any]:
    """A student's scores, and how many of its quantized features are the teacher's."""
    data = load(options, spec.data)
    task, mimic = DetectionTask(data), Mimic(spec.mode)  # type: ignore[arg-type]
    teaching = prepare_teacher(teacher(options, Spec("teacher", spec.data), task), data, mimic.bits)
    fresh = build(spec.seed, task, STUDENT_WIDTH).to(place(options.device))
    student = with_adapter(fresh, teaching, task.example_input())
    last = train(options, spec, student, task.data, mimicking(teaching, mimic))
    found = {**figures(student.student, task, STUDENT_WIDTH), "loss": last}
    if spec.mode == "alone":
        return found  # its adapter has learned nothing
    return {**found, "matching": matching_share(student, teaching, data, "test")}


def train(options: MimicResults, spec: Spec, model: nn.Module, data: ImageData, loss: Loss) -> float | None:
    """Train the network of a row; the last epoch's loss."""
    return train_once(spec.name, options.weights(spec), model, data, spec.recipe(), loss)


def build(seed: int, task: DetectionTask, width: float) -> nn.Module:
    """A detector with fresh weights; the arms of one seed start from the same ones."""
    torch.manual_seed(seed)
    return build_model("detector", task.data.classes, task.data.shape[0], width)


def figures(model: nn.Module, task: DetectionTask, width: float) -> dict[str, Any]:
    """Size and scores of a detector; the test split decides nothing."""
    reward, test = (task.precision(model, split) for split in ("reward", "test"))
    network = trace(model, task.example_input())
    return {
        "width": width,
        "macs": network.macs,
        "parameters": sum(p.numel() for p in model.parameters()),
        "mAP": test.coco,
        "AP50": test.half,
        "mAP_reward": reward.coco,
        "AP50_reward": reward.half,
    }


if __name__ == "__main__":
    run_script(main)

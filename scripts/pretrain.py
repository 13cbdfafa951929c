"""Train a network and save its weights."""

import os
import sys
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

if not __package__:  # started as a file: Python then looks in scripts/ and not in the folder above it
    sys.path[0] = str(Path(__file__).resolve().parents[1])

import torch
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn
from torch import Tensor, nn

from amc.data import load_data
from amc.errors import UserError
from amc.models import build_model, load_weights, save_weights
from amc.models.hub_weights import load_library_weights
from amc.models.weights import Store
from amc.precision import Precision, computes_in_bfloat16, loss_in_bfloat16
from amc.quantization.training_memory import SavedActivations, TrainingMemory, training_memory
from amc.scattering import expansion_notes
from amc.tasks import ClassificationTask, ModelCheck, Task, load_task
from amc.training import Epoch, Loss, Recipe, cross_entropy, device_of, fit
from amc.training_checkpoint import load_checkpoint, save_checkpoint
from scripts.cli import console, run

# Images up to this side skip the early strides that networks for large images have.
SMALL_SIDE = 64
# What may differ between an interrupted training and the one that continues it.
FREE_TO_CHANGE = {"data_root", "threads", "device", "out", "force", "store", "resume"}


@dataclass(frozen=True)
class Pretrain:
    """Options of the training."""

    model: str = "digitsnet"
    """Network to train: a name (a wrong one is answered with the list), timm:NAME or torchvision:NAME (extra
    hub; from the weights that the library publishes), or package.module:factory."""
    data: str = "digits"
    """Images: digits, cifar10, hf:NAME (the datasets library, extra hub), voc-crops (objects of data in VOC's
    layout), a folder with train/<class>/ and val/<class>/, or package.module:factory; with
    boxes: shapes, voc."""
    task: str = "classification"
    """Loss and score: classification, detection, retrieval (networks named as in digitsnet-pqn24), or
    package.module:factory."""
    data_root: Path = Path("data")
    """Folder that holds cifar-10-batches-py, or data in VOC's layout."""
    side: int | None = None
    """Height and width in pixels for data that can be resized: digits (32 by default), folders (224),
    shapes (64), voc-crops (64), voc (the width, 128)."""
    epochs: int = 16
    """Passes over the training images."""
    batch_size: int = 64
    """Images a step."""
    lr: float = 0.1
    """Peak learning rate, reached after 15 % of the steps and lowered along a cosine."""
    weight_decay: float = 5e-4
    """L2 penalty on all weights."""
    label_smoothing: float = 0.0
    """Share of each label that is spread over all classes."""
    width: float = 1.0
    """Multiplier of all channel counts, for networks that have one."""
    seed: int = 0
    """Initial weights, order of images, augmentation."""
    threads: int = 0
    """CPU threads; 0 leaves the choice to PyTorch."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """Where to train; auto takes a GPU where there is one."""
    precision: Precision = "auto"
    """Arithmetic of a classifier's training: float32, bfloat16, or auto, which is bfloat16 on a CPU with
    instructions for it: twice as fast there."""
    saved_activations: SavedActivations = "float"
    """What a step keeps of activations until its backward pass: all (float), or 3 bits and the largest 2 % in
    16 (value-aware; relu-aware needs a little less), which saves memory and takes longer."""
    holdout: bool = True
    """Keep the reward images of later searches out of the training; --no-holdout trains on them too."""
    out: Path = Path("weights.safetensors")
    """File to write."""
    store: Store = "fp32"
    """How kernels are stored: fp16 halves the file, int8 quarters it."""
    force: bool = False
    """Overwrite an existing file, and an unfinished training."""
    resume: bool = False
    """Continue from OUT.checkpoint, which is written after every epoch."""

    @property
    def checkpoint(self) -> Path:
        """The file beside the output that an interrupted training leaves."""
        return self.out.with_name(self.out.name + ".checkpoint")

    @property
    def settings(self) -> dict[str, object]:
        """What a continued training must share with the interrupted one."""
        return {key: value for key, value in asdict(self).items() if key not in FREE_TO_CHANGE}

    @property
    def memory(self) -> TrainingMemory | None:
        """What stores activations in fewer bits, if anything does."""
        return training_memory(self.saved_activations, self.precision)

    @property
    def recipe(self) -> Recipe:
        """The part that the training loop wants to know."""
        return Recipe(
            epochs=self.epochs,
            batch_size=self.batch_size,
            lr=self.lr,
            weight_decay=self.weight_decay,
            label_smoothing=self.label_smoothing,
            seed=self.seed,
        )


def main(options: Pretrain) -> None:
    """Train a network and save its weights as safetensors."""
    recipe, _ = options.recipe, options.memory  # what makes no sense is refused first
    check_output(options)
    device = prepare(options)
    data = load_data(options.data, options.data_root, options.side)
    task = load_task(options.task, data)
    model = build(options, task).to(device)
    for note in expansion_notes(model):
        print(note)
    start, momentum = (
        load_checkpoint(options.checkpoint, model, options.settings) if options.resume else (0, {})
    )
    try:
        train(model, task, options, recipe, start, momentum)
    except KeyboardInterrupt:
        kept = options.checkpoint.exists()
        raise KeyboardInterrupt("; repeat the command with --resume to go on" if kept else "") from None
    save_weights(model, options.out, options.store, {"model": options.model, "data": options.data})
    load_weights(model, options.out)  # scores are those of the file
    options.checkpoint.unlink(missing_ok=True)
    report(model, task, options)


def report(model: nn.Module, task: Task, options: Pretrain) -> None:
    """Print the scores on the test split and, where the training has not seen it, on the reward split."""
    splits = {"test": "test", "reward": "reward-split"} if options.holdout else {"test": "test"}
    scores = [
        f"{name} {task.score_name} {task.score(model, split):.2%} on {len(task.data.split(split))} images"
        for split, name in splits.items()
    ]
    print(f"{', '.join(scores)}, weights in {options.out}")


def check_output(options: Pretrain) -> None:
    """Refuse before any work what could not be saved after it, or would replace something."""
    out = options.out
    if out.suffix != ".safetensors":
        raise UserError(f"--out must end in .safetensors, and {out} does not.")
    if out.is_dir():
        raise UserError(f"{out} is a folder.")
    if out.exists() and not options.force:
        raise UserError(f"{out} exists already: pass --force to overwrite it, or another --out.")
    if options.checkpoint.exists() and not (options.force or options.resume):
        raise UserError(
            f"{options.checkpoint} is an unfinished training: pass --resume, or --force to restart."
        )
    if options.resume and not options.checkpoint.is_file():
        raise UserError(f"There is no {options.checkpoint} to resume from.")
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"The folder {out.parent} cannot be made: {error.strerror}.") from error
    if not os.access(out.parent, os.W_OK):
        raise UserError(f"The folder {out.parent} cannot be written to.")


def prepare(options: Pretrain) -> torch.device:
    """Set threads and seed; returns the device to train on."""
    if options.label_smoothing and options.task != "classification":
        raise UserError(f"Label smoothing belongs to classification, not to {options.task}.")
    if options.threads < 0:
        raise UserError(f"--threads must be 0 or more, not {options.threads}.")
    if options.device == "cuda" and not torch.cuda.is_available():
        raise UserError("PyTorch finds no GPU here: use --device auto or cpu.")
    if options.threads:
        torch.set_num_threads(options.threads)
    torch.manual_seed(options.seed)
    return torch.device("cuda" if options.device != "cpu" and torch.cuda.is_available() else "cpu")


def build(options: Pretrain, task: Task) -> nn.Module:
    """The network for these images, with what a library publishes for it unless a checkpoint follows."""
    channels, height, _ = task.data.shape
    model = build_model(options.model, task.data.classes, channels, options.width, height <= SMALL_SIDE)
    note = "" if options.resume else load_library_weights(options.model, model)
    if note:
        print(f"note: {note}", file=sys.stderr)
    if isinstance(task, ModelCheck):
        task.check(model, options.model)
    return model


def train(
    model: nn.Module,
    task: Task,
    options: Pretrain,
    recipe: Recipe,
    start: int,
    momentum: dict[str, Tensor],
) -> None:
    """Run the loop under a progress bar and keep a checkpoint after every epoch."""
    data = task.data if options.holdout else task.data.without_holdout()
    loss: Loss = task.loss
    memory = options.memory
    if isinstance(task, ClassificationTask):
        rounds = memory is None and computes_in_bfloat16(options.precision, device_of(model))
        loss = loss_in_bfloat16(cross_entropy(recipe.label_smoothing), rounds)
    columns = (TextColumn("{task.description}"), BarColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console()) as progress:
        bar = progress.add_task(f"epoch {start + 1}/{recipe.epochs}")

        def on_step(done: int, total: int) -> None:
            progress.update(bar, completed=done, total=total)

        def on_epoch(epoch: Epoch) -> None:
            save_checkpoint(options.checkpoint, model, epoch, options.settings)
            text = f"epoch {epoch.number}/{recipe.epochs}, loss {epoch.loss:.3f}, {epoch.seconds:.1f} s"
            progress.update(bar, description=text)

        fit(
            model,
            data,
            recipe,
            loss=loss if memory is None else memory.storing(loss),
            start_epoch=start,
            momentum=momentum,
            on_step=on_step,
            on_epoch=on_epoch,
        )
    if memory is not None and memory.bytes:
        print(memory)


if __name__ == "__main__":
    run(main)

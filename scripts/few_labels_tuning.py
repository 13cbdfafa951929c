"""Training of a compressed network on few labels: what `fine_tune --labels` does."""

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from types import TracebackType
from typing import Any, Literal

import torch
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn
from torch import Tensor, nn

from agents.report import write_report
from agents.report_confusion import FEW_LABELS_FILE
from amc.data import ImageData, load_data
from amc.data.few_labels import FewLabels, draw_few_labels
from amc.errors import UserError
from amc.files import write_json
from amc.models import build_model, save_weights
from amc.models.registry import check_fits
from amc.models.weights import write_tensors
from amc.network import trace
from amc.precision import Precision, computes_in_bfloat16, loss_in_bfloat16
from amc.recovery.label_estimate import LabelEstimate, load_estimate, save_estimate
from amc.recovery.pseudo_labels import answered, iterate_pseudo_labels
from amc.recovery.saas import PAPER, Saas, infer_labels
from amc.tasks import ClassificationTask
from amc.training import Epoch, Recipe, cross_entropy, device_of, fit
from amc.training_checkpoint import load_checkpoint, save_checkpoint
from scripts.cli import console
from scripts.cpu_clock import CpuClock

Arm = Literal["saas", "pseudo", "supervised", "full"]
ARMS: tuple[Arm, ...] = ("supervised", "pseudo", "saas", "full")

LABELS_CHECKPOINT, FINAL_CHECKPOINT = "labels.checkpoint.safetensors", "checkpoint.safetensors"
LABELS_FILE, WEIGHTS_FILE = "labels.safetensors", "model.safetensors"
# What may differ between an interrupted training and the one that continues it.
FREE_TO_CHANGE = {"data_root", "threads", "device"}


@dataclass(frozen=True)
class FewLabelsOptions:
    """Options of a training on few labels, which starts from random weights."""

    labels: int | None = None
    """Train a network from random weights on this many labels, the same number of each class, in the place of
    a run's policy, which has seen labels; the following options belong to it."""
    unlabeled: int | None = None
    """Training images whose labels are not read; all others by default."""
    arm: Arm = "saas"
    """How the labels of those are estimated: saas, pseudo (iterated pseudo-labels), supervised (not at all)
    or full (they are read after all, for comparison)."""
    model: str = "digitsnet"
    """Architecture: a name, timm:NAME or torchvision:NAME (extra hub), or package.module:factory."""
    width: float = 0.5
    """Multiplier of all channel counts."""
    data: str = "digits"
    """Images: digits, cifar10, a folder with train and val, or package.module:factory."""
    data_root: Path = Path("data")
    """Folder that holds cifar-10-batches-py."""
    side: int | None = None
    """Height and width in pixels for data that can be resized."""
    inner: int = Saas.inner
    """Epochs over the unlabeled images between two updates of their labels."""
    outer: int = Saas.outer
    """Updates of the labels; rounds of pseudo-labels."""
    labeled_batch: int = Saas.labeled_batch
    """Labelled images beside 100 unlabeled ones in a step."""
    final_epochs: int = 20
    """Passes over all images with the estimated labels."""
    paper_protocol: bool = False
    """40 inner and 135 outer epochs, as in the paper: 36 times the images to estimate labels."""
    threads: int = 0
    """CPU threads; 0 leaves the choice to PyTorch."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """Where the network is trained."""

    @property
    def saas(self) -> Saas:
        """How labels are inferred."""
        if self.paper_protocol:
            return PAPER
        return Saas(self.inner, self.outer, labeled_batch=self.labeled_batch)

    def settings(self, seed: int) -> dict[str, Any]:
        """What a continued training must share with the interrupted one."""
        chosen = {key: value for key, value in asdict(self).items() if key not in FREE_TO_CHANGE}
        return {**chosen, "seed": seed}

    def changed(self) -> list[str]:
        """Options that were given, as they are written on the command line."""
        default = FewLabelsOptions()
        names = (each.name for each in fields(self))
        return [
            f"--{name.replace('_', '-')}" for name in names if getattr(self, name) != getattr(default, name)
        ]


@dataclass(frozen=True)
class Place:
    """Where a training writes, and how it starts.

    Attributes:
        folder: is made.
        seed: of the choice of images, the weights and all else.
        force: replace what an earlier training wrote.
        resume: go on where an interrupted one was.
    """

    folder: Path
    seed: int = 0
    force: bool = False
    resume: bool = False

    @property
    def checkpoints(self) -> list[Path]:
        """What an interrupted training leaves."""
        return [self.folder / name for name in (LABELS_CHECKPOINT, FINAL_CHECKPOINT)]


@dataclass(frozen=True)
class Bench:
    """Everything that a training on few labels needs.

    Attributes:
        options: of the training.
        place: where it writes.
        data: the whole data set; its train split is only divided.
        few: what may be seen of it.
        hidden: labels of the unlabeled images, int64 [U]; they score, and teach the arm `full` alone.
        model: with random weights, on its device.
        precision: arithmetic of all trainings.
        clock: CPU time of this call and of those that it goes on from.
    """

    options: FewLabelsOptions
    place: Place
    data: ImageData
    few: FewLabels
    hidden: Tensor
    model: nn.Module
    precision: Precision
    clock: CpuClock

    @property
    def settings(self) -> dict[str, Any]:
        """What a continued training must share with the interrupted one."""
        return {**self.options.settings(self.place.seed), "precision": self.precision}


def tune_with_few_labels(
    options: FewLabelsOptions, place: Place, precision: Precision = "auto"
) -> dict[str, Any]:
    """Estimate labels, train on them, save and report; returns the figures.

    Raises:
        UserError: an option is wrong, or the folder holds what would be replaced.
        KeyboardInterrupt: interrupted; says how to go on.
    """
    bench = prepare(options, place, precision)
    try:
        estimate = estimated(bench)
        train(bench, training_data(bench, estimate))
    except KeyboardInterrupt:
        kept = any(path.exists() for path in place.checkpoints)
        raise KeyboardInterrupt("; repeat the command with --resume to go on" if kept else "") from None
    return finish(bench, estimate)


def prepare(options: FewLabelsOptions, place: Place, precision: Precision) -> Bench:
    """Refuse before any work what cannot be done; divide the images and draw the weights."""
    check_output(place)
    _ = options.saas, recipe(options, place.seed)
    if options.threads < 0:
        raise UserError(f"--threads must be 0 or more, not {options.threads}.")
    if options.device == "cuda" and not torch.cuda.is_available():
        raise UserError("PyTorch finds no GPU here: use --device auto or cpu.")
    if options.threads:
        torch.set_num_threads(options.threads)
    data = load_data(options.data, options.data_root, options.side)
    ClassificationTask(data)
    assert options.labels is not None
    few, hidden = draw_few_labels(data, options.labels, options.unlabeled, place.seed)
    torch.manual_seed(place.seed)
    model = build_model(options.model, data.classes, data.shape[0], options.width)
    check_fits(model, options.model, data.shape, data.classes)
    try:
        place.folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"The folder {place.folder} cannot be made: {error.strerror}.") from error
    model = model.to("cuda" if options.device != "cpu" and torch.cuda.is_available() else "cpu")
    return Bench(options, place, data, few, hidden, model, precision, CpuClock(place.folder, place.resume))


def check_output(place: Place) -> None:
    """Refuse what would replace something, or has nothing to go on from."""
    figures = place.folder / FEW_LABELS_FILE
    if figures.exists() and not place.force:
        raise UserError(f"{figures} exists already: pass --force to overwrite it, or another --out.")
    unfinished = [path for path in place.checkpoints if path.exists()]
    if unfinished and not (place.force or place.resume):
        raise UserError(f"{unfinished[0]} is an unfinished training: pass --resume, or --force to restart.")
    if place.resume and not unfinished:
        raise UserError(f"There is no {place.checkpoints[0]} to resume from.")


def recipe(options: FewLabelsOptions, seed: int) -> Recipe:
    """The final training: the paper's rates and batch, and a cosine that no held-out label steers."""
    return Recipe(epochs=options.final_epochs, batch_size=100, lr=0.1, weight_decay=1e-4, seed=seed)


def estimated(bench: Bench) -> LabelEstimate | None:
    """The labels of the unlabeled images, made, continued or taken from an interrupted training."""
    if bench.options.arm not in ("saas", "pseudo"):
        return None
    path, settings = bench.place.checkpoints[0], bench.settings
    start = load_estimate(path, settings) if bench.place.resume and path.exists() else None
    with Bar("labels") as bar:

        def on_round(estimate: LabelEstimate) -> None:
            bench.clock.keep()
            save_estimate(path, estimate, settings)
            bar.tell(
                f"labels {estimate.rounds}/{bench.options.saas.outer}, loss {estimate.losses[-1]:.3f}, "
                f"{estimate.changed[-1]:.1%} changed"
            )

        return estimator(bench)(start=start, on_step=bar.step, on_round=on_round)


def estimator(bench: Bench) -> Callable[..., LabelEstimate]:
    """The arm's way to estimate labels, with equal numbers of images through the network."""
    options, seed = bench.options, bench.place.seed

    def saas(**calls: Any) -> LabelEstimate:
        return infer_labels(
            bench.model, bench.few, options.saas, seed=seed, precision=bench.precision, **calls
        )

    def pseudo(**calls: Any) -> LabelEstimate:
        return iterate_pseudo_labels(
            bench.model,
            bench.few,
            bench.data,
            recipe(options, seed),
            rounds=options.saas.outer,
            images=options.saas.images(len(bench.few.unlabeled)),
            precision=bench.precision,
            **calls,
        )

    return saas if options.arm == "saas" else pseudo


def training_data(bench: Bench, estimate: LabelEstimate | None) -> ImageData:
    """The images of the final training with the labels that the arm gives them."""
    if estimate is not None:
        split = bench.few.joined(estimate.labels)
    else:
        split = bench.few.joined(bench.hidden) if bench.options.arm == "full" else bench.few.labeled
    return replace(bench.data, train=split, _normalised={})


def train(bench: Bench, data: ImageData) -> None:
    """The final training, of equally many steps whatever the arm; a checkpoint after every epoch."""
    images = len(bench.few.labeled) + len(bench.few.unlabeled)
    wanted = recipe(bench.options, bench.place.seed)
    wanted = replace(wanted, epochs=round(wanted.epochs * images / len(data.train)))
    rounds = computes_in_bfloat16(bench.precision, device_of(bench.model))
    path, settings = bench.place.checkpoints[1], bench.settings
    resumed = bench.place.resume and path.exists()
    start, momentum = load_checkpoint(path, bench.model, settings) if resumed else (0, {})
    with Bar("final training") as bar:

        def on_epoch(epoch: Epoch) -> None:
            bench.clock.keep()
            save_checkpoint(path, bench.model, epoch, settings)
            bar.tell(f"final training {epoch.number}/{wanted.epochs}, loss {epoch.loss:.3f}")

        fit(
            bench.model,
            data,
            wanted,
            loss=loss_in_bfloat16(cross_entropy(), rounds),
            start_epoch=start,
            momentum=momentum,
            on_step=bar.step,
            on_epoch=on_epoch,
        )


class Bar(AbstractContextManager["Bar"]):
    """A progress bar on standard error."""

    def __init__(self, text: str):
        columns = (TextColumn("{task.description}"), BarColumn(), TimeRemainingColumn())
        self._progress = Progress(*columns, console=console())
        self._bar = self._progress.add_task(text, total=None)

    def __enter__(self) -> "Bar":
        self._progress.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._progress.stop()

    def step(self, done: int, total: int) -> None:
        """Hear of `done` steps of `total`."""
        self._progress.update(self._bar, completed=done, total=total)

    def tell(self, text: str) -> None:
        """Change the description."""
        self._progress.update(self._bar, description=text)


def finish(bench: Bench, estimate: LabelEstimate | None) -> dict[str, Any]:
    """Write weights, labels, figures and the page; the checkpoints go last."""
    folder, model, cpu_seconds = bench.place.folder, bench.model, bench.clock.seconds
    found = {**figures(bench, estimate), "cpu_seconds": round(cpu_seconds, 1)}
    save_weights(model, folder / WEIGHTS_FILE, metadata={"model": bench.options.model})
    if estimate is not None:
        write_tensors({"posterior": estimate.posterior.contiguous()}, folder / LABELS_FILE)
    write_json(folder / FEW_LABELS_FILE, found)
    page = write_report([folder])[0]
    for path in bench.place.checkpoints:
        path.unlink(missing_ok=True)
    bench.clock.forget()
    report(found, folder, page)
    return found


def figures(bench: Bench, estimate: LabelEstimate | None) -> dict[str, Any]:
    """All that is known in the end; the hidden labels and the test split are asked only here."""
    model, hidden = bench.model, bench.hidden
    task = ClassificationTask(bench.data)
    labels = estimate.labels if estimate is not None else answered(model, bench.few)
    network = trace(model.cpu(), task.example_input())
    return {
        "settings": bench.settings,
        "data": bench.data.name,
        "classes": list(bench.data.class_names or map(str, range(bench.data.classes))),
        "labeled": len(bench.few.labeled),
        "unlabeled": len(bench.few.unlabeled),
        "macs": network.macs,
        "parameters": sum(p.numel() for p in model.parameters()),
        "test_accuracy": task.score(model, "test"),
        "label_source": "estimated before the final training"
        if estimate
        else "answered by the final network",
        "label_accuracy": float((labels == hidden).double().mean()),
        "confusion": confusion(hidden, labels, bench.data.classes),
        "losses": list(estimate.losses) if estimate else [],
        "changed": list(estimate.changed) if estimate else [],
    }


def confusion(true: Tensor, said: Tensor, classes: int) -> list[list[int]]:
    """How many images of each true class (rows) were given each class (columns)."""
    counts = torch.bincount(true * classes + said, minlength=classes * classes)
    rows: list[list[int]] = counts.reshape(classes, classes).tolist()
    return rows


def report(found: Mapping[str, Any], folder: Path, page: Path) -> None:
    """Print the figures and where everything is."""
    print(
        f"{found['labeled']:,} labels, {found['unlabeled']:,} unlabeled images of {found['data']}, "
        f"arm {found['settings']['arm']}: {found['macs'] / 1e6:.2f} MMACs, "
        f"{found['parameters'] / 1e3:.1f} k parameters"
    )
    print(
        f"test accuracy {found['test_accuracy']:.2%}; labels {found['label_source']}: "
        f"{found['label_accuracy']:.2%} right"
    )
    print(f"weights and figures in {folder}, report in {page}; {found['cpu_seconds']:,.0f} CPU seconds")

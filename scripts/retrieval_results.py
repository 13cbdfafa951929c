"""Regenerate the figures of retrieval, row by row; may be cut at any moment and repeated."""

import sys
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal

if not __package__:  # started as a file: Python then looks in scripts/ and not in the folder above it
    sys.path[0] = str(Path(__file__).resolve().parents[1])

import torch
from torch import Tensor, nn

from amc.data import load_data
from amc.errors import UserError
from amc.models import build_model
from amc.models.retrieval import RetrievalNet
from amc.network import trace
from amc.retrieval.classified import Classified, classification_loss
from amc.retrieval.code import said
from amc.retrieval.faiss_index import nearest_words, require_faiss, trained_codebooks
from amc.retrieval.losses import asymmetric_triplet_loss, float_triplet_loss, symmetric_triplet_loss
from amc.retrieval.search import Collection, float_precision, search_precision
from amc.tasks import RetrievalTask
from amc.training import Loss, Recipe
from scripts.cli import run as run_script
from scripts.results_runner import RowOptions
from scripts.results_training import train_once
from scripts.tasks_rows import TASKS_FILE, TaskRunner, no_summary, place

SECTION = "retrieval"
SEEDS = (0, 1, 2)
BITS = (12, 24, 36, 48)
COMPARED_AT = 24
"""Bits at which the other losses are compared."""


@dataclass(frozen=True)
class Setting:
    """How the networks for one data set are trained and searched.

    Attributes:
        model: the backbone.
        queries: first images of every class of the test split that ask; the others are the database.
        recipe: of all networks.
    """

    model: str
    queries: int
    recipe: Recipe


# The recipe of the digits was tried out on them, that of CIFAR-10 chosen before its first figure was seen.
SETTINGS = {
    "digits": Setting("digitsnet", 10, Recipe(epochs=16, batch_size=64, lr=0.05)),
    "cifar10": Setting("threeconv", 100, Recipe(epochs=20, batch_size=128, lr=0.05)),
}


@dataclass(frozen=True)
class RetrievalResults(RowOptions):
    """Options; rows that the output already has are made again only with --again."""

    only: str = "*"
    """Make the rows whose names match this shell pattern, as in 'cifar10/pqn/*'."""
    out: Path = TASKS_FILE
    """Figures file; every finished row is written at once."""
    runs: Path = Path("runs/retrieval")
    """Where weights and unfinished trainings are kept."""
    data_root: Path = Path("data")
    """Folder that holds cifar-10-batches-py."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """Where networks are trained and scored."""
    threads: int = 1
    """CPU threads."""


@dataclass(frozen=True)
class Spec:
    """One row: a trained network.

    Attributes:
        data: a key of `SETTINGS`.
        loss: "pqn" (asymmetric triplets), "symmetric", "cross-entropy", or "float" (nothing quantized).
        bits: length of the code.
        seed: of its weights, its batches and their augmentation.
    """

    data: str
    loss: str
    bits: int
    seed: int

    @property
    def name(self) -> str:
        """The row's key."""
        return f"{self.data}/{self.loss}/{self.bits}/{self.seed}"

    def to_json(self) -> dict[str, Any]:
        """The fields."""
        return asdict(self)

    @property
    def recipe(self) -> Recipe:
        """How it is trained."""
        return replace(SETTINGS[self.data].recipe, seed=self.seed)


def main(options: RetrievalResults) -> None:
    """Make the missing rows of the retrieval results, in order; may be cut anywhere and repeated."""
    runner = TaskRunner[Spec](
        options.out,
        key=lambda spec: spec.name,
        make=lambda spec: row(options, spec),
        about=lambda spec: {"command": f"python -m scripts.retrieval_results --only '{spec.name}'"},
        summary=no_summary,
        prepare=lambda missing: prepare(options, missing),
        section=SECTION,
    )
    runner.run(runner.chosen(plan(), options.only), options)


def plan() -> list[Spec]:
    """Every row; the seeds in the outer loop, so that pairs are complete early."""
    return [
        Spec(data, loss, bits, seed)
        for data in SETTINGS
        for seed in SEEDS
        for bits in BITS
        for loss in ("pqn", "float", "symmetric", "cross-entropy")
        if loss in ("pqn", "float") or bits == COMPARED_AT
    ]


def prepare(options: RetrievalResults, missing: list[Spec]) -> list[Spec]:
    """Refuse before any work what some row would only notice later; sets the threads."""
    if options.threads < 1:
        raise UserError(f"--threads must be at least 1, not {options.threads}.")
    if options.device == "cuda" and not torch.cuda.is_available():
        raise UserError("PyTorch finds no GPU here: use --device auto or cpu.")
    if missing:
        require_faiss()
    for data in sorted({spec.data for spec in missing}):
        load_data(data, options.data_root)
    options.runs.mkdir(parents=True, exist_ok=True)
    torch.set_num_threads(options.threads)
    return missing


def row(options: RetrievalResults, spec: Spec) -> dict[str, Any]:
    """Train a network and search with it."""
    task = RetrievalTask(load_data(spec.data, options.data_root))
    torch.manual_seed(spec.seed)
    model = build_model(
        f"{SETTINGS[spec.data].model}-pqn{spec.bits}", task.data.classes, task.data.shape[0]
    ).to(place(options.device))
    assert isinstance(model, RetrievalNet)
    learner, loss = learning(spec.loss, model, task)
    path = options.runs / f"{spec.name.replace('/', '-')}.safetensors"
    last = train_once(spec.name, path, learner, task.data, spec.recipe, loss)
    network = trace(model, task.example_input())
    found = precisions(model.cpu(), task, spec, options)
    return {**found, "loss_at_end": last, "macs": network.macs, "epochs": spec.recipe.epochs}


def learning(name: str, model: RetrievalNet, task: RetrievalTask) -> tuple[nn.Module, Loss]:
    """What is trained, and by which loss."""
    if name == "cross-entropy":
        device = next(model.parameters()).device
        return Classified(model, task.data.classes).to(device), classification_loss
    losses: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
        "pqn": lambda outputs, y: asymmetric_triplet_loss(said(outputs), y),
        "symmetric": lambda outputs, y: symmetric_triplet_loss(said(outputs), y, model.codebooks),
        "float": lambda outputs, y: float_triplet_loss(said(outputs), y),
    }
    return model, lambda net, x, y: losses[name](net(x), y)


def precisions(
    model: RetrievalNet, task: RetrievalTask, spec: Spec, options: RetrievalResults
) -> dict[str, float]:
    """The mAP with the network's own codes, with plain product quantization behind it, and of its floats.

    The database is the rest of the test split, which no training has seen; "common" ones also hold the
    training images, as in the papers' protocols.
    """
    gathered = {
        split: collection(task, model.to(place(options.device)), split) for split in ("train", "test")
    }
    queries, unseen = divided(gathered["test"], SETTINGS[spec.data].queries)
    words = {"": model.codebooks.detach().cpu()} if spec.loss != "float" else {}
    plain = trained_codebooks(
        gathered["train"].vectors.flatten(1), model.code.subspaces, model.code.words, spec.seed
    )
    found: dict[str, float] = {"queries": len(queries.labels), "database": len(unseen.labels)}
    common = unseen.with_more(gathered["train"])
    for where, database in (("mAP", unseen), ("mAP_common", common)):
        for suffix, codebooks in {**words, "_plain_pq": plain}.items():
            codes = nearest_words(database.vectors, codebooks)
            found[where + suffix] = search_precision(queries, database.labels, codes, codebooks)
        found[f"{where}_float"] = float_precision(queries, database)
    return found


def collection(task: RetrievalTask, model: nn.Module, split: str) -> Collection:
    """All images of a split as a network sees them."""
    outputs = task.outputs(model, task.data.normalised(split))
    return Collection(outputs.vectors, task.data.split(split).labels)


def divided(whole: Collection, each: int) -> tuple[Collection, Collection]:
    """The first `each` images of every class, and all others."""
    first = torch.zeros_like(whole.labels, dtype=torch.bool)
    for label in whole.labels.unique():
        first[(whole.labels == label).nonzero()[:each, 0]] = True
    return whole.take(first), whole.take(~first)


if __name__ == "__main__":
    run_script(main)

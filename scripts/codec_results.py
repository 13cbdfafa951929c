"""Regenerate the figures of vector codecs, row by row; may be cut at any moment and repeated."""

import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, get_args

if not __package__:  # started as a file: Python then looks in scripts/ and not in the folder above it
    sys.path[0] = str(Path(__file__).resolve().parents[1])

import torch
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn
from torch import Tensor

from amc.codecs import Recipe, exact_neighbours, nearest, recall, train_codec
from amc.codecs.baselines import Baseline, BaselineName
from amc.codecs.starts import StartName
from amc.codecs.training import Relaxation
from amc.errors import UserError
from amc.retrieval.faiss_index import require_faiss
from scripts.cli import console
from scripts.cli import run as run_script
from scripts.codec_data import VectorSets, embedding_sets, pixel_sets, sift_sets
from scripts.results_runner import RowOptions
from scripts.tasks_rows import TASKS_FILE, TaskRunner, no_summary

SECTION = "codecs"
SEEDS = (0, 1, 2)
FIRST = (1, 10)
"""Recall is the share of queries whose nearest neighbour is among so many found."""
SEARCHED = ("sift", "embeddings")
OURS: dict[str, Relaxation] = {"lsq": "none", "sr-c": "data", "sr-d": "codebooks"}
FAISS: dict[str, tuple[BaselineName, Relaxation]] = {
    "pq": ("pq", "none"),
    "opq": ("opq", "none"),
    "faiss-lsq": ("faiss-lsq", "none"),
    "faiss-sr-d": ("faiss-lsq", "codebooks"),
}
PIXEL_ITERATIONS = (25, 60)


@dataclass(frozen=True)
class CodecResults(RowOptions):
    """Options; rows that the output already has are made again only with --again."""

    only: str = "*"
    """Make the rows whose names match this shell pattern, as in 'sift/sr-d/*'."""
    out: Path = TASKS_FILE
    """Figures file; every finished row is written at once."""
    sift: Path = Path("data/sift.safetensors")
    """SIFT descriptors that scripts/sift.py has computed."""
    weights: Path = Path("resnet20.th")
    """Weights of ResNet-20 for CIFAR-10, whose embeddings are coded."""
    data_root: Path = Path("data")
    """Folder that holds cifar-10-batches-py."""
    runs: Path = Path("runs/codecs")
    """Where embeddings are kept."""
    threads: int = 1
    """CPU threads."""


@dataclass(frozen=True)
class Spec:
    """One row: a codec trained on one data set.

    Attributes:
        data: sift, embeddings or pixels.
        method: a key of `OURS` or `FAISS`.
        begin: where the training of ours starts; empty for Faiss's.
        iterations: fits of additive codebooks.
        seed: of everything that is drawn.
    """

    data: str
    method: str
    begin: str
    iterations: int
    seed: int

    @property
    def name(self) -> str:
        """The row's key."""
        parts = (self.data, self.method, self.begin, str(self.iterations), str(self.seed))
        return "/".join(part for part in parts if part)

    def to_json(self) -> dict[str, Any]:
        """The fields."""
        return asdict(self)

    def recipe(self) -> Recipe:
        """How it is trained: the paper's effort and 64 bits; on pixels, a small anchor, 4 codes of 6 bits."""
        size = (4, 64) if self.data == "pixels" else (7, 256)
        relaxation = OURS[self.method] if self.method in OURS else FAISS[self.method][1]
        begin: StartName = next((name for name in get_args(StartName) if name == self.begin), "random")
        return Recipe(*size, self.iterations, relaxation, begin, seed=self.seed)


def main(options: CodecResults) -> None:
    """Make the missing rows of the codec results, in order; may be cut anywhere and repeated."""
    sets: dict[str, VectorSets] = {}
    runner = TaskRunner[Spec](
        options.out,
        key=lambda spec: spec.name,
        make=lambda spec: row(spec, sets),
        about=lambda spec: {"command": f"python -m scripts.codec_results --only '{spec.name}'"},
        summary=no_summary,
        prepare=lambda missing: prepare(options, missing, sets),
        section=SECTION,
    )
    runner.run(runner.chosen(plan(), options.only), options)


def plan() -> list[Spec]:
    """Every row; the seeds in the outer loop, so that comparisons are complete early."""
    pixels = [
        Spec("pixels", method, "random", iterations, seed)
        for iterations in PIXEL_ITERATIONS
        for seed in SEEDS
        for method in OURS
    ]
    arms = [
        *((name, "") for name in FAISS),
        *((name, begin) for begin in ("random", "chain") for name in OURS),
    ]
    searched = [
        Spec(data, method, begin, 25, seed) for seed in SEEDS for data in SEARCHED for method, begin in arms
    ]
    return [*pixels, *searched]


def prepare(options: CodecResults, missing: list[Spec], sets: dict[str, VectorSets]) -> list[Spec]:
    """Load the vectors that some row needs, and refuse before any work what only a row would notice."""
    if options.threads < 1:
        raise UserError(f"--threads must be at least 1, not {options.threads}.")
    torch.set_num_threads(options.threads)
    if any(spec.method in FAISS for spec in missing):
        require_faiss().omp_set_num_threads(options.threads)
    loaders: dict[str, Callable[[], VectorSets]] = {
        "pixels": lambda: pixel_sets(options.data_root),
        "sift": lambda: sift_sets(options.sift),
        "embeddings": lambda: embedding_sets(options.weights, options.data_root, options.runs),
    }
    sets.update({name: load() for name, load in loaders.items() if any(s.data == name for s in missing)})
    return missing


def row(spec: Spec, sets: dict[str, VectorSets]) -> dict[str, Any]:
    """The figures of one codec."""
    vectors = sets[spec.data]
    found = our_row(spec, vectors) if spec.method in OURS else faiss_row(spec, vectors)
    return {**found, "vectors": [len(vectors.train), len(vectors.base), len(vectors.queries)]}


def our_row(spec: Spec, vectors: VectorSets) -> dict[str, Any]:
    """A codec that was trained here."""
    recipe, watch = spec.recipe(), Watch()
    columns = (TextColumn(spec.name), BarColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console(), transient=True) as progress:
        bar = progress.add_task("", total=recipe.iterations)
        codec, trained = train_codec(vectors.train, recipe, lambda i: progress.update(bar, completed=i))
    found = {"bits": codec.bits, "train_error": trained.errors[-1], "train_cpu_s": watch.lap()}
    if len(vectors.base) == 0:
        return found
    stored = codec.encode(vectors.base)
    found |= {"encode_cpu_s": watch.lap(), "base_error": mean_error(vectors.base, codec.decode(stored))}
    return found | recalls(vectors, nearest(codec, stored, vectors.queries, max(FIRST)))


def faiss_row(spec: Spec, vectors: VectorSets) -> dict[str, Any]:
    """A codec of Faiss's."""
    codec = Baseline(FAISS[spec.method][0], vectors.train.shape[1], spec.recipe())
    watch = Watch()
    codec.train(vectors.train)
    found = {"bits": codec.bits, "train_cpu_s": watch.lap()}
    codec.add(vectors.base)
    found |= {"encode_cpu_s": watch.lap()}
    for name, part in (("train_error", vectors.train), ("base_error", vectors.base)):
        found |= {name: mean_error(part, codec.decoded(part))}
    return found | recalls(vectors, codec.nearest(vectors.queries, max(FIRST)))


class Watch:
    """Seconds of CPU time of this process."""

    def __init__(self) -> None:
        self._since = time.process_time()

    def lap(self) -> float:
        """Seconds since the last call."""
        before, self._since = self._since, time.process_time()
        return round(self._since - before, 2)


def mean_error(vectors: Tensor, decoded: Tensor) -> float:
    """Mean squared distance [n, d] between vectors and what became of them."""
    return float((vectors - decoded).square().sum(dim=1).mean())


def recalls(vectors: VectorSets, found: Tensor) -> dict[str, float]:
    """Recall among the first 1 and 10 of what was found, [queries, 10]."""
    true = exact_neighbours(vectors.queries, vectors.base)
    return {f"recall_{first}": recall(found, true, first) for first in FIRST}


if __name__ == "__main__":
    run_script(main)

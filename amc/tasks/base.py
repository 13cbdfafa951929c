"""What the rest of the project may ask of a task."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Protocol, runtime_checkable

from torch import Tensor, nn

from amc.compress import Compressor
from amc.data.images import ImageData
from amc.network import Network


@runtime_checkable
class Task(Protocol):
    """Data, loss and metric of one use of a network.

    Attributes:
        name: What reports call it.
        score_name: What its score measures, e.g. `accuracy`.
        data: The images, in three splits.
        distillable: Whether its networks return logits [B, classes], which a teacher can soften.
    """

    name: str
    score_name: str
    data: ImageData
    distillable: bool

    def loss(self, model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
        """Scalar to minimise on images float32 [B, C, H, W] with labels int64 [B]."""
        ...

    def score(self, model: nn.Module, split: str) -> float:
        """The score of a model on the split `train`, `reward` or `test`; larger is better, 1 is perfect."""
        ...

    def agreement(self, expected: Tensor, said: Tensor) -> float:
        """Share, 0 to 1, of the decisions that two outputs [N, ...] of the traced part have in common.

        Tells whether an exported file in 8-bit integers, whose numbers may differ a little, decides what its
        network decides.
        """
        ...

    def traced(self, model: nn.Module) -> nn.Module:
        """The part of the model that is traced and compressed."""
        ...

    def features(self, model: nn.Module, x: Tensor) -> Tensor:
        """What a smaller network may be taught to imitate: float32 [B, features] for images [B, C, H, W]."""
        ...

    def example_input(self) -> Tensor:
        """One normalised image, float32 [1, C, H, W], to trace the model with."""
        ...

    def calibration(
        self, images: int = 1000, batch_size: int = 200, seed: int = 0, augment: bool = False
    ) -> list[Tensor]:
        """Unlabeled batches, disjoint from the reward split, float32 [B, C, H, W].

        Images as they are in use, or changed as in training.
        """
        ...


@runtime_checkable
class FurtherScores(Protocol):
    """What a task may offer besides: figures beside its score, for tables; no search is judged by them."""

    def scores(self, model: nn.Module, split: str) -> Mapping[str, float]:
        """Every figure of a model by name, in [0, 1], and among them `score` by its `score_name`."""
        ...


def score_and_further(task: Task, model: nn.Module, split: str) -> tuple[float, dict[str, float]]:
    """A task's score on a split, and what else it measures there by name, in one pass."""
    if not isinstance(task, FurtherScores):
        return task.score(model, split), {}
    found = dict(task.scores(model, split))
    return found.pop(task.score_name), found


@runtime_checkable
class Illustrated(Protocol):
    """What a task may offer besides: examples from the test split that a report draws."""

    def save_examples(self, networks: Mapping[str, nn.Module], folder: Path) -> None:
        """Write what each network, by name, does with a few images into a run directory."""
        ...


@runtime_checkable
class OwnFiles(Protocol):
    """What a task may offer besides: files of its own beside an exported network, such as a search index."""

    def save_files(self, model: nn.Module, folder: Path) -> tuple[list[Path], list[str]]:
        """Write them for a network on the CPU; the files, and a sentence about each that is missing here."""
        ...


def save_own_files(task: Task, model: nn.Module, folder: Path) -> tuple[list[Path], list[str]]:
    """The task's own files beside an exported network, and what to say about them."""
    return task.save_files(model, folder) if isinstance(task, OwnFiles) else ([], [])


@runtime_checkable
class OwnCompressors(Protocol):
    """What a task may offer besides: choices of its own for an agent, such as the length of a code."""

    def compressors(self, network: Network) -> Sequence[Compressor]:
        """What carries the choices out; their knobs join the action.

        Raises:
            UserError: the network has nothing to choose.
        """
        ...


@runtime_checkable
class ModelCheck(Protocol):
    """What a task may offer besides: a check whether a network fits it, before anything expensive."""

    def check(self, model: nn.Module, name: str) -> None:
        """Raise UserError if the model, which the user knows by `name`, does not fit data and loss."""
        ...

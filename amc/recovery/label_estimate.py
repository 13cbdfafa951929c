"""Estimated labels, round by round, and the file that an interrupted estimation leaves."""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import safetensors
import torch
from torch import Tensor

from amc.errors import UserError
from amc.models.weights import write_tensors


@dataclass(frozen=True)
class LabelEstimate:
    """What is believed of the labels of unlabeled images after some rounds.

    Attributes:
        posterior: float64 [U, classes]; every row sums to 1.
        losses: mean training loss of each round.
        changed: share of the images whose likeliest class each round changed, 0 to 1.
    """

    posterior: Tensor
    losses: tuple[float, ...] = field(default=())
    changed: tuple[float, ...] = field(default=())

    @property
    def rounds(self) -> int:
        """Rounds done."""
        return len(self.losses)

    @property
    def labels(self) -> Tensor:
        """The likeliest classes, int64 [U]."""
        return self.posterior.argmax(1)

    def followed_by(self, posterior: Tensor, loss: float) -> "LabelEstimate":
        """The estimate after one more round."""
        moved = float((posterior.argmax(1) != self.labels).double().mean())
        return LabelEstimate(posterior, (*self.losses, loss), (*self.changed, moved))


def save_estimate(path: Path, estimate: LabelEstimate, settings: Mapping[str, object]) -> None:
    """Write the posterior as a tensor, the rest as JSON in the same file's header, whole or not at all.

    Args:
        path: replaced if it exists.
        estimate: after its last round.
        settings: what a continued estimation must share; JSON values.
    """
    told = {"losses": estimate.losses, "changed": estimate.changed, "settings": dict(settings)}
    write_tensors({"posterior": estimate.posterior.contiguous()}, path, {"estimate": json.dumps(told)})


def load_estimate(path: Path, settings: Mapping[str, object]) -> LabelEstimate:
    """Read an estimate.

    Raises:
        UserError: the file holds none, or one that was made with other settings.
    """
    try:
        with safetensors.safe_open(path, "pt") as file:
            told = json.loads(file.metadata()["estimate"])
            posterior = file.get_tensor("posterior")
        estimate = LabelEstimate(posterior, tuple(told["losses"]), tuple(told["changed"]))
        before = dict(told["settings"])
    except Exception as error:
        raise UserError(f"{path} holds no estimated labels: delete it and start again.") from error
    changed = [key for key, value in settings.items() if before.get(key) != value]
    if changed:
        said = ", ".join(f"{key} was {before.get(key)}" for key in changed)
        raise UserError(f"{path} was made with other settings ({said}): repeat them to resume.")
    if posterior.dtype != torch.float64 or posterior.ndim != 2:
        raise UserError(f"{path} holds no estimated labels: delete it and start again.")
    return estimate

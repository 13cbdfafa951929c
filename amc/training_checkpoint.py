"""What an interrupted training leaves behind: one safetensors file, without pickle."""

import json
from collections.abc import Mapping
from pathlib import Path

import safetensors
from torch import Tensor, nn

from amc.errors import UserError
from amc.models.weights import load_state, write_tensors
from amc.training import Epoch


def save_checkpoint(path: Path, model: nn.Module, epoch: Epoch, settings: Mapping[str, object]) -> None:
    """Write weights and momentum as tensors, and epoch and settings as JSON in the same file's header.

    One file and not two, so that it is replaced whole or not at all.

    Args:
        path: Replaced if it exists.
        model: In the state that the epoch left.
        epoch: The last one done.
        settings: What a continued training must share; JSON values.
    """
    named = {f"model.{key}": value for key, value in model.state_dict().items()}
    named |= {f"momentum.{key}": value for key, value in epoch.momentum.items()}
    tensors = {key: value.detach().cpu().clone().contiguous() for key, value in named.items()}
    write_tensors(
        tensors, path, {"training": json.dumps({"epoch": epoch.number, "settings": dict(settings)})}
    )


def load_checkpoint(
    path: Path, model: nn.Module, settings: Mapping[str, object]
) -> tuple[int, dict[str, Tensor]]:
    """Load a checkpoint's weights into a model.

    Returns:
        The epochs done, and SGD's momentum by parameter name.

    Raises:
        UserError: The file is no checkpoint, or belongs to a training with other settings or another model.
    """
    try:
        with safetensors.safe_open(path, "pt") as file:
            state = json.loads(file.metadata()["training"])
            tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 (it is no dict)
        done, before = int(state["epoch"]), dict(state["settings"])
    except Exception as error:
        raise UserError(f"{path} is not a training checkpoint: delete it and start again.") from error
    changed = [key for key, value in settings.items() if before.get(key) != value]
    if changed:
        said = ", ".join(f"{key} was {before.get(key)}" for key in changed)
        raise UserError(f"{path} belongs to a training with other settings ({said}): repeat them to resume.")
    momentum = _part(tensors, "momentum.")
    shapes = {name: p.shape for name, p in model.named_parameters()}
    if any(shapes.get(name) != value.shape for name, value in momentum.items()):
        raise UserError(f"{path} does not fit this model: delete it and start again.")
    load_state(model, _part(tensors, "model."), path)
    return done, momentum


def _part(tensors: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {key.removeprefix(prefix): value for key, value in tensors.items() if key.startswith(prefix)}

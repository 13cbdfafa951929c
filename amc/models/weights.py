"""Weights on disk: read safetensors and PyTorch files without trusting them, write safetensors."""

import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Literal

import safetensors
import safetensors.torch
import torch
from torch import Tensor, nn

from amc.errors import UserError
from amc.plugins import one_line

TORCH_SUFFIXES = (".pt", ".pth", ".th")
SUFFIXES = (*TORCH_SUFFIXES, ".safetensors")
LISTED = 3
Store = Literal["fp32", "fp16", "int8"]
SCALE = ".scale"
"""Behind a name: what the 8-bit integers of that name are multiplied by, one scale an output channel."""
LARGEST = 127


def load_weights(model: nn.Module, path: Path | str) -> None:
    """Copy the weights of a file into a model, in the model's own dtype and on its device.

    Args:
        model: Left as it was if anything is wrong with the file.
        path: A state dict as .pt, .pth or .th (also under the key "state_dict", also with the prefix
            "module." of data-parallel training) or .safetensors; half precision and 8 bits are widened.

    Raises:
        UserError: The file is missing, is of another kind, does not fit the model or holds NaN or infinity.
    """
    path = Path(path)
    load_state(model, read_weights(path), path)


def load_state(model: nn.Module, state: Mapping[str, Tensor], path: Path) -> None:
    """Copy tensors into a model after checking all of them; `path` is named in errors.

    Raises:
        UserError: They do not fit the model or hold NaN or infinity.
    """
    _check_fit(model, state, path)
    _check_finite(state, path)
    # Files from before PyTorch 0.4.1 lack these counters, which nothing but training uses.
    model.load_state_dict(state, strict=False)


def read_weights(path: Path) -> dict[str, Tensor]:
    """The tensors of a weights file by parameter name, on the CPU, prefixes taken off.

    Raises:
        UserError: The file is missing or is of another kind.
    """
    if path.suffix.lower() not in SUFFIXES:
        raise UserError(f"{path} is not a weights file by its name: it should end in {', '.join(SUFFIXES)}.")
    if not path.is_file():
        raise UserError(f"There is no weights file {path}.")
    try:
        if path.suffix.lower() == ".safetensors":
            content = safetensors.torch.load_file(path)
        else:
            with warnings.catch_warnings():
                warnings.simplefilter(
                    "ignore"
                )  # about pickle protocols: whether it loads is all that matters
                content = torch.load(path, weights_only=True, map_location="cpu")
    except Exception as error:  # unpickling foreign bytes can fail in any way
        kind = "safetensors" if path.suffix.lower() == ".safetensors" else "PyTorch weights"
        raise UserError(f"{path} cannot be read as a {kind} file ({type(error).__name__}).") from error
    return _state_dict(content, path)


def _state_dict(content: object, path: Path) -> dict[str, Tensor]:
    if isinstance(content, Mapping) and isinstance(content.get("state_dict"), Mapping):
        content = content["state_dict"]
    if not isinstance(content, Mapping) or not content:
        raise UserError(f"{path} holds no state dict: save model.state_dict(), not the whole model.")
    strange = [key for key, value in content.items() if not isinstance(value, Tensor)]
    if strange:
        raise UserError(f"{path} is not a state dict: the entry '{strange[0]}' is not a tensor.")
    prefix = "module." if all(str(key).startswith("module.") for key in content) else ""
    return _widened({str(key).removeprefix(prefix): value for key, value in content.items()})


def _widened(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """The same tensors with the integers of `save_weights` as floats."""
    coded = [key for key, value in state.items() if value.dtype == torch.int8 and key + SCALE in state]
    for key in coded:
        state[key] = state[key].float() * state.pop(key + SCALE)
    return state


def _check_fit(model: nn.Module, state: Mapping[str, Tensor], path: Path) -> None:
    wanted = model.state_dict()
    missing = [k for k in wanted if k not in state and not k.endswith("num_batches_tracked")]
    foreign = [k for k in state if k not in wanted]
    unequal = [
        f"{k} is {list(state[k].shape)} and should be {list(wanted[k].shape)}"
        for k in wanted
        if k in state and state[k].shape != wanted[k].shape
    ]
    whole = [
        f"{k} is {str(state[k].dtype).removeprefix('torch.')}"
        for k in wanted
        if k in state and wanted[k].is_floating_point() and not state[k].is_floating_point()
    ]
    reasons = [
        ("missing", missing),
        ("unknown", foreign),
        ("of another shape", unequal),
        ("not floating-point", whole),
    ]
    said = [f"{len(names)} {word} ({_first(names)})" for word, names in reasons if names]
    if said:
        raise UserError(f"{path} does not fit this model of {len(wanted)} tensors: {', '.join(said)}.")


def _first(names: list[str]) -> str:
    return "; ".join(names[:LISTED]) + ("; ..." if len(names) > LISTED else "")


def _check_finite(state: Mapping[str, Tensor], path: Path) -> None:
    bad = [k for k, v in state.items() if v.is_floating_point() and not bool(torch.isfinite(v).all())]
    if bad:
        raise UserError(f"{path} holds NaN or infinite weights in {len(bad)} tensors ({_first(bad)}).")


def save_weights(
    model: nn.Module, path: Path | str, store: Store = "fp32", metadata: Mapping[str, str] | None = None
) -> None:
    """Write a model's state dict as safetensors, whole or not at all.

    Args:
        model: Any module.
        path: Ends in .safetensors; an existing file is replaced.
        store: Kernels and matrices as fp32, as fp16, or as 8-bit integers with a scale for every output
            channel, `NAME.scale`. Vectors (batch-norm statistics, biases) stay fp32: they are small, and a
            running variance may lie below what fp16 can hold.
        metadata: Text entries for the file's header.

    Raises:
        UserError: The name has another suffix, the file cannot be written, or a weight exceeds fp16.
    """
    path = Path(path)
    if path.suffix != ".safetensors":
        raise UserError(f"Weights are written as .safetensors, and {path} ends otherwise.")
    tensors: dict[str, Tensor] = {}
    for key, value in model.state_dict().items():
        tensors |= _stored(key, value, store)
    write_tensors(tensors, path, metadata)


def write_tensors(
    tensors: Mapping[str, Tensor], path: Path, metadata: Mapping[str, str] | None = None
) -> None:
    """Write tensors as safetensors beside `path` and rename, so that no reader meets half a file.

    Raises:
        UserError: The file cannot be written.
    """
    partial = path.with_name(path.name + ".partial")
    try:
        safetensors.torch.save_file(dict(tensors), partial, {"format": "pt", **(metadata or {})})
        partial.replace(path)
    except (OSError, safetensors.SafetensorError) as error:
        partial.unlink(missing_ok=True)
        raise UserError(f"{path} cannot be written: {one_line(error)}.") from error


def _stored(name: str, value: Tensor, store: Store) -> dict[str, Tensor]:
    value = value.detach().cpu().clone().contiguous()  # a clone, since safetensors refuses shared memory
    if store == "fp32" or not value.is_floating_point() or value.ndim < 2:
        return {name: value}
    if store == "int8":
        scale = value.abs().flatten(1).amax(1).clamp_min(torch.finfo(torch.float32).tiny) / LARGEST
        scale = scale.reshape(-1, *[1] * (value.ndim - 1))
        return {name: (value / scale).round().to(torch.int8), name + SCALE: scale}
    if float(value.abs().max()) > torch.finfo(torch.float16).max:
        raise UserError(f"The weight {name} exceeds the range of fp16: store it as fp32 or int8.")
    return {name: value.half()}

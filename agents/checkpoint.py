"""A searcher's state in one file: arrays as safetensors, everything else as JSON in its header. No pickle."""

import json
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save

from amc.errors import UserError
from amc.files import write_atomically

CHECKPOINT_FOLDER, FILE_NAME = "checkpoint", "state.safetensors"
_ARRAY = "__array__"
"""In the JSON part, `{"__array__": name}` stands for the array of that name."""


def save_checkpoint(folder: Path, state: dict[str, Any]) -> None:
    """Write a nested dictionary of NumPy arrays and JSON values.

    One file, replaced by a rename: whoever is killed at any moment leaves the old state or the new one.

    Args:
        folder: created when missing.
        state: string keys; no lists of arrays.
    """
    arrays: dict[str, np.ndarray] = {}
    header = {"state": json.dumps(_take_arrays(state, "", arrays))}
    folder.mkdir(parents=True, exist_ok=True)
    write_atomically(folder / FILE_NAME, save(arrays, metadata=header))


def load_checkpoint(folder: Path) -> dict[str, Any] | None:
    """Read what `save_checkpoint` wrote; None if there is nothing.

    Raises:
        UserError: the file is damaged.
    """
    path = folder / FILE_NAME
    if not path.exists():
        return None
    try:
        with safe_open(path, framework="np") as file:
            arrays = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
            return _put_arrays(json.loads(file.metadata()["state"]), arrays)
    except (SafetensorError, OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(
            f"{path} is damaged ({error}); delete it and the search is rebuilt from its log."
        ) from error


def _take_arrays(value: Any, name: str, arrays: dict[str, np.ndarray]) -> Any:
    if isinstance(value, dict):
        return {key: _take_arrays(each, f"{name}/{key}", arrays) for key, each in value.items()}
    if isinstance(value, np.ndarray):
        arrays[name] = np.ascontiguousarray(value) if value.ndim else value
        return {_ARRAY: name}
    return value


def _put_arrays(value: Any, arrays: dict[str, np.ndarray]) -> Any:
    if not isinstance(value, dict):
        return value
    if _ARRAY in value:
        return arrays[value[_ARRAY]]
    return {key: _put_arrays(each, arrays) for key, each in value.items()}

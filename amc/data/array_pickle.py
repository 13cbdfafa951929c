"""Read NumPy arrays out of a pickle without letting the pickle call anything."""

import pickle
from pathlib import Path
from typing import Any

import numpy as np

# Whole numbers of one to eight bytes, as dtype codes.
CODES = ("u1", "i1", "u2", "i2", "u4", "i4", "u8", "i8")


def read_arrays(path: Path) -> Any:
    """Unpickle builtin containers, text, numbers and arrays of whole numbers.

    A pickle is a program. Every function that an array's pickle names is replaced by a stand-in below, and
    any other name is refused, so not even NumPy runs on data that has not been checked. Arrays come as
    `PickledArray`; strings that Python 2 wrote come as bytes.

    Raises:
        pickle.UnpicklingError: It names anything else. Damaged files raise many other exceptions.
    """
    with path.open("rb") as file:
        return _ArrayUnpickler(file, encoding="bytes").load()


class PickledDtype:
    """Stands in for `numpy.dtype`: a kind of whole number and nothing else."""

    def __init__(self, code: str | bytes, *_: object) -> None:
        self.code = code.decode() if isinstance(code, bytes) else code
        if self.code not in CODES:
            raise pickle.UnpicklingError(f"arrays of kind {self.code!r} are not admitted")

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        if state[1] in (">", b">"):
            raise pickle.UnpicklingError("big-endian arrays are not admitted")


class PickledArray:
    """Stands in for `numpy.ndarray`; the content lies in `array` once it has been read."""

    array: np.ndarray | None = None

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        _, shape, dtype, fortran, content = state
        self.array = _array(content, dtype, shape, "F" if fortran else "C")


def _array(content: bytes, dtype: PickledDtype, shape: tuple[int, ...], order: Any) -> np.ndarray:
    return np.frombuffer(content, dtype.code).reshape(shape, order=order)


def _reconstruct(*_: object) -> PickledArray:
    """Stands in for the function that makes an empty array, which `__setstate__` then fills."""
    return PickledArray()


def _from_buffer(content: bytes, dtype: PickledDtype, shape: tuple[int, ...], order: Any) -> PickledArray:
    """Stands in for the function by which protocol 5 makes an array."""
    made = PickledArray()
    made.array = _array(content, dtype, shape, order)
    return made


def _encode(text: str, encoding: str) -> bytes:
    """Stands in for `_codecs.encode`, by which Python 3 spells bytes in old protocols."""
    if encoding not in ("latin1", b"latin1"):
        raise pickle.UnpicklingError(f"the codec {encoding!r} is not admitted")
    return text.encode("latin1")


_ADMITTED: dict[tuple[str, str], Any] = {
    ("numpy", "ndarray"): PickledArray,
    ("numpy", "dtype"): PickledDtype,
    ("_codecs", "encode"): _encode,
    # NumPy 2 moved these functions from `core` to `_core`.
    **{(f"numpy.{core}.multiarray", "_reconstruct"): _reconstruct for core in ("core", "_core")},
    **{(f"numpy.{core}.numeric", "_frombuffer"): _from_buffer for core in ("core", "_core")},
}


class _ArrayUnpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in _ADMITTED:
            raise pickle.UnpicklingError(f"it asks for {module}.{name}, and only NumPy arrays are admitted")
        return _ADMITTED[module, name]

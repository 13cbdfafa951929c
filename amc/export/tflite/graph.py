"""The TFLite graph under construction.

Tensors of rank 4 are stored [N, H, W, C], all others in the order of the traced network. A tensor that lies
on a grid is stored as int8. Where a grid has 8 bits, int8 = code - 128. Narrower grids need a clamp that
TFLite has not: a grid that starts at 0 ends at 127, so that saturation is its upper and a fused ReLU its
lower clamp; any other is first written to end at 127 and then moved to start at -128.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np

from amc.export.grid import Grid
from amc.export.tflite.flatbuffer import INT8_VERSIONS, Operation, Tensor, pack
from amc.export.tflite.ranges import in_range
from amc.export.value import Value

INPUT = "input"
NONE, RELU, RELU6 = 0, 1, 3
"""Values of the schema's ActivationFunctionType."""

FLOAT, INT8 = np.dtype(np.float32), np.dtype(np.int8)
ACTIVATIONS = {None: NONE, float("inf"): RELU, 6.0: RELU6}
FUSING = ("CONV_2D", "DEPTHWISE_CONV_2D", "FULLY_CONNECTED", "ADD", "SUB", "MUL", "DIV")
"""Operators that clip their own result."""

HIGHEST, LOWEST = 127, -128


class TfliteGraph:
    """Tensors and operations in the making; equal constants are stored once.

    Attributes:
        scope: the name of the operation being written, a prefix of the names given out.
    """

    def __init__(self) -> None:
        self.scope = ""
        self._tensors: list[Tensor] = []
        self._places: dict[str, int] = {}
        self._operations: list[Operation] = []
        self._inputs: list[str] = []
        self._constants: dict[tuple[Any, ...], Value] = {}
        self._conversions: dict[tuple[str, Grid | None], Value] = {}

    # ---- tensors

    def image(self, shape: tuple[int, ...]) -> Value:
        """The network's input."""
        value = self._new(Tensor(INPUT, stored_shape(shape), FLOAT), shape)
        self._inputs.append(value.name)
        return value

    def constant(self, array: np.ndarray) -> Value:
        """A constant as it is; floats in single precision."""
        return self.stored(array.astype(np.float32) if array.dtype.kind == "f" else array)

    def integers(self, *numbers: int) -> Value:
        """A constant int32 vector, what TFLite wants for shapes, axes and pads."""
        return self.stored(np.array(numbers, np.int32))

    def stored(self, array: np.ndarray, scale: np.ndarray | None = None, axis: int = 0) -> Value:
        """A constant in the file's own layout; the same content is stored once, whoever asks for it."""
        scales = None if scale is None else scale.tobytes()
        key = (array.dtype.str, array.shape, array.tobytes(), scales, axis)
        if key not in self._constants:
            tensor = Tensor(self._unique("constant"), array.shape, array.dtype, scale, 0, axis, array)
            self._constants[key] = self._new(tensor, array.shape)
        return self._constants[key]

    def content(self, value: Value) -> np.ndarray | None:
        """What a constant holds; None for a computed tensor."""
        return self._tensor(value).data

    def scale_of(self, value: Value) -> float:
        """The step between two codes of a stored tensor, in single precision as the runtime reads it."""
        assert value.grid is not None
        return float(np.float32(value.grid.scale))

    # ---- operations

    def add(
        self,
        op: str,
        *inputs: Value,
        shape: tuple[int, ...],
        grid: Grid | None = None,
        clip: float | None = None,
        **settings: Any,
    ) -> Value:
        """Append an operation with one result.

        Args:
            op: name in the schema.
            inputs: stored as the operator wants them.
            shape: of the result in the traced network, batch first.
            grid: what the result lies on, or None for floats.
            clip: for operators that clip their result to [0, clip].
            settings: as the schema calls them.
        """
        if op in FUSING:
            settings["fusedActivationFunction"] = ACTIVATIONS[clip]
        if grid is None or grid.bits == 8:
            return self._append(op, inputs, shape, grid, zero_point(grid), settings)
        if grid.zero_point:
            ending = self._append(op, inputs, shape, grid, top_zero_point(grid), settings)
            return self._scaled(ending, grid)
        if op in FUSING:
            settings["fusedActivationFunction"] = settings["fusedActivationFunction"] or RELU
            return self._append(op, inputs, shape, grid, zero_point(grid), settings)
        return self._scaled(self._append(op, inputs, shape, grid, zero_point(grid), settings), grid, RELU)

    def move(
        self,
        op: str,
        source: Value,
        *others: Value,
        shape: tuple[int, ...],
        stored: tuple[int, ...] | None = None,
        **settings: Any,
    ) -> Value:
        """Append an operation whose result holds elements of `source`, hence the same codes.

        Args:
            op, settings: as for `add`.
            source, others: what it reads.
            shape: of the result in the traced network.
            stored: its shape in the file, where it is not the usual one.
        """
        zero = self._tensor(source).zero_point
        return self._append(op, (source, *others), shape, source.grid, zero, settings, stored)

    def floats(self, value: Value) -> Value:
        """The tensor in 32-bit floats."""
        if value.grid is None:
            return value
        key = (value.name, None)
        if key not in self._conversions:
            self._conversions[key] = self.add("DEQUANTIZE", value, shape=value.shape)
        return self._conversions[key]

    def dequantized(self, constant: Value) -> Value:
        """A constant of codes, read back as floats; LiteRT does that once, when it loads the file."""
        key = (constant.name, None)
        if key not in self._conversions:
            tensor = Tensor(self._unique(self.scope), constant.shape, FLOAT)
            result = self._new(tensor, constant.shape)
            self._conversions[key] = self._emit("DEQUANTIZE", (constant,), result, {})
        return self._conversions[key]

    def codes(self, value: Value, grid: Grid) -> Value:
        """The tensor as codes of a grid."""
        if value.grid == grid:
            return value
        key = (value.name, grid)
        if key not in self._conversions:
            if value.grid and in_range("MUL", value.grid.scale / grid.scale):
                result = self.add("MUL", value, self._one(), shape=value.shape, grid=grid)
            else:
                result = self.add("QUANTIZE", self.floats(value), shape=value.shape, grid=grid)
            self._conversions[key] = result
        return self._conversions[key]

    def finish(self, outputs: list[Value], metadata: Mapping[str, str]) -> bytes:
        """The file; its outputs are floats."""
        results = [self.floats(value).name for value in outputs]
        inputs, outs = ([self._places[name] for name in names] for names in (self._inputs, results))
        return pack(self._tensors, self._operations, inputs, outs, metadata)

    # ---- inside

    def _scaled(self, value: Value, grid: Grid, activation: int = NONE) -> Value:
        """The product with 1: a step to another grid that rounds as the simulation does.

        QUANTIZE from int8 to int8 would be the obvious operator, but XNNPACK's gives a neighbouring code now
        and then (2 % of the values for a ratio of 0.0311 to 0.0197).
        """
        settings = {"fusedActivationFunction": activation}
        return self._append("MUL", (value, self._one()), value.shape, grid, zero_point(grid), settings)

    def _one(self) -> Value:
        return self.stored(np.ones((1,), np.int8), np.ones(1, np.float32))

    def _append(
        self,
        op: str,
        inputs: tuple[Value, ...],
        shape: tuple[int, ...],
        grid: Grid | None,
        zero: int,
        settings: dict[str, Any],
        stored: tuple[int, ...] | None = None,
    ) -> Value:
        scale = None if grid is None else np.array([grid.scale], np.float32)
        dtype = FLOAT if grid is None else INT8
        tensor = Tensor(self._unique(self.scope), stored or stored_shape(shape), dtype, scale, zero)
        return self._emit(op, inputs, self._new(tensor, shape, grid), settings)

    def _emit(self, op: str, inputs: tuple[Value, ...], result: Value, settings: dict[str, Any]) -> Value:
        version = INT8_VERSIONS.get(op, 1) if self._tensor(inputs[0]).dtype == INT8 else 1
        places = tuple(self._places[value.name] for value in inputs)
        self._operations.append(Operation(op, places, (self._places[result.name],), settings, version))
        return result

    def _new(self, tensor: Tensor, shape: tuple[int, ...], grid: Grid | None = None) -> Value:
        self._places[tensor.name] = len(self._tensors)
        self._tensors.append(tensor)
        return Value(tensor.name, shape, grid)

    def _tensor(self, value: Value) -> Tensor:
        return self._tensors[self._places[value.name]]

    def _unique(self, base: str) -> str:
        # Names of fx nodes have no dots: what is given out here meets none of them, nor `input`.
        return f"{base}.{len(self._tensors)}"


def stored_shape(shape: tuple[int, ...]) -> tuple[int, ...]:
    """The shape in the file of a tensor [N, ...] of the traced network: one image, channels last."""
    return (1, *shape[2:], shape[1]) if len(shape) == 4 else (1, *shape[1:])


def stored_axis(axis: int, rank: int) -> int:
    """Where an axis of the traced network lies in the file."""
    axis %= rank
    return (0, 3, 1, 2)[axis] if rank == 4 else axis


def zero_point(grid: Grid | None) -> int:
    """The int8 that means 0."""
    if grid is None:
        return 0
    return grid.zero_point + LOWEST if grid.bits == 8 or grid.zero_point else top_zero_point(grid)


def top_zero_point(grid: Grid) -> int:
    """The int8 that means 0 where the grid's last code is 127."""
    return grid.zero_point + HIGHEST - (2**grid.bits - 1)

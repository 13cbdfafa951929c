"""The ONNX graph under construction."""

from dataclasses import replace
from typing import Any

import numpy as np
import onnx
from onnx import helper, numpy_helper

from amc.export.grid import Grid
from amc.export.value import Value

INPUT = "input"

OPSET = 17
IR_VERSION = 8
"""The oldest pair that has everything needed here, so that older phone runtimes read the files too."""


class OnnxGraph:
    """Nodes and initialisers in the making; equal initialisers are stored once.

    Attributes:
        scope: the name of the operation being written, a prefix of the names given out.
        images: the network's input.
    """

    def __init__(self) -> None:
        self.scope = ""
        self.nodes: list[onnx.NodeProto] = []
        self.initializers: list[onnx.TensorProto] = []
        self.images: list[Value] = []
        self._by_content: dict[tuple[str, tuple[int, ...], bytes], Value] = {}
        self._names: dict[str, int] = {}
        self._quantized: dict[tuple[str, Grid], Value] = {}

    def image(self, shape: tuple[int, ...]) -> Value:
        """The network's input."""
        self.images.append(Value(INPUT, shape))
        return self.images[-1]

    def add(self, op: str, *inputs: Value, **attributes: Any) -> Value:
        """Append a node with one output; attributes that are None are left out."""
        return self.add_many(op, *inputs, outputs=1, **attributes)[0]

    def add_many(self, op: str, *inputs: Value, outputs: int, **attributes: Any) -> tuple[Value, ...]:
        """Append a node with several outputs."""
        names = [self._unique(self.scope) for _ in range(outputs)]
        given = {key: value for key, value in attributes.items() if value is not None}
        self.nodes.append(helper.make_node(op, [value.name for value in inputs], names, **given))
        return tuple(Value(name) for name in names)

    def constant(self, array: np.ndarray) -> Value:
        """An initialiser; the same content is stored once, whoever asks for it."""
        key = (array.dtype.str, array.shape, array.tobytes())
        if key not in self._by_content:
            self._by_content[key] = self.own_constant(array)
        return self._by_content[key]

    def own_constant(self, array: np.ndarray) -> Value:
        """An initialiser that nobody else gets, whatever it holds."""
        name = self._unique("c")
        self.initializers.append(numpy_helper.from_array(array, name))
        return Value(name, array.shape)

    def integers(self, *numbers: int) -> Value:
        """A constant int64 vector, what ONNX wants for shapes, axes and pads."""
        return self.constant(np.array(numbers, dtype=np.int64))

    def scalar(self, number: float) -> Value:
        """A constant float of rank 0."""
        return self.constant(np.array(number, dtype=np.float32))

    def quantize(self, value: Value, grid: Grid) -> Value:
        """A QuantizeLinear and DequantizeLinear pair, written once for a tensor and a grid."""
        if value.stored and value.grid == grid:
            return value
        key = (value.name, grid)
        if key not in self._quantized:
            self._quantized[key] = replace(self._pair(value, grid), shape=value.shape)
        return self._quantized[key]

    def operand(self, value: Value) -> Value:
        """The value as int8 kernels recognise it: behind a DequantizeLinear if it lies on a grid."""
        return value if value.grid is None else self.quantize(value, value.grid)

    def _pair(self, value: Value, grid: Grid) -> Value:
        # Rank 0, not one element: a 1-element array keeps ONNX Runtime from fusing the residual add.
        scale, zero = self.scalar(grid.scale), self._code(grid.zero_point)
        codes = self.add("QuantizeLinear", value, scale, zero)
        if grid.bits < 8:
            # On the codes, not on the floats in front of QuantizeLinear: there it would stand between a
            # convolution and its quantization and keep ONNX Runtime from an int8 kernel (ResNet-20 with
            # 4-bit activations: 1.25 ms, against 0.66 ms this way).
            codes = self.add("Clip", codes, self._code(0), self._code(2**grid.bits - 1))
        return replace(self.add("DequantizeLinear", codes, scale, zero), grid=grid, stored=True)

    def _code(self, code: int) -> Value:
        return self.constant(np.array(code, dtype=np.uint8))

    def _unique(self, base: str) -> str:
        # Names of fx nodes have no dots: what is given out here meets none of them, nor `input` or `output`.
        count = self._names.get(base, 0)
        self._names[base] = count + 1
        return f"{base}.{count}"

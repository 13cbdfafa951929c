"""The bytes of a .tflite file, from a list of tensors and a list of operations.

The layout is that of tensorflow/lite/schema/schema.fbs, through the classes that ai-edge-litert generates
from it.
"""

import functools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from types import ModuleType
from typing import Any

import numpy as np

from amc.errors import UserError

FILE_IDENTIFIER = b"TFL3"
SCHEMA_VERSION = 3
ALIGNMENT = 16
"""Bytes; what the schema promises to those that read constants in place."""
SMALL_CODES = 127
"""Operators up to this number also stand in the byte that the first runtimes read."""

OPTIONS = {
    "CONV_2D": "Conv2DOptions",
    "DEPTHWISE_CONV_2D": "DepthwiseConv2DOptions",
    "FULLY_CONNECTED": "FullyConnectedOptions",
    "ADD": "AddOptions",
    "SUB": "SubOptions",
    "MUL": "MulOptions",
    "DIV": "DivOptions",
    "AVERAGE_POOL_2D": "Pool2DOptions",
    "MAX_POOL_2D": "Pool2DOptions",
    "MEAN": "ReducerOptions",
    "CONCATENATION": "ConcatenationOptions",
    "RESHAPE": "ReshapeOptions",
    "STRIDED_SLICE": "StridedSliceOptions",
    "SOFTMAX": "SoftmaxOptions",
    "LEAKY_RELU": "LeakyReluOptions",
}
"""Operators with settings, and the table that holds them."""

INT8_VERSIONS = {
    "CONV_2D": 3,
    "DEPTHWISE_CONV_2D": 3,
    "FULLY_CONNECTED": 4,
    "ADD": 2,
    "SUB": 3,
    "MUL": 2,
    "MAX_POOL_2D": 2,
    "MEAN": 2,
    "CONCATENATION": 2,
    "PAD": 2,
    "PADV2": 2,
    "STRIDED_SLICE": 2,
    "TRANSPOSE": 2,
    "DEQUANTIZE": 2,
}
"""The first version of an operator that reads int8; a runtime that lacks it says so instead of computing."""


@dataclass(frozen=True)
class Tensor:
    """A tensor of the file.

    Attributes:
        name: unique in the file.
        shape: as stored.
        dtype: float32, int8 or int32.
        scale: [1] or [channels], of integers that stand for (integer - zero_point) * scale; None otherwise.
        zero_point: of all channels.
        axis: that of the channels, if there are several scales.
        data: its content, of a constant.
    """

    name: str
    shape: tuple[int, ...]
    dtype: np.dtype
    scale: np.ndarray | None = None
    zero_point: int = 0
    axis: int = 0
    data: np.ndarray | None = None


@dataclass(frozen=True)
class Operation:
    """A built-in operator, the tensors that it reads and writes, and its settings by the schema's names."""

    op: str
    inputs: tuple[int, ...]
    outputs: tuple[int, ...]
    settings: Mapping[str, Any] = field(default_factory=dict)
    version: int = 1


@functools.cache
def schema() -> ModuleType:
    """The generated classes of the file format; raises UserError if ai-edge-litert is not installed."""
    try:
        from ai_edge_litert import schema_py_generated
    except ImportError as error:
        raise UserError(
            'Writing a .tflite file needs a package: pip install "amc-compress[litert]".'
        ) from error
    return schema_py_generated


def pack(
    tensors: Sequence[Tensor],
    operations: Sequence[Operation],
    inputs: Sequence[int],
    outputs: Sequence[int],
    metadata: Mapping[str, str],
) -> bytes:
    """A whole file.

    Args:
        tensors: operations name them by their places in this list.
        operations: in the order in which they run.
        inputs, outputs: of the network.
        metadata: UTF-8 texts by name.

    Raises:
        UserError: ai-edge-litert is not installed.
    """
    import flatbuffers

    s = schema()
    model = s.ModelT(version=SCHEMA_VERSION, description="amc")
    model.buffers = [s.BufferT()]  # the first buffer means "no data"
    codes = list(dict.fromkeys((operation.op, operation.version) for operation in operations))
    model.operatorCodes = [_operator_code(op, version) for op, version in codes]
    graph = s.SubGraphT(inputs=list(inputs), outputs=list(outputs), name="network")
    graph.tensors = [_tensor(tensor, model.buffers) for tensor in tensors]
    graph.operators = [_operator(operation, codes) for operation in operations]
    model.subgraphs = [graph]
    model.metadata = [
        s.MetadataT(key, _buffer(text.encode(), model.buffers)) for key, text in metadata.items()
    ]
    builder = flatbuffers.Builder(sum(0 if b.data is None else len(b.data) for b in model.buffers) + 2**16)
    builder.Finish(model.Pack(builder), FILE_IDENTIFIER)
    return bytes(builder.Output())


def _buffer(content: bytes, buffers: list[Any]) -> int:
    """Append a constant's bytes and return their place."""
    buffers.append(_aligned_buffer()(content))
    return len(buffers) - 1


@functools.cache
def _aligned_buffer() -> type:
    """A BufferT that keeps the schema's promise of alignment and copies its bytes at once."""
    s = schema()

    class AlignedBuffer(s.BufferT):  # type: ignore[name-defined]
        def Pack(self, builder: Any) -> int:
            builder.StartVector(1, len(self.data), ALIGNMENT)
            builder.head = start = builder.Head() - len(self.data)
            builder.Bytes[start : start + len(self.data)] = self.data
            data = builder.EndVector()
            s.BufferStart(builder)
            s.BufferAddData(builder, data)
            return s.BufferEnd(builder)

    return AlignedBuffer


def _tensor(tensor: Tensor, buffers: list[Any]) -> Any:
    s = schema()
    data = None if tensor.data is None else np.ascontiguousarray(tensor.data).tobytes()
    packed = s.TensorT(
        shape=np.array(tensor.shape, np.int32),
        type=getattr(s.TensorType, tensor.dtype.name.upper()),
        buffer=0 if data is None else _buffer(data, buffers),
        name=tensor.name,
        hasRank=True,
    )
    if tensor.scale is not None:
        packed.quantization = s.QuantizationParametersT(
            scale=tensor.scale.astype(np.float32),
            zeroPoint=np.full(len(tensor.scale), tensor.zero_point, np.int64),
            quantizedDimension=tensor.axis,
        )
    return packed


def _operator_code(op: str, version: int) -> Any:
    s = schema()
    code = getattr(s.BuiltinOperator, op)
    return s.OperatorCodeT(min(code, SMALL_CODES), None, version, code)


def _operator(operation: Operation, codes: list[tuple[str, int]]) -> Any:
    s = schema()
    place = codes.index((operation.op, operation.version))
    packed = s.OperatorT(place, list(operation.inputs), list(operation.outputs))
    if operation.op in OPTIONS:
        name = OPTIONS[operation.op]
        packed.builtinOptionsType = getattr(s.BuiltinOptions, name)
        packed.builtinOptions = getattr(s, f"{name}T")(**operation.settings)
    return packed

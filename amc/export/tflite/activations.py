"""Element-wise operations: activation functions, quantization points and arithmetic."""

import operator
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F

from amc.export.grid import Grid, grid_of
from amc.export.registry import Call
from amc.export.tflite.graph import TfliteGraph
from amc.export.tflite.ranges import in_range
from amc.export.tflite.registry import handles
from amc.export.value import Value
from amc.quantization.modules import ActivationQuantizer

ADD = (operator.add, operator.iadd, torch.add, "add", "add_")
SUB = (operator.sub, operator.isub, torch.sub, "sub", "sub_")
MUL = (operator.mul, operator.imul, torch.mul, "mul", "mul_")
DIV = (operator.truediv, operator.itruediv, torch.div, "div", "div_")


@handles(ActivationQuantizer)
def quantization_point(g: TfliteGraph, call: Call) -> Value:
    """An enabled quantization point; mostly the operation in front has given these codes already."""
    assert isinstance(call.module, ActivationQuantizer)
    return g.codes(call.x, grid_of(call.module))


@handles(nn.ReLU, F.relu, F.relu_, torch.relu, torch.relu_, "relu", "relu_")
def relu(g: TfliteGraph, call: Call) -> Value:
    """max(x, 0), where no operator could take it in."""
    return g.add("RELU", g.floats(call.x), shape=call.shape)


@handles(nn.ReLU6, F.relu6)
def relu6(g: TfliteGraph, call: Call) -> Value:
    """min(max(x, 0), 6)."""
    return g.add("RELU6", g.floats(call.x), shape=call.shape)


@handles(nn.Hardtanh, F.hardtanh)
def hardtanh(g: TfliteGraph, call: Call) -> Value:
    """Clipping to an interval."""
    return _clipped(g, call, call.get("min_val", 1, -1.0), call.get("max_val", 2, 1.0))


@handles(torch.clamp, torch.clip, "clamp", "clamp_", "clip")
def clamp(g: TfliteGraph, call: Call) -> Value:
    """Clipping between two numbers, either of which may be missing."""
    low, high = call.get("min", 1), call.get("max", 2)
    call.require(not isinstance(low, Value) and not isinstance(high, Value), "between tensors")
    return _clipped(g, call, low, high)


def _clipped(g: TfliteGraph, call: Call, low: float | None, high: float | None) -> Value:
    x = g.floats(call.x)
    for op, bound in (("MAXIMUM", low), ("MINIMUM", high)):
        if bound is not None:
            x = g.add(op, x, _number(g, bound), shape=call.shape)
    return x


@handles(nn.Sigmoid, F.sigmoid, torch.sigmoid, "sigmoid")
def sigmoid(g: TfliteGraph, call: Call) -> Value:
    """1 / (1 + exp(-x))."""
    return g.add("LOGISTIC", g.floats(call.x), shape=call.shape)


@handles(nn.Tanh, F.tanh, torch.tanh, "tanh")
def tanh(g: TfliteGraph, call: Call) -> Value:
    """The hyperbolic tangent."""
    return g.add("TANH", g.floats(call.x), shape=call.shape)


@handles(nn.SiLU, F.silu)
def silu(g: TfliteGraph, call: Call) -> Value:
    """The product of x and sigmoid(x)."""
    x = g.floats(call.x)
    return g.add("MUL", x, g.add("LOGISTIC", x, shape=call.shape), shape=call.shape)


@handles(nn.Hardsigmoid, F.hardsigmoid)
def hardsigmoid(g: TfliteGraph, call: Call) -> Value:
    """min(max(x + 3, 0), 6) / 6."""
    shifted = g.add("ADD", g.floats(call.x), _number(g, 3.0), shape=call.shape, clip=6.0)
    return g.add("MUL", shifted, _number(g, 1 / 6), shape=call.shape)


@handles(nn.Hardswish, F.hardswish)
def hardswish(g: TfliteGraph, call: Call) -> Value:
    """The product of x and hardsigmoid(x)."""
    return g.add("HARD_SWISH", g.floats(call.x), shape=call.shape)


@handles(nn.LeakyReLU, F.leaky_relu)
def leaky_relu(g: TfliteGraph, call: Call) -> Value:
    """The identity where x is positive, slope * x elsewhere."""
    slope = float(call.get("negative_slope", 1, 0.01))
    return g.add("LEAKY_RELU", g.floats(call.x), shape=call.shape, alpha=slope)


@handles(nn.Softmax, F.softmax, torch.softmax, "softmax")
def softmax(g: TfliteGraph, call: Call) -> Value:
    """Softmax along the axis that TFLite stores last."""
    axis, rank = call.get("dim", 1), len(call.shape)
    call.require(
        isinstance(axis, int) and axis % rank == (1 if rank == 4 else rank - 1), f"along axis {axis}"
    )
    return g.add("SOFTMAX", g.floats(call.x), shape=call.shape, beta=1.0)


@handles(*ADD)
def add(g: TfliteGraph, call: Call) -> Value:
    """Sum of two tensors or of a tensor and a number."""
    call.require(call.kwargs.get("alpha", 1) == 1, "with alpha")
    return _binary(g, call, "ADD")


@handles(*SUB)
def sub(g: TfliteGraph, call: Call) -> Value:
    """Difference."""
    call.require(call.kwargs.get("alpha", 1) == 1, "with alpha")
    return _binary(g, call, "SUB")


@handles(*MUL)
def mul(g: TfliteGraph, call: Call) -> Value:
    """Product."""
    return _binary(g, call, "MUL")


@handles(*DIV)
def div(g: TfliteGraph, call: Call) -> Value:
    """Quotient."""
    call.require(call.kwargs.get("rounding_mode") is None, "with rounding")
    return _binary(g, call, "DIV")


def _binary(g: TfliteGraph, call: Call, op: str) -> Value:
    """An operation on two operands: in int8 if both and the result lie on grids, otherwise in floats."""
    given = (*call.args, *(call.kwargs[k] for k in ("input", "other") if k in call.kwargs))
    operands = [_operand(g, call, value) for value in given]
    grid = call.ending.grid if _fits(op, operands, call.ending.grid) else None
    if grid is None:
        operands = [g.floats(value) for value in operands]
    return g.add(op, *operands, shape=call.shape, grid=grid, clip=call.ending.clip)


def _fits(op: str, operands: list[Value], result: Grid | None) -> bool:
    """Whether there is an int8 kernel for these operands and this result."""
    scales = [value.grid.scale for value in operands if value.grid is not None]
    if result is None or op == "DIV" or len(scales) < len(operands):
        return False
    computed = [np.prod(scales)] if op == "MUL" else scales
    return in_range(op, np.array(computed) / result.scale)


def _operand(g: TfliteGraph, call: Call, value: Any) -> Value:
    """A tensor or number that broadcasts in the file as it does in the traced network."""
    if not isinstance(value, Value):
        return _number(g, float(value))
    array, rank = g.content(value), len(call.shape)
    if array is None:
        call.require(len(value.shape) == rank, "of tensors of different ranks")
        return value
    array = array.reshape((1,) * (rank - array.ndim) + array.shape)
    return g.constant(array.transpose(0, 2, 3, 1) if rank == 4 else array)


def _number(g: TfliteGraph, number: float) -> Value:
    return g.constant(np.array([number], np.float32))

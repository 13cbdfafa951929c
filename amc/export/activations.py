"""Element-wise operations: activation functions, quantization points and arithmetic."""

import math
import operator
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F

from amc.export.graph import OnnxGraph
from amc.export.grid import grid_of
from amc.export.registry import Call, handles
from amc.export.value import Value
from amc.quantization.modules import ActivationQuantizer


@handles(ActivationQuantizer)
def quantization_point(g: OnnxGraph, call: Call) -> Value:
    """An enabled quantization point."""
    assert isinstance(call.module, ActivationQuantizer)
    return g.quantize(call.x, grid_of(call.module))


@handles(nn.ReLU, F.relu, F.relu_, torch.relu, torch.relu_, "relu", "relu_")
def relu(g: OnnxGraph, call: Call) -> Value:
    """max(x, 0); 0 lies on every grid, so the result stays on its source's."""
    return replace(g.add("Relu", g.operand(call.x)), grid=call.x.grid)


@handles(nn.ReLU6, F.relu6)
def relu6(g: OnnxGraph, call: Call) -> Value:
    """min(max(x, 0), 6)."""
    return g.add("Clip", g.operand(call.x), g.scalar(0.0), g.scalar(6.0))


@handles(nn.Hardtanh, F.hardtanh)
def hardtanh(g: OnnxGraph, call: Call) -> Value:
    """Clipping to an interval."""
    low, high = call.get("min_val", 1, -1.0), call.get("max_val", 2, 1.0)
    return g.add("Clip", g.operand(call.x), g.scalar(low), g.scalar(high))


@handles(torch.clamp, torch.clip, "clamp", "clamp_", "clip")
def clamp(g: OnnxGraph, call: Call) -> Value:
    """Clipping between two numbers, either of which may be missing."""
    low, high = call.get("min", 1), call.get("max", 2)
    call.require(not isinstance(low, Value) and not isinstance(high, Value), "between tensors")
    low, high = -np.inf if low is None else low, np.inf if high is None else high
    return g.add("Clip", g.operand(call.x), g.scalar(low), g.scalar(high))


@handles(nn.Sigmoid, F.sigmoid, torch.sigmoid, "sigmoid")
def sigmoid(g: OnnxGraph, call: Call) -> Value:
    """1 / (1 + exp(-x))."""
    return g.add("Sigmoid", g.operand(call.x))


@handles(nn.Tanh, F.tanh, torch.tanh, "tanh")
def tanh(g: OnnxGraph, call: Call) -> Value:
    """The hyperbolic tangent."""
    return g.add("Tanh", g.operand(call.x))


@handles(nn.SiLU, F.silu)
def silu(g: OnnxGraph, call: Call) -> Value:
    """The product of x and sigmoid(x)."""
    x = g.operand(call.x)
    return g.add("Mul", x, g.add("Sigmoid", x))


@handles(nn.Hardsigmoid, F.hardsigmoid)
def hardsigmoid(g: OnnxGraph, call: Call) -> Value:
    """clip(x / 6 + 1 / 2, 0, 1); ONNX's default slope is another one."""
    return g.add("HardSigmoid", g.operand(call.x), alpha=1 / 6, beta=0.5)


@handles(nn.Hardswish, F.hardswish)
def hardswish(g: OnnxGraph, call: Call) -> Value:
    """The product of x and hardsigmoid(x)."""
    return g.add("HardSwish", g.operand(call.x))


@handles(nn.GELU, F.gelu)
def gelu(g: OnnxGraph, call: Call) -> Value:
    """X times the normal distribution function, exact or by its hyperbolic tangent."""
    x = g.operand(call.x)
    if call.get("approximate", 1, "none") == "tanh":
        cubic = g.add("Mul", g.add("Mul", g.add("Mul", x, x), x), g.scalar(0.044715))
        inner = g.add("Mul", g.add("Add", x, cubic), g.scalar(math.sqrt(2 / math.pi)))
        share = g.add("Tanh", inner)
    else:
        share = g.add("Erf", g.add("Div", x, g.scalar(math.sqrt(2))))
    return g.add("Mul", g.add("Mul", x, g.add("Add", share, g.scalar(1.0))), g.scalar(0.5))


@handles(nn.LeakyReLU, F.leaky_relu)
def leaky_relu(g: OnnxGraph, call: Call) -> Value:
    """The identity where x is positive, slope * x elsewhere."""
    return g.add("LeakyRelu", g.operand(call.x), alpha=float(call.get("negative_slope", 1, 0.01)))


@handles(nn.Softmax, F.softmax, torch.softmax, "softmax")
def softmax(g: OnnxGraph, call: Call) -> Value:
    """Softmax along one axis."""
    axis = call.get("dim", 1)
    call.require(isinstance(axis, int), "without an axis")
    return g.add("Softmax", g.operand(call.x), axis=axis)


@handles(operator.add, operator.iadd, torch.add, "add", "add_")
def add(g: OnnxGraph, call: Call) -> Value:
    """Sum of two tensors or of a tensor and a number."""
    call.require(call.kwargs.get("alpha", 1) == 1, "with alpha")
    return _binary(g, call, "Add")


@handles(operator.sub, operator.isub, torch.sub, "sub", "sub_")
def sub(g: OnnxGraph, call: Call) -> Value:
    """Difference."""
    call.require(call.kwargs.get("alpha", 1) == 1, "with alpha")
    return _binary(g, call, "Sub")


@handles(operator.mul, operator.imul, torch.mul, "mul", "mul_")
def mul(g: OnnxGraph, call: Call) -> Value:
    """Product."""
    return _binary(g, call, "Mul")


@handles(operator.truediv, operator.itruediv, torch.div, "div", "div_")
def div(g: OnnxGraph, call: Call) -> Value:
    """Quotient."""
    call.require(call.kwargs.get("rounding_mode") is None, "with rounding")
    return _binary(g, call, "Div")


def _binary(g: OnnxGraph, call: Call, op: str) -> Value:
    left, right = (*call.args, *(call.kwargs[k] for k in ("input", "other") if k in call.kwargs))
    return g.add(op, _operand(g, left), _operand(g, right))


def _operand(g: OnnxGraph, value: Any) -> Value:
    return g.operand(value) if isinstance(value, Value) else g.scalar(float(value))

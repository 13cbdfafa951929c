"""Convolution, linear layer and batch norm, plain or with quantized weights."""

import numpy as np
from torch import Tensor, nn
from torch.nn import functional as F

from amc.export import folding
from amc.export.graph import OnnxGraph
from amc.export.registry import Call, handles
from amc.export.value import Value
from amc.quantization.modules import QuantizedConv2d, QuantizedLinear, UniformWeightQuantizer


@handles(nn.Conv2d, QuantizedConv2d)
def conv2d(g: OnnxGraph, call: Call) -> Value:
    """A convolution with the batch norm behind it."""
    layer = call.module
    assert isinstance(layer, nn.Conv2d)
    call.require(layer.padding_mode == "zeros", f"with {layer.padding_mode} padding")
    left, right, top, bottom = layer._reversed_padding_repeated_twice
    x = g.operand(call.x)
    return g.add(
        "Conv",
        x,
        *parameters(g, call, x),
        kernel_shape=layer.kernel_size,
        strides=layer.stride if layer.stride != (1, 1) else None,
        dilations=layer.dilation if layer.dilation != (1, 1) else None,
        pads=(top, left, bottom, right) if any((top, left, bottom, right)) else None,
        group=layer.groups if layer.groups != 1 else None,
    )


@handles(nn.Linear, QuantizedLinear)
def linear(g: OnnxGraph, call: Call) -> Value:
    """A linear layer on [N, ..., in]."""
    x = g.operand(call.x)
    if len(call.shape) != 2:
        return _linear_of_rows(g, call, x)
    return g.add("Gemm", x, *parameters(g, call, x), transB=1)


def _linear_of_rows(g: OnnxGraph, call: Call, x: Value) -> Value:
    layer = call.module
    assert isinstance(layer, nn.Linear)
    plain = not isinstance(layer, QuantizedLinear)
    call.require(plain, "with quantized weights of a tensor that is not a matrix")
    product = g.add("MatMul", x, g.constant(np.ascontiguousarray(layer.weight.detach().cpu().numpy().T)))
    if layer.bias is None:
        return product
    return g.add("Add", product, g.constant(layer.bias.detach().cpu().numpy()))


def parameters(g: OnnxGraph, call: Call, x: Value) -> list[Value]:
    """Weight and bias (if any) of a layer as the graph holds them."""
    layer = call.module
    assert isinstance(layer, nn.Conv2d | nn.Linear)
    affine = folding.batch_norm_affine(call.batch_norm, layer.weight.shape[0])
    bias = folding.fold_bias(layer.bias, affine)
    if isinstance(layer, QuantizedConv2d | QuantizedLinear):
        assert isinstance(layer.quantizer, UniformWeightQuantizer)  # others are floats by now
        codes = layer.quantizer.codes(layer.weight).cpu().numpy()
        scale = folding.float64(layer.quantizer.scale)
        return quantized_parameters(g, *folding.fold_codes(codes, scale, affine), bias, x)
    weight = folding.float64(layer.weight)
    weight = weight * folding.per_row(affine.factor, weight)
    return [g.constant(weight.astype(np.float32)), *float_bias(g, bias)]


def quantized_parameters(
    g: OnnxGraph, codes: np.ndarray, scale: np.ndarray, bias: np.ndarray, x: Value
) -> list[Value]:
    """A weight as int8 codes behind a DequantizeLinear, and a bias.

    On a quantized input the bias is int32 on the grid of the products, as int8 kernels want it; otherwise it
    stays a float. Rounding the bias is the only difference between the file and the simulation, so codes of
    few bits are first written on a finer grid.
    """
    if x.grid is None:
        return [dequantize(g, codes, scale), *float_bias(g, bias)]
    codes, scale, bias_codes = folding.fit_bias_grid(*folding.refine_codes(codes, scale), bias, x.grid.scale)
    weight = dequantize(g, codes, scale)
    return [weight, dequantize(g, bias_codes, scale * x.grid.scale)] if bias_codes.any() else [weight]


def float_bias(g: OnnxGraph, bias: np.ndarray) -> list[Value]:
    """A bias [out] unless it is zero."""
    return [g.constant(bias.astype(np.float32))] if bias.any() else []


def dequantize(g: OnnxGraph, codes: np.ndarray, scale: np.ndarray) -> Value:
    """Constant codes [out, ...] with one scale [out] a row, read back as floats.

    The zero points are zeros, but ONNX Runtime needs to see them to run a Gemm in int8. Each layer has its
    own: OpenVINO runs a convolution in floats that shares them with a linear layer, as one with as many
    channels as there are classes did (four layers of ResNet-20 with 10 channels: 1.5 times the latency).
    """
    zeros = g.own_constant(np.zeros(len(scale), dtype=codes.dtype))
    return g.add("DequantizeLinear", g.constant(codes), g.constant(scale.astype(np.float32)), zeros, axis=0)


@handles(nn.LayerNorm, F.layer_norm)
def layer_norm(g: OnnxGraph, call: Call) -> Value:
    """A layer norm over the last axes."""
    shape, eps = call.get("normalized_shape", 1), float(call.get("eps", 4, 1e-5))
    weight, bias = (_held(g, call.get(name, at)) for name, at in (("weight", 2), ("bias", 3)))
    if weight is None:
        weight = g.constant(np.ones(tuple(shape), np.float32))
    given = [g.operand(call.x), weight, *([] if bias is None else [bias])]
    return g.add("LayerNormalization", *given, axis=-len(shape), epsilon=eps)


def _held(g: OnnxGraph, parameter: Value | Tensor | None) -> Value | None:
    return g.constant(parameter.detach().cpu().numpy()) if isinstance(parameter, Tensor) else parameter


@handles(nn.BatchNorm1d, nn.BatchNorm2d)
def batch_norm(g: OnnxGraph, call: Call) -> Value:
    """A batch norm that no layer in front of it could take in."""
    call.require(getattr(call.module, "running_mean", None) is not None, "without running statistics")
    x = g.operand(call.x)
    affine = folding.batch_norm_affine(call.module, call.shape[1])
    shape = (-1, *([1] * (len(call.shape) - 2)))
    factor, shift = (g.constant(v.astype(np.float32).reshape(shape)) for v in (affine.factor, affine.shift))
    return g.add("Add", g.add("Mul", x, factor), shift)

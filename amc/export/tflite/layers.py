"""Convolution, linear layer and batch norm.

A layer runs in int8 where its input lies on a grid, its weight is quantized and everything that reads its
result quantizes it to one grid: TFLite has no kernel that reads int8 and gives floats. Everywhere else it
runs in floats, as the simulation does, and a quantized weight is stored as codes all the same.
"""

import numpy as np
from torch import nn

from amc.export import folding
from amc.export.grid import Grid
from amc.export.registry import Call
from amc.export.tflite.graph import TfliteGraph
from amc.export.tflite.ranges import in_range
from amc.export.tflite.registry import handles
from amc.export.tflite.windows import Window, slide
from amc.export.value import Value
from amc.graph import ChannelPad
from amc.quantization.modules import QuantizedConv2d, QuantizedLinear, UniformWeightQuantizer

CONVOLUTIONS = (nn.Conv2d, QuantizedConv2d)
LINEARS = (nn.Linear, QuantizedLinear)


@handles(*CONVOLUTIONS)
def conv2d(g: TfliteGraph, call: Call) -> Value:
    """A convolution with the batch norm behind it."""
    layer = call.module
    assert isinstance(layer, nn.Conv2d)
    call.require(layer.padding_mode == "zeros", f"with {layer.padding_mode} padding")
    depthwise = 1 < layer.groups == layer.in_channels
    x, weight, bias, grid = operands(g, call, 3 if depthwise else 0)
    left, right, top, bottom = layer._reversed_padding_repeated_twice
    pads = ((top, bottom), (left, right))
    x, settings = slide(g, x, Window(call.shape, layer.kernel_size, layer.stride, layer.dilation, pads))
    settings |= {"dilationHFactor": layer.dilation[0], "dilationWFactor": layer.dilation[1]}
    if depthwise:
        settings["depthMultiplier"] = layer.out_channels // layer.in_channels
    op = "DEPTHWISE_CONV_2D" if depthwise else "CONV_2D"
    return g.add(op, x, weight, bias, shape=call.shape, grid=grid, clip=call.ending.clip, **settings)


@handles(*LINEARS)
def linear(g: TfliteGraph, call: Call) -> Value:
    """A linear layer on [N, in]."""
    call.require(len(call.shape) == 2, "of a tensor that is not a matrix")
    x, weight, bias, grid = operands(g, call, 0)
    return g.add("FULLY_CONNECTED", x, weight, bias, shape=call.shape, grid=grid, clip=call.ending.clip)


@handles(ChannelPad)
def channel_pad(g: TfliteGraph, call: Call) -> Value:
    """A 1x1 convolution with weights 0 and 1, exact in floats and in codes (scale 1)."""
    layer = call.module
    assert isinstance(layer, nn.Conv2d)
    pixels = stored_weight(layer.weight.detach().cpu().numpy(), 0)
    grid = call.ending.grid or call.x.grid
    if call.x.grid is None or grid is None or not _fits(np.ones(1), call.x.grid, grid):
        grid = None
    channels = len(layer.weight)
    if grid is None:
        x, weight, bias = g.floats(call.x), g.stored(pixels), g.stored(np.zeros(channels, np.float32))
    else:
        x, weight = call.x, g.stored(pixels.astype(np.int8), np.ones(channels))
        bias = g.stored(np.zeros(channels, np.int32), np.full(channels, g.scale_of(x)))
    x, settings = slide(g, x, Window(call.shape, (1, 1), layer.stride))
    return g.add("CONV_2D", x, weight, bias, shape=call.shape, grid=grid, **settings)


def operands(g: TfliteGraph, call: Call, axis: int) -> tuple[Value, Value, Value, Grid | None]:
    """Input, weight and bias of a layer as its operator reads them, and the grid of an int8 result.

    Args:
        g: the graph.
        call: the layer.
        axis: where the stored weight has its output channels: 3 for a depthwise convolution, otherwise 0.
    """
    layer = call.module
    assert isinstance(layer, nn.Conv2d | nn.Linear)
    affine = folding.batch_norm_affine(call.batch_norm, layer.weight.shape[0])
    bias = folding.fold_bias(layer.bias, affine)
    if not isinstance(layer, QuantizedConv2d | QuantizedLinear):
        plain = folding.float64(layer.weight)
        plain = plain * folding.per_row(affine.factor, plain)
        return g.floats(call.x), g.stored(stored_weight(plain, axis)), g.constant(bias), None
    assert isinstance(layer.quantizer, UniformWeightQuantizer)  # others are floats by now
    codes = layer.quantizer.codes(layer.weight).cpu().numpy()
    codes, scale = folding.fold_codes(codes, folding.float64(layer.quantizer.scale), affine)
    if call.x.grid is None or call.ending.grid is None or not _fits(scale, call.x.grid, call.ending.grid):
        weight = g.dequantized(g.stored(stored_weight(codes, axis), scale, axis))
        return g.floats(call.x), weight, g.constant(bias), None
    return call.x, *quantized_parameters(g, codes, scale, bias, call.x, axis), call.ending.grid


def _fits(scale: np.ndarray, source: Grid, result: Grid) -> bool:
    return in_range("CONV_2D", scale * source.scale / result.scale)


def quantized_parameters(
    g: TfliteGraph, codes: np.ndarray, scale: np.ndarray, bias: np.ndarray, x: Value, axis: int
) -> tuple[Value, Value]:
    """Weight and bias of an int8 layer: int8, and int32 on the grid of the products.

    Rounding the bias is the only difference between the file and the simulation, so codes of few bits are
    first written on a finer grid.
    """
    step = g.scale_of(x)
    codes, scale, bias_codes = folding.fit_bias_grid(*folding.refine_codes(codes, scale), bias, step)
    weight = g.stored(stored_weight(codes, axis), scale, axis)
    return weight, g.stored(bias_codes, scale * step)


def stored_weight(weight: np.ndarray, axis: int) -> np.ndarray:
    """A weight as TFLite stores it: [out, H, W, in], depthwise [1, H, W, out], linear [out, in]."""
    if weight.dtype != np.int8:
        weight = weight.astype(np.float32)
    if weight.ndim == 2:
        return weight
    return weight.transpose(1, 2, 3, 0) if axis == 3 else weight.transpose(0, 2, 3, 1)


@handles(nn.BatchNorm1d, nn.BatchNorm2d)
def batch_norm(g: TfliteGraph, call: Call) -> Value:
    """A batch norm that no layer in front of it could take in."""
    call.require(getattr(call.module, "running_mean", None) is not None, "without running statistics")
    call.require(len(call.shape) in (2, 4), "of a sequence")
    affine = folding.batch_norm_affine(call.module, call.shape[1])
    scaled = g.add("MUL", g.floats(call.x), g.constant(affine.factor), shape=call.shape)
    return g.add("ADD", scaled, g.constant(affine.shift), shape=call.shape)

"""Operations that move or pool elements: pooling, reshaping, slicing, padding, joining."""

import operator
from dataclasses import replace

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F

from amc.export.arguments import mean_axes, new_order, padding, require_batch_kept, slices, tile
from amc.export.graph import OnnxGraph
from amc.export.registry import Call, handles
from amc.export.value import Value

END = 2**63 - 1
"""Slice ends here for "to the end"."""


def keeping_grid(value: Value, source: Value) -> Value:
    """A tensor whose elements are all elements of `source`, or zeros."""
    return replace(value, grid=source.grid)


@handles(nn.MaxPool2d, F.max_pool2d, torch.max_pool2d)
def max_pool(g: OnnxGraph, call: Call) -> Value:
    """Largest element of each window."""
    kernel, around = call.pair("kernel_size", 1), call.pair("padding", 3, 0)
    call.require(not call.get("return_indices", 6, False), "with indices")
    dilation, stride = call.pair("dilation", 4, 1), call.pair("stride", 2, kernel)
    ceil = bool(call.get("ceil_mode", 5, False))
    ceil = ceil and _rounds(call, dilation)
    # torch drops a last window that would start in the padding; ONNX does not say so.
    call.require(not ceil or not any(around), "with ceil_mode and padding")
    pooled = g.add(
        "MaxPool",
        g.operand(call.x),
        kernel_shape=kernel,
        strides=stride,
        pads=(*around, *around) if any(around) else None,
        dilations=dilation if dilation != (1, 1) else None,
        ceil_mode=1 if ceil else None,
    )
    return keeping_grid(pooled, call.x)


def _rounds(call: Call, dilation: tuple[int, int] = (1, 1)) -> bool:
    """Whether a pooling's windows leave pixels over, so that rounding matters."""
    kernel = call.pair("kernel_size", 1)
    stride, around = call.pair("stride", 2, kernel), call.pair("padding", 3, 0)
    sizes = zip(call.x.shape[2:], kernel, stride, around, dilation, strict=True)
    return any((n + 2 * p - d * (k - 1) - 1) % s for n, k, s, p, d in sizes)


@handles(nn.AvgPool2d, F.avg_pool2d)
def average_pool(g: OnnxGraph, call: Call) -> Value:
    """Mean of each window; a window that is the whole image becomes a global pooling."""
    kernel, around = call.pair("kernel_size", 1), call.pair("padding", 3, 0)
    call.require(not (call.get("ceil_mode", 4, False) and _rounds(call)), "with ceil_mode")
    call.require(call.get("divisor_override", 6) is None, "with divisor_override")
    if kernel == tuple(call.x.shape[2:]) and not any(around):
        return g.add("GlobalAveragePool", g.operand(call.x))
    return g.add(
        "AveragePool",
        g.operand(call.x),
        kernel_shape=kernel,
        strides=call.pair("stride", 2, kernel),
        pads=(*around, *around) if any(around) else None,
        count_include_pad=1 if any(around) and call.get("count_include_pad", 5, True) else None,
    )


@handles(nn.AdaptiveAvgPool2d, F.adaptive_avg_pool2d)
def adaptive_average_pool(g: OnnxGraph, call: Call) -> Value:
    """Mean of equal tiles; tiles of unequal size have no ONNX counterpart."""
    if call.x.shape == call.shape:
        return call.x
    if call.shape[2:] == (1, 1):
        return g.add("GlobalAveragePool", g.operand(call.x))
    kernel = tile(call)
    return g.add("AveragePool", g.operand(call.x), kernel_shape=kernel, strides=kernel)


@handles(torch.mean, "mean")
def mean(g: OnnxGraph, call: Call) -> Value:
    """Mean over axes; over both spatial ones it is a global pooling."""
    axes, keep = mean_axes(call), bool(call.get("keepdim", 2, False))
    if len(call.x.shape) != 4 or axes != [2, 3]:
        return g.add("ReduceMean", g.operand(call.x), axes=axes, keepdims=int(keep))
    pooled = g.add("GlobalAveragePool", g.operand(call.x))
    return pooled if keep else g.add("Reshape", pooled, g.integers(0, -1))


@handles(nn.Flatten, nn.Unflatten, torch.flatten, torch.reshape, torch.squeeze, torch.unsqueeze)
@handles("flatten", "unflatten", "view", "reshape", "squeeze", "unsqueeze")
def reshape(g: OnnxGraph, call: Call) -> Value:
    """Any reshaping that leaves the batch axis alone; the target shape is that seen in the trace.

    Raises:
        Unsupported: the first axis of the result is not the batch.
    """
    require_batch_kept(call)
    if call.shape == call.x.shape:
        return call.x
    rest = (-1,) if len(call.shape) == 2 else call.shape[1:]
    return keeping_grid(g.add("Reshape", call.x, g.integers(0, *rest)), call.x)


@handles(torch.transpose, "transpose", torch.permute, "permute")
def permute(g: OnnxGraph, call: Call) -> Value:
    """A new order of the axes; the batch stays first."""
    return keeping_grid(g.add("Transpose", call.x, perm=new_order(call)), call.x)


@handles("contiguous")
def contiguous(g: OnnxGraph, call: Call) -> Value:
    """Nothing: ONNX tensors have no strides."""
    return call.x


@handles(torch.cat, torch.concat)
def concat(g: OnnxGraph, call: Call) -> Value:
    """Tensors side by side along one axis; parts on one common grid give a result on it."""
    parts, axis = call.args[0], call.get("dim", 1, 0)
    call.require(axis % len(call.shape) != 0, "along the batch")
    joined = g.add("Concat", *(g.operand(part) for part in parts), axis=axis)
    grids = {part.grid for part in parts}
    return replace(joined, grid=grids.pop()) if len(grids) == 1 else joined


@handles(torch.stack)
def stack(g: OnnxGraph, call: Call) -> Value:
    """Tensors side by side along a new axis."""
    parts, axis = call.args[0], call.get("dim", 1, 0) % len(call.shape)
    call.require(axis != 0, "along the batch")
    place = g.integers(axis)
    return g.add("Concat", *(g.add("Unsqueeze", g.operand(part), place) for part in parts), axis=axis)


@handles(torch.sum, "sum")
def total(g: OnnxGraph, call: Call) -> Value:
    """Sum over axes."""
    axes, keep = mean_axes(call), bool(call.get("keepdim", 2, False))
    return g.add("ReduceSum", g.operand(call.x), g.integers(*axes), keepdims=int(keep))


@handles(nn.Upsample, F.interpolate)
def enlarge(g: OnnxGraph, call: Call) -> Value:
    """Every pixel repeated a whole number of times."""
    scales = [after / before for after, before in zip(call.shape[2:], call.x.shape[2:], strict=True)]
    whole = all(scale == int(scale) for scale in scales)
    mode = call.get("mode", 3, "nearest")
    call.require(whole and mode == "nearest" and len(scales) == 2, f"with mode {mode}, or by no whole factor")
    sizes = g.constant(np.array([1.0, 1.0, *scales], dtype=np.float32))
    resized = g.add(
        "Resize",
        g.operand(call.x),
        Value(""),
        sizes,
        mode="nearest",
        coordinate_transformation_mode="asymmetric",
        nearest_mode="floor",
    )
    return keeping_grid(resized, call.x)


@handles(torch.chunk, torch.split, "chunk", "split")
def split(g: OnnxGraph, call: Call) -> tuple[Value, ...]:
    """Tensors cut from one along an axis."""
    x, axis = call.x, call.get("dim", 2, 0)
    call.require(axis % len(x.shape) != 0, "along the batch")
    sizes = [shape[axis] for shape in call.shapes]
    parts = g.add_many("Split", call.x, g.integers(*sizes), outputs=len(sizes), axis=axis)
    return tuple(keeping_grid(part, x) for part in parts)


@handles(operator.getitem)
def getitem(g: OnnxGraph, call: Call) -> Value:
    """One of several tensors, or slices of one."""
    source, index = call.args
    if isinstance(source, tuple):
        return source[index]
    cut = slices(call)
    if not cut:
        return call.x
    return keeping_grid(_sliced(g, call.x, cut), call.x)


def _sliced(g: OnnxGraph, x: Value, cut: list[tuple[int, slice]]) -> Value:
    starts = g.integers(*(s.start or 0 for _, s in cut))
    ends = g.integers(*(END if s.stop is None else s.stop for _, s in cut))
    axes, steps = g.integers(*(a for a, _ in cut)), g.integers(*(s.step or 1 for _, s in cut))
    return g.add("Slice", g.operand(x), starts, ends, axes, steps)


@handles(nn.ZeroPad2d, F.pad)
def pad(g: OnnxGraph, call: Call) -> Value:
    """Zeros (or another constant) around a tensor; torch counts the axes from the last one."""
    before, after, value = padding(call)
    padded = g.add("Pad", g.operand(call.x), g.integers(*before, *after), g.scalar(value))
    return keeping_grid(padded, call.x) if value == 0 else padded

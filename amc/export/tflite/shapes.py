"""Operations that move or pool elements: pooling, reshaping, slicing, padding, joining."""

import operator

import torch
from torch import nn
from torch.nn import functional as F

from amc.export.arguments import mean_axes, new_order, padding, require_batch_kept, slices, tile
from amc.export.registry import Call
from amc.export.tflite.graph import TfliteGraph, stored_axis, stored_shape
from amc.export.tflite.ranges import in_range
from amc.export.tflite.registry import handles
from amc.export.tflite.windows import Window, pad, slide
from amc.export.value import Value


@handles(nn.MaxPool2d, F.max_pool2d, torch.max_pool2d)
def max_pool(g: TfliteGraph, call: Call) -> Value:
    """Largest element of each window."""
    kernel, (vertical, horizontal) = call.pair("kernel_size", 1), call.pair("padding", 3, 0)
    call.require(not call.get("return_indices", 6, False), "with indices")
    call.require(call.pair("dilation", 4, 1) == (1, 1), "with dilation")
    pads = ((vertical, vertical), (horizontal, horizontal))
    window = Window(call.shape, kernel, call.pair("stride", 2, kernel), pads=pads, fill=-float("inf"))
    x, settings = slide(g, call.x, window)
    settings |= {"filterHeight": kernel[0], "filterWidth": kernel[1]}
    return g.move("MAX_POOL_2D", x, shape=call.shape, **settings)


@handles(nn.AvgPool2d, F.avg_pool2d)
def average_pool(g: TfliteGraph, call: Call) -> Value:
    """Mean of each window; a window that is the whole image becomes a mean over both axes."""
    kernel, (vertical, horizontal) = call.pair("kernel_size", 1), call.pair("padding", 3, 0)
    call.require(not call.get("ceil_mode", 4, False), "with ceil_mode")
    call.require(call.get("divisor_override", 6) is None, "with divisor_override")
    if kernel == call.x.shape[2:] and not vertical and not horizontal:
        return _mean(g, call, [2, 3], keep=True)
    pads = ((vertical, vertical), (horizontal, horizontal))
    included = bool(call.get("count_include_pad", 5, True))
    window = Window(call.shape, kernel, call.pair("stride", 2, kernel), pads=pads, implicit=not included)
    return _average(g, call, window, included)


def _average(g: TfliteGraph, call: Call, window: Window, included: bool = True) -> Value:
    # In floats: LiteRT has an int8 kernel, but XNNPACK has none and leaves it to a slow one.
    x, settings = slide(g, g.floats(call.x), window)
    call.require(included or x.shape == call.x.shape, "that leaves padding out")
    settings |= {"filterHeight": window.kernel[0], "filterWidth": window.kernel[1]}
    return g.add("AVERAGE_POOL_2D", x, shape=call.shape, **settings)


@handles(nn.AdaptiveAvgPool2d, F.adaptive_avg_pool2d)
def adaptive_average_pool(g: TfliteGraph, call: Call) -> Value:
    """Mean of equal tiles."""
    if call.x.shape == call.shape:
        return call.x
    if call.shape[2:] == (1, 1):
        return _mean(g, call, [2, 3], keep=True)
    kernel = tile(call)
    return _average(g, call, Window(call.shape, kernel, kernel))


@handles(torch.mean, "mean")
def mean(g: TfliteGraph, call: Call) -> Value:
    """Mean over axes."""
    axes, keep = mean_axes(call), bool(call.get("keepdim", 2, False))
    call.require(0 not in axes, "over the batch")
    return _mean(g, call, axes, keep)


def _mean(g: TfliteGraph, call: Call, axes: list[int], keep: bool) -> Value:
    rank, grid = len(call.x.shape), call.ending.grid
    if call.x.grid is None or grid is None or not in_range("MEAN", call.x.grid.scale / grid.scale):
        grid = None
    x = call.x if grid else g.floats(call.x)
    places = g.integers(*sorted(stored_axis(axis, rank) for axis in axes))
    if keep or rank != 4 or axes == [2, 3]:
        return g.add("MEAN", x, places, shape=call.shape, grid=grid, keepDims=keep)
    # What is left of [N, H, W, C] without one axis is not in the order of the traced network.
    kept = tuple(1 if axis in axes else size for axis, size in enumerate(call.x.shape))
    return _reshaped(g, g.add("MEAN", x, places, shape=kept, grid=grid, keepDims=True), call.shape)


@handles(nn.Flatten, nn.Unflatten, torch.flatten, torch.reshape, torch.squeeze, torch.unsqueeze)
@handles("flatten", "unflatten", "view", "reshape", "squeeze", "unsqueeze")
def reshape(g: TfliteGraph, call: Call) -> Value:
    """Any reshaping that leaves the batch axis alone; the target shape is that seen in the trace.

    Raises:
        Unsupported: the first axis of the result is not the batch.
    """
    require_batch_kept(call)
    return call.x if call.shape == call.x.shape else _reshaped(g, call.x, call.shape)


def _reshaped(g: TfliteGraph, x: Value, shape: tuple[int, ...]) -> Value:
    """Elements in the order of the traced network, where images have their channels first."""
    if not same_order(x.shape):
        flat = (1, *x.shape[1:])
        x = g.move("TRANSPOSE", x, g.integers(0, 3, 1, 2), shape=x.shape, stored=flat)
    if same_order(shape):
        return g.move("RESHAPE", x, g.integers(-1, *stored_shape(shape)[1:]), shape=shape)
    x = g.move("RESHAPE", x, g.integers(-1, *shape[1:]), shape=shape, stored=(1, *shape[1:]))
    return g.move("TRANSPOSE", x, g.integers(0, 2, 3, 1), shape=shape)


def same_order(shape: tuple[int, ...]) -> bool:
    """Whether a tensor's elements lie in the file in the order that they have in torch."""
    return len(shape) != 4 or shape[1] == 1 or shape[2:] == (1, 1)


@handles(torch.transpose, "transpose", torch.permute, "permute")
def permute(g: TfliteGraph, call: Call) -> Value:
    """A new order of the axes; the batch stays first."""
    order, rank = new_order(call), len(call.shape)
    stored = [stored_axis(order[axis], rank) for axis in ((0, 2, 3, 1) if rank == 4 else range(rank))]
    return g.move("TRANSPOSE", call.x, g.integers(*stored), shape=call.shape)


@handles("contiguous")
def contiguous(g: TfliteGraph, call: Call) -> Value:
    """Nothing: TFLite tensors have no strides."""
    return call.x


@handles(torch.cat, torch.concat)
def concat(g: TfliteGraph, call: Call) -> Value:
    """Tensors side by side along one axis, in int8 if all are and the result lies on one grid."""
    parts, axis = call.args[0], call.get("dim", 1, 0)
    call.require(axis % len(call.shape) != 0, "along the batch")
    place = stored_axis(axis, len(call.shape))
    grids = {part.grid for part in parts}
    grid = None if None in grids else call.ending.grid or (grids.pop() if len(grids) == 1 else None)
    # TFLite joins codes of one grid only; to bring each part to it is what quantizing the joined tensor does.
    first, *others = (g.codes(part, grid) if grid else g.floats(part) for part in parts)
    return g.move("CONCATENATION", first, *others, shape=call.shape, axis=place)


@handles(torch.chunk, torch.split, "chunk", "split")
def split(g: TfliteGraph, call: Call) -> tuple[Value, ...]:
    """Tensors cut from one along an axis."""
    axis = call.get("dim", 2, 0) % len(call.x.shape)
    call.require(axis != 0, "along the batch")
    parts, start = [], 0
    for shape in call.shapes:
        parts.append(_cut(g, call.x, [(axis, slice(start, start + shape[axis]))], shape))
        start += shape[axis]
    return tuple(parts)


@handles(operator.getitem)
def getitem(g: TfliteGraph, call: Call) -> Value:
    """One of several tensors, or slices of one."""
    source, index = call.args
    if isinstance(source, tuple):
        return source[index]
    cut = slices(call)
    return _cut(g, call.x, cut, call.shape) if cut else call.x


def _cut(g: TfliteGraph, x: Value, cut: list[tuple[int, slice]], shape: tuple[int, ...]) -> Value:
    rank = len(shape)
    begin, end, steps = [0] * rank, list(stored_shape(x.shape)), [1] * rank
    for axis, piece in cut:
        place = stored_axis(axis, rank)
        begin[place], end[place], steps[place] = piece.indices(x.shape[axis])
    vectors = (g.integers(*numbers) for numbers in (begin, end, steps))
    # The first bit of the masks: every image, however many there are.
    return g.move("STRIDED_SLICE", x, *vectors, shape=shape, beginMask=1, endMask=1)


@handles(nn.ZeroPad2d, F.pad)
def frame(g: TfliteGraph, call: Call) -> Value:
    """Zeros (or another constant) around a tensor."""
    before, after, fill = padding(call)
    call.require(not before[0] and not after[0], "along the batch")
    return pad(g, call.x, before, after, fill)

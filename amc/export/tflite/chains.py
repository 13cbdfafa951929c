"""What stands in the place of a convolution: chains of convolutions, and kernels rebuilt from centroids."""

from dataclasses import replace

import torch
from torch import nn

from amc.decomposition.clustered_conv import ClusteredConv2d
from amc.decomposition.low_rank import Chain
from amc.export.registry import NO_ENDING, Call
from amc.export.tflite.graph import TfliteGraph
from amc.export.tflite.layers import conv2d
from amc.export.tflite.registry import handles
from amc.export.tflite.windows import pad
from amc.export.value import Value


@handles(Chain)
def chain(g: TfliteGraph, call: Call) -> Value:
    """One convolution after the other; the last takes in the batch norm and what follows."""
    assert isinstance(call.module, Chain)
    x, *before, last = call.x, *call.module
    for module in before:
        between = replace(call, args=(x,), kwargs={}, module=module, shapes=(_shape(module, x),))
        x = _written(g, replace(between, batch_norm=None, ending=NO_ENDING))
    return _written(g, replace(call, args=(x,), kwargs={}, module=last))


def _shape(module: nn.Module, x: Value) -> tuple[int, ...]:
    with torch.no_grad():
        return tuple(module(torch.zeros(x.shape)).shape)


def _written(g: TfliteGraph, call: Call) -> Value:
    assert call.module is not None
    result = handles.of_module(call.module)(g, call)
    assert isinstance(result, Value)
    return replace(result, shape=call.shape)


@handles(nn.ConstantPad3d)
def fill_channels(g: TfliteGraph, call: Call) -> Value:
    """Constants around channels, rows and columns; torch counts the axes from the last one."""
    module = call.module
    assert isinstance(module, nn.ConstantPad3d)
    before, after = (list(reversed(module.padding[side::2])) for side in (0, 1))
    return pad(g, call.x, [0, *before], [0, *after], float(module.value))


# A file holds the whole kernels: no runtime reads centroids.
handles(ClusteredConv2d)(conv2d)

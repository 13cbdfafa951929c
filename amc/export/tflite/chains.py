"""What stands in the place of a convolution: chains of convolutions, and kernels rebuilt from centroids."""

from dataclasses import replace
from itertools import pairwise

import torch
from torch import nn

from amc.decomposition.additive_linear import AdditiveLinear
from amc.decomposition.chain import Chain
from amc.decomposition.clustered_conv import ClusteredConv2d
from amc.export.grid import grid_of
from amc.export.registry import NO_ENDING, Call, Ending
from amc.export.tflite.graph import TfliteGraph
from amc.export.tflite.layers import conv2d, linear
from amc.export.tflite.registry import handles
from amc.export.tflite.windows import pad
from amc.export.value import Value
from amc.quantization.modules import ActivationQuantizer


@handles(Chain)
def chain(g: TfliteGraph, call: Call) -> Value:
    """One convolution after the other; the last takes in the batch norm and what follows."""
    assert isinstance(call.module, Chain)
    x, *before, last = call.x, *call.module.working
    for module, after in pairwise((*before, last)):
        between = replace(call, args=(x,), kwargs={}, module=module, shapes=(_shape(module, x),))
        # A convolution runs in int8 only where what it gives is quantized, too.
        ending = Ending(grid=grid_of(after)) if isinstance(after, ActivationQuantizer) else NO_ENDING
        x = _written(g, replace(between, batch_norm=None, ending=ending))
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


# A file holds the whole weights: no runtime reads centroids or codewords.
handles(ClusteredConv2d)(conv2d)
handles(AdditiveLinear)(linear)

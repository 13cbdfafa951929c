"""What stands in the place of a convolution: chains of convolutions, and kernels rebuilt from centroids."""

from dataclasses import replace

from torch import nn

from amc.decomposition.additive_linear import AdditiveLinear
from amc.decomposition.chain import Chain
from amc.decomposition.clustered_conv import ClusteredConv2d
from amc.export.graph import OnnxGraph
from amc.export.layers import conv2d, linear
from amc.export.registry import Call, handles
from amc.export.shapes import keeping_grid
from amc.export.value import Value


@handles(Chain)
def chain(g: OnnxGraph, call: Call) -> Value:
    """One convolution after the other; the last takes in the batch norm."""
    assert isinstance(call.module, Chain)
    *before, last = call.module.working
    x = call.x
    for module in before:
        x = _written(g, Call(call.label, (x,), {}, module))
    return _written(g, replace(call, args=(x,), kwargs={}, module=last))


def _written(g: OnnxGraph, call: Call) -> Value:
    assert call.module is not None
    result = handles.of_module(call.module)(g, call)
    assert isinstance(result, Value)
    return result


@handles(nn.ConstantPad3d)
def fill_channels(g: OnnxGraph, call: Call) -> Value:
    """Constants around channels, rows and columns; torch counts the axes from the last one."""
    module = call.module
    assert isinstance(module, nn.ConstantPad3d)
    before, after = module.padding[::2], module.padding[1::2]
    pads = [0, *reversed(before), 0, *reversed(after)]
    padded = g.add("Pad", g.operand(call.x), g.integers(*pads), g.scalar(module.value))
    return keeping_grid(padded, call.x) if module.value == 0 else padded


# A file holds the whole weights: no runtime reads centroids or codewords.
handles(ClusteredConv2d)(conv2d)
handles(AdditiveLinear)(linear)

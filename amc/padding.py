"""Zero channels that make a sliced network faster and change nothing that it computes.

The vectors of a CPU hold 8 floats, and convolutions leave part of them idle where the channels are no
multiple of that. Channels of zeros behind the kept ones fill them up: their weights are zero both where
they are produced and where they are read.
"""

import operator
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.nn import functional as F

from amc.quantization.protocol import PointQuantizer

STEP = 8
"""Floats in a 256-bit vector; wider ones gain from multiples of it too."""

CHANNELWISE_MODULES = (
    *(nn.ReLU, nn.ReLU6, nn.Hardswish, nn.SiLU, nn.Identity, nn.Dropout),
    *(nn.MaxPool2d, nn.AvgPool2d, nn.AdaptiveAvgPool2d, nn.BatchNorm2d, PointQuantizer),
)
CHANNELWISE_FUNCTIONS = frozenset[Any](
    (F.relu, torch.relu, F.relu6, operator.add, operator.iadd, torch.add, operator.mul, torch.mul)
)
CHANNELWISE_METHODS = frozenset[Any](("relu", "relu_", "add", "add_"))


Padded = tuple[int, bool]
"""Channels that are padded, and whether each channel's pixels have been flattened into features."""


class NotPaddable(Exception):
    """A part of the network might tell zero channels from none."""


def pad_channels(model: fx.GraphModule) -> bool:
    """Pad every channel count to a multiple of `STEP`, in place; whether the network allowed it.

    Networks that join, split or reorder channels, or fit ranges to values, are left as they are.
    """
    try:
        changes = _changes(model)
    except NotPaddable:
        return False
    for change in changes:
        change()
    return True


def padded(channels: int) -> int:
    """The channel count after padding."""
    return -(-channels // STEP) * STEP


def _changes(model: fx.GraphModule) -> list[Callable[[], None]]:
    """What is to be done; nothing is changed before all of the network is known to allow it."""
    width: dict[fx.Node, Padded | None] = {}
    changes: dict[nn.Module, Callable[[], None]] = {}
    for node in model.graph.nodes:
        if node.op == "call_module":
            module = model.get_submodule(str(node.target))
            if module in changes:
                raise NotPaddable
            width[node], change = _module_change(module, width[node.all_input_nodes[0]])
            if change is not None:
                changes[module] = change
        else:
            width[node] = _function_width(node, [width[source] for source in node.all_input_nodes])
    return list(changes.values())


def _function_width(node: fx.Node, inputs: list[Padded | None]) -> Padded | None:
    """What leaves a node without a module; None where nothing is padded."""
    if node.op == "placeholder" or (node.op == "output" and inputs == [None]):
        return None
    if node.target in (torch.flatten, "flatten") and node.args[1:] == (1,):
        return inputs[0] and (inputs[0][0], True)
    known = CHANNELWISE_METHODS if node.op == "call_method" else CHANNELWISE_FUNCTIONS
    if node.target in known and len(set(inputs)) == 1:
        return inputs[0]
    raise NotPaddable


def _module_change(
    module: nn.Module, entering: Padded | None
) -> tuple[Padded | None, Callable[[], None] | None]:
    """What leaves a module, and how it is padded itself."""
    if isinstance(module, nn.Conv2d):
        return _conv_change(module, entering)
    if isinstance(module, nn.Linear) and (entering is None or entering[1]):
        return None, None if entering is None else lambda: _pad_linear(module, entering[0])
    if isinstance(module, nn.BatchNorm2d) and entering is not None:
        return entering, lambda: _pad_norm(module)
    if isinstance(module, nn.Flatten) and module.start_dim == 1:
        return entering and (entering[0], True), None
    quantizes = isinstance(module, PointQuantizer) and module.enabled
    if isinstance(module, CHANNELWISE_MODULES) and not quantizes:
        return entering, None
    raise NotPaddable


def _conv_change(module: nn.Conv2d, entering: Padded | None) -> tuple[Padded, Callable[[], None]]:
    depthwise = module.groups == module.in_channels == module.out_channels
    if module.groups > 1 and (entering is None or not depthwise):
        raise NotPaddable
    return (module.out_channels, False), lambda: _pad_conv(module, entering is not None)


def _pad_conv(module: nn.Conv2d, pad_inputs: bool) -> None:
    outputs = padded(module.out_channels) - module.out_channels
    inputs = padded(module.in_channels) - module.in_channels if pad_inputs and module.groups == 1 else 0
    module._parameters["weight"] = _extended(module.weight, (0, 0, 0, 0, 0, inputs, 0, outputs))
    if module.bias is not None:
        module._parameters["bias"] = _extended(module.bias, (0, outputs))
    module.out_channels += outputs
    module.in_channels += outputs if module.groups > 1 else inputs
    module.groups += outputs if module.groups > 1 else 0


def _pad_linear(module: nn.Linear, channels: int) -> None:
    extra = (padded(channels) - channels) * (module.in_features // channels)
    module._parameters["weight"] = _extended(module.weight, (0, extra))
    module.in_features += extra


def _pad_norm(module: nn.BatchNorm2d) -> None:
    extra = padded(module.num_features) - module.num_features
    for name, parameter in module._parameters.items():
        if parameter is not None:
            module._parameters[name] = _extended(parameter, (0, extra))
    for name, value in (("running_mean", 0.0), ("running_var", 1.0)):
        buffer = module._buffers.get(name)
        if buffer is not None:
            module._buffers[name] = F.pad(buffer, (0, extra), value=value)
    module.num_features += extra


def _extended(parameter: Tensor, pads: tuple[int, ...]) -> nn.Parameter:
    return nn.Parameter(F.pad(parameter.detach(), pads), requires_grad=parameter.requires_grad)

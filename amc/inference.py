"""The form in which compressed networks are calibrated and scored: the same function, sooner on a CPU.

Channels lie last in memory and are padded (`amc.padding`), quantized weights are quantized once, and after
calibration batch norms disappear in the convolutions in front of them. Sums are added up in another order, so
logits differ by float noise. Never train in this form: see `amc.training`.
"""

import torch
from torch import fx, nn

from amc.decomposition.additive_linear import AdditiveLinear
from amc.decomposition.chain import Chain
from amc.decomposition.clustered_conv import ClusteredConv2d
from amc.groups import NORMS
from amc.padding import pad_channels
from amc.quantization.modules import QuantizedConv2d, QuantizedLinear
from amc.quantization.protocol import PointQuantizer
from amc.slicing import clone_module


def inference_form(model: fx.GraphModule) -> fx.GraphModule:
    """A copy in evaluation mode that computes what the model does; the model is left as it is."""
    fast = clone_module(model).eval()
    _quantize_weights(fast)
    pad_channels(fast)
    for module in fast.modules():
        if isinstance(module, nn.Conv2d):
            # The layout of the weights decides that of everything that flows.
            module.weight.data = module.weight.data.contiguous(memory_format=torch.channels_last)
    return fast


def take_calibration(model: nn.Module, fast: nn.Module) -> None:
    """Give a model what its inference form has found out: statistics and activation ranges, in place."""
    for name, module in list(model.named_modules()):
        if isinstance(module, PointQuantizer):
            model.set_submodule(name, fast.get_submodule(name))
        elif isinstance(module, NORMS):
            for key, buffer in module._buffers.items():
                if buffer is not None:
                    found = fast.get_submodule(name).get_buffer(key)
                    buffer.copy_(found[: len(buffer)] if buffer.ndim else found)


def fold_norms(fast: fx.GraphModule) -> None:
    """Fold every batch norm that alone reads a convolution into it, in place."""
    calls = [str(node.target) for node in fast.graph.nodes if node.op == "call_module"]
    for node in fast.graph.nodes:
        if node.op != "call_module" or calls.count(str(node.target)) > 1:
            continue
        norm, source = fast.get_submodule(str(node.target)), node.args[0]
        if not isinstance(norm, nn.BatchNorm2d) or not isinstance(source, fx.Node):
            continue
        producer = str(source.target)
        alone = source.op == "call_module" and len(source.users) == 1 and calls.count(producer) == 1
        conv = fast.get_submodule(producer) if alone else None
        conv = conv[-1] if isinstance(conv, Chain) else conv
        if isinstance(conv, nn.Conv2d) and norm.track_running_stats:
            _fold(conv, norm)
            fast.set_submodule(str(node.target), nn.Identity())


def _fold(conv: nn.Conv2d, norm: nn.BatchNorm2d) -> None:
    mean, variance = norm.running_mean, norm.running_var
    assert mean is not None and variance is not None
    scale = (variance + norm.eps).rsqrt()
    if norm.weight is not None:
        scale = scale * norm.weight.detach()
    shift = (0 if conv.bias is None else conv.bias.detach()) - mean
    bias = shift * scale + (0 if norm.bias is None else norm.bias.detach())
    conv._parameters["weight"] = nn.Parameter(conv.weight.detach() * scale[:, None, None, None])
    conv._parameters["bias"] = nn.Parameter(bias)


def _quantize_weights(fast: nn.Module) -> None:
    """Replace layers that make their weight anew in every pass by plain ones with that weight."""
    for name, module in list(fast.named_modules()):
        if isinstance(module, QuantizedConv2d | QuantizedLinear):
            kind = nn.Conv2d if isinstance(module, nn.Conv2d) else nn.Linear
            plain = kind.__new__(kind)
            plain.__dict__.update(module.__dict__)
            plain._modules = {}
            weight = module.quantizer(module.weight).detach()
            plain._parameters = {**module._parameters, "weight": nn.Parameter(weight)}
            fast.set_submodule(name, plain)
        elif isinstance(module, ClusteredConv2d | AdditiveLinear):
            fast.set_submodule(name, module.plain())

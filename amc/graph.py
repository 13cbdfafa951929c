"""torch.fx graphs of networks: tracing with clear errors, shapes, and walking from node to node."""

from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.fx.passes.shape_prop import ShapeProp

from amc.errors import UserError
from amc.quantization.modules import QuantizedConv2d, QuantizedLinear
from amc.quantization.protocol import PointQuantizer
from amc.specialise import SizedTracer


class ChannelPad(nn.Conv2d):
    """A shortcut that subsamples and pads channels, written as a fixed 0/1 1x1 convolution.

    It stands for `F.pad(x[:, :, ::s, ::s], (0, 0, 0, 0, before, after))`. As a convolution its input and
    output channels can be removed independently, which is what the padding means; it is not a `Layer`,
    has no trainable parameter, and `export` decides how it runs. Weight: [out, in, 1, 1].
    """

    def __init__(self, in_channels: int, before: int, after: int, stride: int):
        super().__init__(in_channels, before + in_channels + after, 1, stride=stride, bias=False)
        self.weight = nn.Parameter(torch.zeros_like(self.weight), requires_grad=False)
        rows = torch.arange(in_channels)
        self.weight.data[rows + before, rows] = 1.0


class FixedStage(nn.Module):
    """A stage without anything to train or to compress: one node of the graph, whose MACs count all the same.

    What its subclasses compute follows from the shape of their input.
    """

    def macs(self, shape: tuple[int, ...]) -> int:
        """Multiply-accumulates for one input of a batch of this shape [N, ...]."""
        raise NotImplementedError


LEAVES = (PointQuantizer, QuantizedConv2d, QuantizedLinear, ChannelPad, FixedStage)


class _Tracer(SizedTracer):
    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        return isinstance(m, LEAVES) or super().is_leaf_module(m, module_qualified_name)


def target_of(module: nn.Module, node: fx.Node) -> Any:
    """What a node calls: the exact type of its module, its function, or the name of its method."""
    if node.op == "call_module":
        return type(module.get_submodule(str(node.target)))
    return node.target


def norm_reads_outputs(norm: nn.Module, source: fx.Node) -> bool:
    """Whether a batch norm's channels are what the layer in front gives: of [N, T, C] they are T."""
    return not isinstance(norm, nn.BatchNorm1d) or len(shape_of(source)) == 2


def trace_graph(model: nn.Module, example: Tensor | None = None) -> fx.GraphModule:
    """Symbolically trace `model` in evaluation mode; modules of torch.nn stay whole.

    Args:
        model: any module that torch.fx can follow.
        example: an input; where the forward pass branches on sizes, the branches are those it takes.

    Raises:
        UserError: the forward pass cannot be followed (its control flow depends on data, say).
    """
    model.eval()
    try:
        return fx.GraphModule(model, _Tracer(example).trace(model), type(model).__name__)
    except Exception as error:
        reason = str(error).strip().split("\n")[0] or type(error).__name__
        raise UserError(
            f"{type(model).__name__} cannot be traced by torch.fx ({reason}); its forward pass must be free "
            "of control flow that depends on tensor values."
        ) from error


def propagate_shapes(graph: fx.GraphModule, example: Tensor) -> None:
    """Run the graph once and note each node's output shape in `node.meta["tensor_meta"]`.

    Raises:
        UserError: the network does not accept the example input.
    """
    try:
        with torch.no_grad():
            ShapeProp(graph).propagate(example)
    except Exception as error:
        reason = str(error.__cause__ or error).strip().split("\n")[0]
        raise UserError(
            f"The network does not accept an input of shape {list(example.shape)}: {reason}"
        ) from error


def erase_idle(graph: fx.GraphModule) -> None:
    """Erase what gives no tensor and nobody reads, assertions about sizes for one; needs shapes."""
    for node in reversed(list(graph.graph.nodes)):
        computes = node.op.startswith("call") and node.op != "call_module"
        if computes and not node.users and "tensor_meta" not in node.meta:
            graph.graph.erase_node(node)
    graph.recompile()


def shape_of(node: fx.Node) -> tuple[int, ...]:
    """Shape of a node's output, batch first, after `propagate_shapes`; () where it is not one tensor."""
    shape = getattr(node.meta.get("tensor_meta"), "shape", ())
    return tuple(shape)


def module_of(node: fx.Node) -> nn.Module | None:
    """The module that a call_module node calls, otherwise None."""
    if node.op != "call_module":
        return None
    root = node.graph.owning_module
    return root.get_submodule(str(node.target)) if root is not None else None

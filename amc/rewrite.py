"""Rewriting at tracing: channel-padding shortcuts become `ChannelPad` convolutions.

torch-pruning 1.6.1 couples `F.pad` over channels wrongly (it treats the padded tensor as having the
channels of its input); as a convolution the two sides are separate groups, which is exact.
"""

import operator

from torch import Tensor, fx
from torch.nn import functional as F

from amc.graph import ChannelPad, propagate_shapes, shape_of


def rewrite_channel_pads(graph: fx.GraphModule, example: Tensor) -> list[str]:
    """Replace every zero-padding of channels in place; returns the names of the new modules."""
    names: list[str] = []
    for node in list(graph.graph.nodes):
        padding = _channel_padding(node)
        if padding is None:
            continue
        source, stride = _subsampled(node.all_input_nodes[0])
        name = f"channel_pad_{len(names)}"
        graph.add_submodule(name, ChannelPad(shape_of(source)[1], *padding, stride))
        with graph.graph.inserting_before(node):
            replacement = graph.graph.call_module(name, (source,))
        node.replace_all_uses_with(replacement)
        graph.graph.erase_node(node)
        names.append(name)
    if names:
        graph.graph.eliminate_dead_code()
        graph.recompile()
        propagate_shapes(graph, example)
    return names


def _channel_padding(node: fx.Node) -> tuple[int, int] | None:
    """(before, after) if the node pads only the channels of a 4-D tensor, and with zeros."""
    if node.op != "call_function" or node.target is not F.pad or len(shape_of(node)) != 4:
        return None
    pad = node.kwargs.get("pad", node.args[1] if len(node.args) > 1 else None)
    mode = node.kwargs.get("mode", node.args[2] if len(node.args) > 2 else "constant")
    value = node.kwargs.get("value", node.args[3] if len(node.args) > 3 else None)
    if not isinstance(pad, tuple | list) or not all(isinstance(p, int) for p in pad):
        return None
    left, right, top, bottom, before, after, *batch = [*pad, 0, 0, 0, 0, 0, 0][: max(6, len(pad))]
    if any((left, right, top, bottom, *batch)) or mode != "constant" or value:
        return None
    return (int(before), int(after)) if before >= 0 and after >= 0 else None


def _subsampled(node: fx.Node) -> tuple[fx.Node, int]:
    """The tensor under `x[:, :, ::s, ::s]` and s; the node itself and 1 where there is no such slice."""
    everything = slice(None, None, None)
    if node.op == "call_function" and node.target is operator.getitem:
        source, index = node.args
        if isinstance(index, tuple) and index[:-2] in ((everything, everything), (...,)):
            rows, columns = index[-2:]
            step = getattr(rows, "step", None)
            same = rows == columns == slice(None, None, step)
            if same and isinstance(step, int) and isinstance(source, fx.Node):
                return source, step
    return node, 1

"""What TFLite operators take in of what follows them: a clip at their end, and the grid of their result."""

from dataclasses import replace

from torch import fx

from amc.clips import ceiling_of
from amc.decomposition.additive_linear import AdditiveLinear
from amc.decomposition.chain import Chain
from amc.decomposition.clustered_conv import ClusteredConv2d
from amc.export.grid import Grid, grid_of
from amc.export.registry import NO_ENDING, Ending
from amc.export.simplify import bypass, simplify
from amc.export.tflite.activations import ADD, DIV, MUL, SUB
from amc.export.tflite.layers import CONVOLUTIONS, LINEARS
from amc.export.walk import Plan
from amc.graph import target_of
from amc.quantization.modules import ActivationQuantizer

FUSING = {*CONVOLUTIONS, Chain, ClusteredConv2d, *LINEARS, AdditiveLinear, *ADD, *SUB, *MUL, *DIV}
"""Operations whose TFLite operators end with a clip."""


def plan(module: fx.GraphModule) -> Plan:
    """The simplified graph of a network, and what its operations take in."""
    graph, norms = simplify(module)
    found = ((node, ceiling_of(module, node)) for node in graph.nodes)
    clips = {node: clip for node, clip in found if clip is not None and _is_fused(module, node)}
    endings = {node.all_input_nodes[0]: Ending(clip) for node, clip in clips.items()}
    bypass(graph, clips.__contains__)
    for node in graph.nodes:
        endings[node] = replace(endings.get(node, NO_ENDING), grid=_grid_behind(module, node))
    return Plan(graph, norms, endings)


def _is_fused(module: fx.GraphModule, node: fx.Node) -> bool:
    """Whether what a node clips comes from an operation that clips as well, and that nothing else reads."""
    source = node.all_input_nodes[0]
    return source.op.startswith("call") and len(source.users) == 1 and target_of(module, source) in FUSING


def _grid_behind(module: fx.GraphModule, node: fx.Node) -> Grid | None:
    """The grid of the only kind of quantization point that reads a node."""
    grids = {_grid(module, user) for user in node.users}
    return grids.pop() if len(grids) == 1 else None


def _grid(module: fx.GraphModule, node: fx.Node) -> Grid | None:
    if node.op != "call_module":
        return None
    point = module.get_submodule(str(node.target))
    return grid_of(point) if isinstance(point, ActivationQuantizer) else None

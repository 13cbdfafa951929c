"""The traced graph without what leaves no trace in the file: identities, folded batch norms and ReLUs."""

from collections.abc import Callable

import torch
from torch import fx, nn
from torch.nn import functional as F

from amc.clips import ceiling_of
from amc.decomposition.additive_linear import AdditiveLinear
from amc.decomposition.chain import Chain
from amc.decomposition.clustered_conv import ClusteredConv2d
from amc.export.grid import grid_of
from amc.graph import norm_reads_outputs, target_of
from amc.quantization.modules import ActivationQuantizer, QuantizedConv2d, QuantizedLinear

DROPPED = {
    *(nn.Identity, nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.Dropout3d, nn.AlphaDropout),
    *(F.dropout, F.dropout2d, torch.dropout, "detach", "clone"),
}
"""What is the identity in eval mode."""

FOLDABLE = {
    nn.BatchNorm2d: (nn.Conv2d, QuantizedConv2d, Chain, ClusteredConv2d),
    nn.BatchNorm1d: (nn.Linear, QuantizedLinear, AdditiveLinear),
}


def simplify(module: fx.GraphModule) -> tuple[fx.Graph, dict[fx.Node, nn.Module]]:
    """A copy of the graph to write, and the batch norm that each layer takes in."""
    graph = fx.Graph()
    graph.output(graph.graph_copy(module.graph, {}))
    bypass(graph, lambda node: _is_identity(module, node))
    bypass(graph, lambda node: _is_swallowed(module, node))
    norms = _foldable_norms(module, graph)
    layers = {node.all_input_nodes[0]: norm for node, norm in norms.items()}
    bypass(graph, norms.__contains__)
    return graph, layers


def bypass(graph: fx.Graph, drop: Callable[[fx.Node], bool]) -> None:
    """Erase nodes; what reads them reads their first input instead."""
    for node in [node for node in graph.nodes if drop(node)]:
        node.replace_all_uses_with(node.all_input_nodes[0])
        graph.erase_node(node)


def _is_identity(module: fx.GraphModule, node: fx.Node) -> bool:
    if not node.op.startswith("call"):
        return False
    target = target_of(module, node)
    if target is ActivationQuantizer:
        return not module.get_submodule(str(node.target)).enabled
    return target in DROPPED


def _is_swallowed(module: fx.GraphModule, node: fx.Node) -> bool:
    """A clipping function that quantization repeats, because the codes end where it clips."""
    high, users = ceiling_of(module, node), node.users
    return high is not None and bool(users) and all(_repeats_clip(module, user, high) for user in users)


def _repeats_clip(module: fx.GraphModule, node: fx.Node, high: float) -> bool:
    if node.op != "call_module":
        return False
    point = module.get_submodule(str(node.target))
    return isinstance(point, ActivationQuantizer) and grid_of(point).swallows_clip(0.0, high)


def _foldable_norms(module: fx.GraphModule, graph: fx.Graph) -> dict[fx.Node, nn.Module]:
    norms = {}
    for node in graph.nodes:
        if node.op != "call_module":
            continue
        layers, norm = FOLDABLE.get(target_of(module, node), ()), module.get_submodule(str(node.target))
        source = node.all_input_nodes[0]
        alone = source.op == "call_module" and len(source.users) == 1
        if not alone or target_of(module, source) not in layers or norm.running_mean is None:
            continue
        if norm_reads_outputs(norm, source):
            norms[node] = norm
    return norms

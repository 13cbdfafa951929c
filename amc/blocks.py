"""Residual blocks: branches of a network that can be left out, because a shortcut carries the rest.

Leaving a branch out makes a network shorter where pruning channels makes it narrower. A runtime pays for
every layer, however narrow, so at a small latency a short network often beats a thin one.
"""

import operator
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import fx, nn

from amc.clips import ceiling_of
from amc.graph import shape_of
from amc.quantization.modules import ActivationQuantizer

_SUMS = (operator.add, operator.iadd, torch.add)


@dataclass(frozen=True)
class ResidualBlock:
    """A branch between a tensor and the sum that adds it to that very tensor.

    Attributes:
        name: path of its first layer, whose decision point decides whether the block stays.
        layers: paths of its layers in execution order.
        nodes: names of the branch's nodes in the traced graph, in execution order.
        sum: name of the sum.
    """

    name: str
    layers: tuple[str, ...]
    nodes: tuple[str, ...]
    sum: str


def find_blocks(graph: fx.GraphModule, layers: Sequence[str]) -> tuple[ResidualBlock, ...]:
    """The innermost residual blocks of a traced network with quantization points, in execution order.

    A block qualifies if nothing outside reads its branch, its modules are called once, and the shortcut is
    the tensor that the branch starts from. Blocks with a convolution in the shortcut do not.
    """
    found = [block for node in graph.graph.nodes if is_sum(node) for block in _block(graph, node, layers)]
    inside = [set(block.nodes) | {block.sum} for block in found]
    return tuple(
        block for block, own in zip(found, inside, strict=True) if not any(other < own for other in inside)
    )


def is_sum(node: fx.Node) -> bool:
    """Whether a node adds two tensors."""
    called = node.target if node.op == "call_function" else None
    by_method = node.op == "call_method" and node.target in ("add", "add_")
    return (called in _SUMS or by_method) and len(node.all_input_nodes) == 2


def _block(graph: fx.GraphModule, total: fx.Node, layers: Sequence[str]) -> Iterator[ResidualBlock]:
    first, second = total.all_input_nodes
    for shortcut, end in ((first, second), (second, first)):
        branch = _between(_past_identities(shortcut, graph), end)
        if not branch or shape_of(shortcut) != shape_of(total):
            continue
        nodes = [node for node in graph.graph.nodes if node in branch]
        inside = {*nodes, total}
        called = [str(node.target) for node in nodes if node.op == "call_module"]
        elsewhere = {str(n.target) for n in graph.graph.nodes if n.op == "call_module" and n not in branch}
        own = tuple(name for name in called if name in set(layers))
        alone = all(user in inside for node in nodes for user in node.users)
        if own and alone and len(set(called)) == len(called) and not elsewhere & set(called):
            yield ResidualBlock(own[0], own, tuple(n.name for n in nodes), total.name)


def _past_identities(node: fx.Node, module: nn.Module) -> fx.Node:
    while node.op == "call_module" and isinstance(module.get_submodule(str(node.target)), nn.Identity):
        node = node.all_input_nodes[0]
    return node


def _between(start: fx.Node, end: fx.Node) -> set[fx.Node]:
    """The nodes from which `end` is computed, up to `start`; none if it also depends on other tensors."""
    found, open_nodes = set[fx.Node](), [end]
    while open_nodes:
        node = open_nodes.pop()
        if node is start or node in found:
            continue
        if node.op in ("placeholder", "get_attr"):
            return set()
        found.add(node)
        open_nodes.extend(node.all_input_nodes)
    return found


def cut_blocks(graph: fx.Graph, blocks: Sequence[ResidualBlock], module: nn.Module) -> dict[str, str]:
    """Leave branches out of a graph, in place, with what becomes idle without them.

    A ReLU behind the sum repeats the one in front of the block, and two quantization points come to stand
    one behind the other; the later one stays, whose readers are still there.

    Args:
        graph: a graph of the network's own, whose nodes bear the names that the blocks mention.
        blocks: what goes, in execution order.
        module: owner of the graph's modules.

    Returns:
        Name of each quantization point that went in favour of a later one, to the name of that one.
    """
    replaced: dict[str, str] = {}
    node_of = {node.name: node for node in graph.nodes}
    for block in blocks:
        total = node_of[block.sum]
        branch = [node_of[name] for name in block.nodes]
        operand = next(node for node in total.all_input_nodes if node not in branch)
        shortcut, readers = _past_identities(operand, module), list(total.users)
        total.replace_all_uses_with(shortcut)
        graph.erase_node(total)
        for node in reversed(branch):
            graph.erase_node(node)
        while operand is not shortcut and not operand.users:
            idle, operand = operand, operand.all_input_nodes[0]
            graph.erase_node(idle)
        for reader in readers:
            _erase_repeated_relu(graph, reader, shortcut, module)
        replaced.update(_merge_points(graph, shortcut, module))
    return replaced


def _erase_repeated_relu(graph: fx.Graph, node: fx.Node, shortcut: fx.Node, module: nn.Module) -> None:
    source = shortcut
    while _is_point(source, module):
        source = source.all_input_nodes[0]
    ceiling = ceiling_of(module, node)
    if ceiling is not None and ceiling == ceiling_of(module, source):
        node.replace_all_uses_with(shortcut)
        graph.erase_node(node)


def _merge_points(graph: fx.Graph, point: fx.Node, module: nn.Module) -> dict[str, str]:
    users = list(point.users)
    if not _is_point(point, module) or len(users) != 1 or not _is_point(users[0], module):
        return {}
    users[0].replace_input_with(point, point.all_input_nodes[0])
    graph.erase_node(point)
    return {str(point.target): str(users[0].target)}


def _is_point(node: fx.Node, module: nn.Module) -> bool:
    return node.op == "call_module" and isinstance(
        module.get_submodule(str(node.target)), ActivationQuantizer
    )

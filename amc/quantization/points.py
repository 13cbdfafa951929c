"""Quantization points: where activations are quantized, read off the graph once.

One list serves simulation and export. A tensor that a layer reads gets a point; so do the operands of sums,
concatenations and average pools, which a runtime runs in 8 bits only if both sides are quantized. Points
sit in front of nothing but values: max pooling, flatten and dropout move codes without changing them, so
the point lies before them.
"""

import operator
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import fx, nn
from torch.nn import functional as F

from amc.graph import ChannelPad, module_of, shape_of
from amc.quantization.modules import ActivationQuantizer
from amc.quantization.uniform import NOT_QUANTIZED

STORAGE_BITS = 8
"""Bits of a quantized tensor that something other than a layer reads as well."""

_MOVES_MODULES = (nn.Dropout, nn.Dropout2d, nn.Identity, nn.Flatten, nn.MaxPool2d)
_MOVES_FUNCTIONS = (torch.flatten, F.max_pool2d, F.dropout)
_MOVES_METHODS = ("view", "reshape", "flatten", "contiguous")
_MERGES_MODULES = (nn.AvgPool2d, nn.AdaptiveAvgPool2d, ChannelPad)
_MERGES_FUNCTIONS = (
    *(operator.add, operator.iadd, torch.add, torch.cat, torch.mean),
    *(F.avg_pool2d, F.adaptive_avg_pool2d),
)
_MERGES_METHODS = ("add", "add_", "mean")


@dataclass(frozen=True)
class QuantizationPoint:
    """One place where a tensor may be quantized.

    Attributes:
        name: path of its `ActivationQuantizer` in the traced module.
        role: "input": only layers read the tensor, and their decision gives the bits. "storage": sums,
            concatenations or pools read it too, so it has 8 bits or none. "narrow": behind a storage
            point, for layers that want less than 8 bits.
        layers: the layers that read the tensor.
        follows: names of the points on what sums and pools make of the tensor. Where no layer reads the
            tensor, it is quantized when one of these is.
    """

    name: str
    role: str
    layers: tuple[str, ...]
    follows: tuple[str, ...] = ()


def insert_points(graph: fx.GraphModule, layers: Sequence[str]) -> tuple[QuantizationPoint, ...]:
    """Insert an `ActivationQuantizer` (switched off) at every quantization point, in place.

    Args:
        graph: a traced network with shapes (`propagate_shapes`).
        layers: module paths of its compressible layers.

    Returns:
        The points in execution order.
    """
    layer_nodes = [n for n in graph.graph.nodes if n.op == "call_module" and str(n.target) in set(layers)]
    merge_nodes = [n for n in graph.graph.nodes if is_merge(n)]
    readers: dict[fx.Node, list[fx.Node]] = {}
    for node in layer_nodes:
        readers.setdefault(_source(node.all_input_nodes[0]), []).append(node)
    operands = {node: [_source(i) for i in node.all_input_nodes if shape_of(i)] for node in merge_nodes}
    merged = {source for sources in operands.values() for source in sources}
    tensors = [node for node in graph.graph.nodes if node in readers or node in merged]
    follows = {
        source: tuple(
            _point_name(result)
            for merge, sources in operands.items()
            if source in sources
            for result in _first_below(merge, set(tensors))
        )
        for source in merged
    }
    points: list[QuantizationPoint] = []
    for node in tensors:
        names = tuple(str(reader.target) for reader in readers.get(node, ()))
        role = "storage" if node in merged else "input"
        points.append(QuantizationPoint(_point_name(node), role, names, follows.get(node, ())))
        _insert_after(graph, node, points[-1].name)
        if role == "storage" and names:
            points.extend(_insert_narrow(graph, readers[node], points[-1].name))
    graph.recompile()
    return tuple(points)


def point_bits(points: Sequence[QuantizationPoint], layer_bits: Mapping[str, int]) -> dict[str, int]:
    """Bits of every point, from the activation bits decided for each layer.

    Args:
        points: the points of a network.
        layer_bits: layer to 2..8 or 32; layers that read one tensor have equal bits.

    Returns:
        Point name to bits, 32 where the point is switched off.
    """
    bits: dict[str, int] = {}
    for point in reversed(points):  # what is made of a tensor comes after it
        wanted = min((layer_bits.get(layer, NOT_QUANTIZED) for layer in point.layers), default=NOT_QUANTIZED)
        if point.role == "narrow":
            wanted = wanted if wanted < STORAGE_BITS else NOT_QUANTIZED
        elif point.role == "storage":
            used = [wanted] if point.layers else [bits[name] for name in point.follows]
            wanted = STORAGE_BITS if min(used, default=NOT_QUANTIZED) <= STORAGE_BITS else NOT_QUANTIZED
        bits[point.name] = wanted
    return bits


_MOVES = (_MOVES_MODULES, _MOVES_FUNCTIONS, _MOVES_METHODS)
_MERGES = (_MERGES_MODULES, _MERGES_FUNCTIONS, _MERGES_METHODS)


def is_merge(node: fx.Node) -> bool:
    """Whether a node makes new values of quantized ones outside any layer: a sum, concatenation or pool."""
    return _is(node, *_MERGES)


def _is(node: fx.Node, modules: tuple, functions: tuple, methods: tuple) -> bool:
    if node.op == "call_module":
        return isinstance(module_of(node), modules)
    return (node.op == "call_function" and node.target in functions) or (
        node.op == "call_method" and node.target in methods
    )


def _source(node: fx.Node) -> fx.Node:
    """The tensor that holds the values of `node`: above everything that only moves them."""
    while _is(node, *_MOVES):
        node = node.all_input_nodes[0]
    return node


def _first_below(node: fx.Node, tensors: set[fx.Node]) -> list[fx.Node]:
    """The first tensors with a point on every path below `node`, itself included."""
    if node in tensors:
        return [node]
    return [found for user in node.users for found in _first_below(user, tensors)]


def _point_name(node: fx.Node) -> str:
    return f"quantize_{node.name}"


def _insert_after(graph: fx.GraphModule, node: fx.Node, name: str) -> None:
    """Put a quantizer behind `node` for all that read it."""
    graph.add_submodule(name, ActivationQuantizer())
    with graph.graph.inserting_after(node):
        inserted = graph.graph.call_module(name, (node,))
    inserted.meta = dict(node.meta)
    node.replace_all_uses_with(inserted, delete_user_cb=lambda user: user is not inserted)


def _insert_narrow(
    graph: fx.GraphModule, layers: Sequence[fx.Node], storage: str
) -> Iterator[QuantizationPoint]:
    """Put a quantizer in front of the layers that read a stored tensor; one for each tensor they read."""
    by_input: dict[fx.Node, list[fx.Node]] = {}
    for layer in layers:
        by_input.setdefault(layer.all_input_nodes[0], []).append(layer)
    for index, (node, readers) in enumerate(by_input.items()):
        name = f"{storage}_narrow{index or ''}"
        graph.add_submodule(name, ActivationQuantizer())
        with graph.graph.inserting_after(node):
            inserted = graph.graph.call_module(name, (node,))
        inserted.meta = dict(node.meta)
        for reader in readers:
            reader.replace_input_with(node, inserted)
        yield QuantizationPoint(name, "narrow", tuple(str(reader.target) for reader in readers))

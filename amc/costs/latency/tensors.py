"""Which tensors a network writes, and in which format: what the costs of requantization depend on."""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from torch import fx, nn

from amc.graph import ChannelPad, module_of, shape_of
from amc.quantization.modules import ActivationQuantizer
from amc.quantization.points import is_merge
from amc.space import Space


@dataclass(frozen=True, eq=False)
class Tensors:
    """The tensors of a network that a quantization point may turn into codes.

    Attributes:
        channels: float64 [tensors, points]; times the widths of all layers it gives the channels that the
            widths decide.
        constant: float64 [tensors]; channels that no width changes.
        pixels: float64 [tensors]; elements of one channel.
        writer: int64 [tensors]; row of the layer that writes the tensor, -1 for a sum or concatenation.
        point: name of the quantization point behind each tensor, "" where there is none.
        operands: names of the points in front of a merge; () for what a layer writes.
        block: name of the residual block without which the tensor is not there, "" where there is none.
    """

    channels: np.ndarray
    constant: np.ndarray
    pixels: np.ndarray
    writer: np.ndarray
    point: tuple[str, ...]
    operands: tuple[tuple[str, ...], ...]
    block: tuple[str, ...]

    def elements(self, widths: np.ndarray) -> np.ndarray:
        """Elements of every tensor for output widths [points]; float64 [tensors]."""
        return (self.constant + self.channels @ widths) * self.pixels


def find_tensors(space: Space) -> Tensors:
    """Walk the traced graph once and note each tensor that a layer or a merge writes."""
    network = space.network
    sources = _channel_sources(space)
    block_of = {node: block.name for block in network.blocks for node in (*block.nodes, block.sum)}
    rows: list[tuple[np.ndarray, float, float, int, str, tuple[str, ...], str]] = []
    for node in network.module.graph.nodes:
        layer = str(node.target) if node.op == "call_module" else ""
        row = space.row(layer) if layer in {v.name for v in network.layers} else -1
        if row < 0 and not is_merge(node):
            continue
        vector, constant = sources[node]
        pixels = float(np.prod(shape_of(node)[2:]))
        behind, before = _point_behind(node), _points_before(node, row)
        rows.append((vector, constant, pixels, row, behind, before, block_of.get(node.name, "")))
    vectors, constants, pixels, writers, points, operands, blocks = zip(*rows, strict=True)
    return Tensors(
        np.stack(vectors), np.array(constants), np.array(pixels), np.array(writers), points, operands, blocks
    )


def _channel_sources(space: Space) -> Mapping[fx.Node, tuple[np.ndarray, float]]:
    """Channels of every tensor of the graph as a vector over the widths of all layers, plus a constant."""
    network, count = space.network, len(space.points)
    layers = {layer.name for layer in network.layers}
    outputs = {m.module: g.name for g in network.groups for m in g.members if m.side == "out"}
    found: dict[fx.Node, tuple[np.ndarray, float]] = {}
    for node in network.module.graph.nodes:
        shape, name = shape_of(node), str(node.target)
        channels = float(shape[1]) if len(shape) > 1 else 0.0
        inputs = [found[i] for i in node.all_input_nodes]
        own = np.zeros(count)
        if node.op == "call_module" and (name in layers or isinstance(module_of(node), ChannelPad)):
            decider = name if name in layers else outputs.get(name)
            if decider is not None:
                own[space.row(decider)], channels = 1.0, 0.0
            found[node] = (own, channels)
        elif is_concatenation(node):
            found[node] = (sum((i[0] for i in inputs), own), sum(i[1] for i in inputs))
        else:
            # A sum with a shortcut: the first operand that the widths decide stands for all.
            decided = [i for i in inputs if i[0].any()]
            found[node] = decided[0] if decided else (own, channels)
    return found


def is_concatenation(node: fx.Node) -> bool:
    """Whether the channels of a node's inputs lie one behind the other in its output."""
    import torch

    return node.op == "call_function" and node.target in (torch.cat, torch.concat)


def _point_behind(node: fx.Node) -> str:
    """Name of the quantization point that a node's values reach first, past norms and activations."""
    while True:
        users = list(node.users)
        points = [str(u.target) for u in users if isinstance(module_of(u), ActivationQuantizer)]
        if points:
            return points[0]
        if len(users) != 1 or users[0].op == "output" or is_merge(users[0]) or _is_layer(users[0]):
            return ""
        node = users[0]


def _is_layer(node: fx.Node) -> bool:
    return isinstance(module_of(node), nn.Conv2d | nn.Linear)


def _points_before(node: fx.Node, row: int) -> tuple[str, ...]:
    """Names of the points that a merge reads; a shortcut passes on the codes of the point before it."""
    if row >= 0:
        return ()
    names = []
    for source in node.all_input_nodes:
        while not isinstance(module_of(source), ActivationQuantizer) and source.all_input_nodes:
            source = source.all_input_nodes[0]
        if isinstance(module_of(source), ActivationQuantizer):
            names.append(str(source.target))
    return tuple(names)

"""`Network`: a traced module with its layers, channel groups and quantization points."""

import copy
import fnmatch
import hashlib
import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, fx, nn

from amc.blocks import ResidualBlock, cut_blocks, find_blocks
from amc.errors import UserError
from amc.functional import rewrite_functional_layers
from amc.graph import (
    ChannelPad,
    FixedStage,
    erase_idle,
    module_of,
    norm_reads_outputs,
    propagate_shapes,
    shape_of,
    trace_graph,
)
from amc.groups import COMPRESSIBLE, NORMS, Group, find_groups, is_depthwise
from amc.in_place import follow_changes
from amc.proof import prove_groups
from amc.quantization.points import QuantizationPoint, insert_points
from amc.rewrite import rewrite_channel_pads
from amc.slicing import clone_module, sizes_of


@dataclass(frozen=True)
class Layer:
    """One Conv2d or Linear that can be compressed.

    Attributes:
        name: path in the module tree, also the name of its decision point.
        kind: "conv", "depthwise" or "linear".
        in_channels, out_channels: channels or features.
        kernel: height x width of the kernel in elements (1 for Linear).
        kernel_size: the larger side of the kernel.
        stride: the larger stride.
        in_shape: height and width of one input channel (1, 1 for Linear).
        out_size: pixels of one output channel, for a Linear the rows it is applied to; summed over all
            calls of a layer that the forward pass calls more than once.
        has_bias: whether it carries a bias of its own.
        norm: path of the batch norm that alone reads its output, and is folded into it at export.
        input_tensor: name of the tensor it reads; layers that read one tensor share its activation bits.
    """

    name: str
    kind: str
    in_channels: int
    out_channels: int
    kernel: int
    kernel_size: int
    stride: int
    in_shape: tuple[int, int]
    out_size: int
    has_bias: bool
    norm: str | None
    input_tensor: str

    @property
    def macs(self) -> int:
        """Multiply-accumulates for one input."""
        inputs = 1 if self.kind == "depthwise" else self.in_channels
        return inputs * self.out_channels * self.kernel * self.out_size

    @property
    def weights(self) -> int:
        """Elements of the weight."""
        return self.macs // self.out_size


@dataclass(frozen=True, eq=False)
class Network:
    """A traced network: what every other part of the package works on.

    Attributes:
        module: the traced module in evaluation mode, with channel pads rewritten and a switched-off
            `ActivationQuantizer` at every quantization point. Treat it as read-only; `copy()` for a copy.
        layers: compressible layers in execution order.
        groups: channel groups, in the order in which the walk meets them.
        points: quantization points in execution order.
        example: the example input it was traced with.
        blocks: residual blocks that can be left out, in execution order.
    """

    module: fx.GraphModule
    layers: tuple[Layer, ...]
    groups: tuple[Group, ...]
    points: tuple[QuantizationPoint, ...]
    example: Tensor
    blocks: tuple[ResidualBlock, ...] = ()

    def copy(self) -> fx.GraphModule:
        """A copy of the traced module that may be changed freely."""
        return clone_module(self.module)

    def layer(self, name: str) -> Layer:
        """The layer of that name."""
        return self._layer_by_name[name]

    def layer_groups(self, name: str) -> int:
        """Groups of a layer's convolution; 1 for a linear layer."""
        module = self.module.get_submodule(name)
        return module.groups if isinstance(module, nn.Conv2d) else 1

    @cached_property
    def _layer_by_name(self) -> dict[str, Layer]:
        return {layer.name: layer for layer in self.layers}

    @cached_property
    def group_of(self) -> dict[str, Group]:
        """Layer name to the group of its output channels; layers without one keep all outputs."""
        return {name: g for g in self.groups for name in g.producers() if name in self._layer_by_name}

    @cached_property
    def sizes(self) -> dict[tuple[str, str], int]:
        """(module, side) to the original size, for every side that a group reaches."""
        return sizes_of(self.module, self.groups)

    @property
    def macs(self) -> int:
        """Multiply-accumulates of all layers and fixed stages for one input."""
        return sum(layer.macs for layer in self.layers) + self.fixed_macs

    @cached_property
    def fixed_macs(self) -> int:
        """Multiply-accumulates of stages that no policy changes, for one input."""
        stages = ((module_of(node), node) for node in self.module.graph.nodes)
        return sum(m.macs(shape_of(n.all_input_nodes[0])) for m, n in stages if isinstance(m, FixedStage))

    @cached_property
    def fingerprint(self) -> str:
        """A short name of the architecture (layers and their shapes, not the weights)."""
        rows = [[v.name, v.kind, v.in_channels, v.out_channels, v.kernel, v.out_size] for v in self.layers]
        return hashlib.sha256(json.dumps(rows).encode()).hexdigest()[:16]

    def without(self, names: Iterable[str]) -> "Network":
        """The network that is left without some of its residual blocks; shares its modules.

        Args:
            names: of blocks.
        """
        wanted = frozenset(names)
        if not wanted:
            return self
        if wanted not in self._reduced:
            self._reduced[wanted] = _cut(self, [block for block in self.blocks if block.name in wanted])
        return self._reduced[wanted]

    @cached_property
    def _reduced(self) -> dict[frozenset[str], "Network"]:
        return {}

    def frozen_reasons(self) -> dict[str, str]:
        """Group name to the reason why it is not pruned, for those that are not."""
        return {group.name: group.frozen for group in self.groups if group.frozen}


def trace(model: nn.Module, example: Tensor, freeze: Sequence[str] = ()) -> Network:
    """Trace a module into a `Network` and prove every channel group on it.

    Args:
        model: any module that torch.fx can trace; it is not changed.
        example: an input [N, ...], N >= 1.
        freeze: shell patterns of layers whose output channels are never pruned.

    Raises:
        UserError: the module cannot be traced, changes a tensor in place whose views are read afterwards,
            holds no compressible layer, has weights that are not finite, or a pattern matches no layer.
    """
    example = example[:1].detach().cpu().clone()
    graph = trace_graph(clone_module(model).cpu(), example)
    check_finite(graph)
    propagate_shapes(graph, example)
    erase_idle(graph)
    follow_changes(graph, example)
    rewrite_functional_layers(graph, example)
    rewrite_channel_pads(graph, example)
    nodes = _layer_nodes(graph)
    names = [str(node.target) for node in nodes]
    groups = find_groups(graph, example, names)
    groups = _freeze_shared(graph, _freeze_matching(groups, names, freeze))
    groups = prove_groups(graph, groups, example)
    points = insert_points(graph, names)
    tensors = {layer: point.name for point in points for layer in point.layers if point.role != "narrow"}
    layers = tuple(_to_layer(graph, node, tensors[str(node.target)]) for node in nodes)
    graph.graph.lint()
    return Network(graph, layers, tuple(groups), points, example, find_blocks(graph, names))


def weights_digest(module: nn.Module) -> str:
    """A short name of a module's weights and statistics."""
    digest = hashlib.sha256()
    for name, tensor in sorted(module.state_dict().items()):
        digest.update(name.encode())
        digest.update(tensor.double().numpy().tobytes())
    return digest.hexdigest()[:16]


def _cut(network: Network, blocks: Sequence[ResidualBlock]) -> Network:
    graph = copy.deepcopy(network.module.graph)
    replaced = cut_blocks(graph, blocks, network.module)
    module = fx.GraphModule(network.module, graph, type(network.module).__name__)
    module.eval()
    left = {name for name, _ in module.named_modules()}
    groups = (
        replace(group, members=tuple(member for member in group.members if member.module in left))
        for group in network.groups
    )
    return Network(
        module,
        tuple(layer for layer in network.layers if layer.name in left),
        tuple(group for group in groups if group.members),
        _points_left(network.points, left, replaced),
        network.example,
        tuple(block for block in network.blocks if block.name in left),
    )


def _points_left(
    points: Iterable[QuantizationPoint], left: set[str], replaced: Mapping[str, str]
) -> tuple[QuantizationPoint, ...]:
    """The points whose modules are left, which follow what stands in the place of those that are not."""

    def now(name: str) -> str:
        while name in replaced:
            name = replaced[name]
        return name

    return tuple(
        replace(
            point,
            layers=tuple(layer for layer in point.layers if layer in left),
            follows=tuple(dict.fromkeys(now(name) for name in point.follows if now(name) in left)),
        )
        for point in points
        if point.name in left
    )


def check_finite(model: nn.Module) -> None:
    """Refuse weights that are NaN or infinite.

    Raises:
        UserError: names the first such tensor.
    """
    for name, tensor in model.state_dict().items():
        if tensor.is_floating_point() and not torch.isfinite(tensor).all():
            raise UserError(f"The weights hold NaN or infinite values, first in {name}; load a sound file.")


def _layer_nodes(graph: fx.GraphModule) -> list[fx.Node]:
    nodes = [
        node
        for node in graph.graph.nodes
        if isinstance(module_of(node), COMPRESSIBLE) and not isinstance(module_of(node), ChannelPad)
    ]
    unique = {str(node.target): node for node in reversed(nodes)}
    if not unique:
        raise UserError("The network holds no Conv2d or Linear layer, so there is nothing to compress.")
    return [node for node in nodes if unique[str(node.target)] is node]


def _freeze_matching(groups: list[Group], layers: list[str], patterns: Sequence[str]) -> list[Group]:
    for pattern in patterns:
        matched = set(fnmatch.filter(layers, pattern))
        if not matched:
            raise UserError(f"--freeze {pattern} matches no layer; the layers are {', '.join(layers)}.")
        groups = [
            group.freeze(f"asked for by --freeze {pattern}") if matched & set(group.producers()) else group
            for group in groups
        ]
    return groups


def _freeze_shared(graph: fx.GraphModule, groups: list[Group]) -> list[Group]:
    """Freeze groups that reach a module which the forward pass calls more than once."""
    targets = [str(node.target) for node in graph.graph.nodes if node.op == "call_module"]
    shared = {target for target in targets if targets.count(target) > 1}
    for name in sorted(shared):
        groups = [
            group.freeze(f"{name} is called more than once")
            if any(member.module == name for member in group.members)
            else group
            for group in groups
        ]
    return groups


def _to_layer(graph: fx.GraphModule, node: fx.Node, input_tensor: str) -> Layer:
    module = module_of(node)
    calls = [n for n in graph.graph.nodes if n.op == "call_module" and n.target == node.target]
    pixels = slice(1, -1) if isinstance(module, nn.Linear) else slice(2, None)
    common: dict[str, Any] = {
        "name": str(node.target),
        "norm": _folded_norm(node),
        "input_tensor": input_tensor,
        "out_size": sum(math.prod(shape_of(call)[pixels]) for call in calls),
    }
    if isinstance(module, nn.Linear):
        return Layer(
            kind="linear",
            in_channels=module.in_features,
            out_channels=module.out_features,
            kernel=1,
            kernel_size=1,
            stride=1,
            in_shape=(1, 1),
            has_bias=module.bias is not None,
            **common,
        )
    assert isinstance(module, nn.Conv2d)
    height, width = shape_of(node.all_input_nodes[0])[2:]
    return Layer(
        kind="depthwise" if is_depthwise(module) else "conv",
        in_channels=module.in_channels if is_depthwise(module) else module.in_channels // module.groups,
        out_channels=module.out_channels,
        kernel=math.prod(module.kernel_size),
        kernel_size=max(module.kernel_size),
        stride=max(module.stride),
        in_shape=(height, width),
        has_bias=module.bias is not None,
        **common,
    )


def _folded_norm(node: fx.Node) -> str | None:
    users = list(node.users)
    norm = module_of(users[0]) if len(users) == 1 else None
    if not isinstance(norm, NORMS) or not norm_reads_outputs(norm, node):
        return None
    calls = [str(n.target) for n in node.graph.nodes if n.op == "call_module"]
    alone = calls.count(str(node.target)) == calls.count(str(users[0].target)) == 1
    return str(users[0].target) if alone else None

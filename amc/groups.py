"""Channel groups: which channels of which modules must be kept or dropped together.

The coupling comes from torch-pruning's dependency graph (Fang et al., DepGraph, CVPR 2023). Each group is
stored as plain index tables, so that applying a policy needs no tracing: it is a few `index_select`s.
"""

import warnings
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, fx, nn

from amc.errors import UserError
from amc.graph import shape_of

with warnings.catch_warnings():
    # Its import repeats invalid escape sequences of its docstrings as warnings.
    warnings.simplefilter("ignore")
    import torch_pruning

NORMS = (nn.BatchNorm1d, nn.BatchNorm2d)
COMPRESSIBLE = (nn.Conv2d, nn.Linear)


def maps_channels(norm: nn.Module) -> bool:
    """Whether a module is a batch norm that multiplies and shifts channels in evaluation, by parameters."""
    return isinstance(norm, NORMS) and norm.affine and norm.running_mean is not None


def is_depthwise(module: nn.Module) -> bool:
    """Whether a convolution has one filter a channel, so that its inputs and outputs are one group."""
    return isinstance(module, nn.Conv2d) and module.groups == module.in_channels == module.out_channels > 1


def is_grouped(module: nn.Module) -> bool:
    """Whether a convolution works in groups of several channels; each must lose as many as the others."""
    return isinstance(module, nn.Conv2d) and module.groups > 1 and not is_depthwise(module)


@dataclass(frozen=True)
class Member:
    """One side of one module that a group reaches.

    Attributes:
        module: path of the module.
        side: "out" (rows of a weight), "in" (columns) or "both" (batch norm, depthwise convolution).
        positions: int64 [channels, repeats], where channel c of the group lies in this module; a Linear
            behind a flatten has height x width repeats. At the "in" side of a convolution in groups the
            channels of one unit lie in the same place.
    """

    module: str
    side: str
    positions: Tensor

    @property
    def repeats(self) -> int:
        """Positions that one channel of the group takes in this module."""
        return self.positions.shape[1]


@dataclass(frozen=True)
class Group:
    """Channels that are kept or dropped together.

    Attributes:
        name: path of the first layer, in execution order, whose outputs the group holds; it decides.
        channels: how many there are in the original network.
        members: every module side that the channels reach.
        frozen: why the group cannot be pruned, or None.
        units: int64 [units, step], the channels that only go together because a convolution in groups
            needs as many in each; None where every channel is on its own.
    """

    name: str
    channels: int
    members: tuple[Member, ...]
    frozen: str | None = None
    units: Tensor | None = None

    @property
    def step(self) -> int:
        """Widths are multiples of it."""
        return 1 if self.units is None else self.units.shape[1]

    def freeze(self, reason: str) -> "Group":
        """The same group, never pruned, with the reason for it (the first reason stays)."""
        return self if self.frozen else replace(self, frozen=reason)

    def producers(self) -> list[str]:
        """Modules whose outputs the channels are, batch norms and depthwise convolutions included."""
        return [member.module for member in self.members if member.side in ("out", "both")]


def build_dependency(graph: fx.GraphModule, example: Tensor) -> Any:
    """torch-pruning's dependency graph of `graph`, which it prunes in place.

    Raises:
        UserError: torch-pruning cannot trace the network.
    """
    frozen = [p for p in graph.parameters() if not p.requires_grad]
    try:
        # It follows autograd: a fixed ChannelPad behind a fixed input would be invisible to it.
        for parameter in graph.parameters():
            parameter.requires_grad_(True)
        with warnings.catch_warnings(), torch.enable_grad():
            warnings.simplefilter("ignore")
            return torch_pruning.DependencyGraph().build_dependency(graph, (example,), verbose=False)
    except Exception as error:
        where = _reshuffled(graph)
        reason = f"channels are rearranged in {where}" if where else error
        raise UserError(f"The channel dependencies cannot be traced: {reason}.") from error
    finally:
        for parameter in frozen:
            parameter.requires_grad_(False)


def _reshuffled(graph: fx.GraphModule) -> str:
    """Path of the first module that views an image's channels as two axes; "" where none does."""
    for node in graph.graph.nodes:
        if len(shape_of(node)) == 5 and any(len(shape_of(source)) == 4 for source in node.all_input_nodes):
            return str(
                next(reversed([path for path, _ in node.meta.get("nn_module_stack", {}).values()]), "")
            )
    return ""


def pruning_function(module: nn.Module) -> Any:
    """The torch-pruning function that removes output channels of a Conv2d or Linear."""
    if is_depthwise(module):
        return torch_pruning.prune_depthwise_conv_out_channels
    if isinstance(module, nn.Conv2d):
        return torch_pruning.prune_conv_out_channels
    return torch_pruning.prune_linear_out_channels


def find_groups(graph: fx.GraphModule, example: Tensor, roots: list[str]) -> list[Group]:
    """The groups of the outputs of `roots` (layers in execution order), each once, not proved yet."""
    dependency = build_dependency(graph, example)
    names = {module: name for name, module in graph.named_modules()}
    groups: list[Group] = []
    owned: dict[str, int] = {}
    for root in roots:
        module = graph.get_submodule(root)
        if root in owned or module not in dependency.module2node:
            continue
        group = _to_group(dependency, names, root, module, side_size(module, "out"))
        for name in group.producers():
            # A batch norm behind a concatenation serves several groups, each its own channels.
            if name in owned and not isinstance(graph.get_submodule(name), NORMS):
                reason = f"{name} mixes its channels with those of {groups[owned[name]].name}"
                groups[owned[name]] = groups[owned[name]].freeze(reason)
                group = group.freeze(reason)
            owned.setdefault(name, len(groups))
        groups.append(group)
    return groups


def side_size(module: nn.Module, side: str) -> int:
    """Channels or features on one side of a module: rows of its weight, or columns for "in"."""
    if isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d):
        return module.num_features
    return module.get_parameter("weight").shape[1 if side == "in" else 0]


def _to_group(dependency: Any, names: dict, root: str, module: nn.Module, channels: int) -> Group:
    items = dependency.get_pruning_group(module, pruning_function(module), list(range(channels)))
    members: dict[tuple[str, str], Member] = {}
    frozen, units = None, None
    for item in items:
        target = item.dep.target.module
        if not isinstance(target, nn.Module) or target not in names:
            if isinstance(target, nn.Parameter):
                frozen = frozen or "a bare parameter takes part in it"
            continue  # an operation without parameters: add, cat, reshape
        if not isinstance(target, COMPRESSIBLE + NORMS):
            if any(parameter.numel() > 1 for parameter in target.parameters()):
                frozen = frozen or f"{names[target]} is a {type(target).__name__}, which cannot be sliced"
            continue
        side = _side(dependency, item.dep.handler, target)
        positions, problem = _positions(item.idxs, item.root_idxs, channels)
        frozen = frozen or problem
        if positions is not None and is_grouped(target):
            positions, own, problem = _in_units(target, side, positions)
            same = units is None or own is None or torch.equal(own, units)
            frozen = frozen or problem or (None if same else f"{names[target]} divides it in another way")
            units = units if own is None else own
        if positions is not None:
            members.setdefault((names[target], side), Member(names[target], side, positions))
    problem = frozen or _structural_problem(members, names)
    return Group(root, channels, tuple(members.values()), problem, units)


def _side(dependency: Any, handler: Any, target: nn.Module) -> str:
    if isinstance(target, NORMS) or is_depthwise(target):
        return "both"
    return "out" if dependency.is_out_channel_pruning_fn(handler) else "in"


def _positions(idxs: list[int], roots: list[int], channels: int) -> tuple[Tensor | None, str | None]:
    """Table [channels, repeats] from pairs (position, channel); a problem where it is not rectangular."""
    if roots is None or len(idxs) != len(roots) or len(idxs) % channels:
        return None, "its channels reach a module in unequal shares"
    order = torch.tensor(idxs)[torch.argsort(torch.tensor(roots), stable=True)]
    if torch.bincount(torch.tensor(roots), minlength=channels).unique().numel() != 1:
        return None, "its channels reach a module in unequal shares"
    return order.reshape(channels, -1), None


def _in_units(module: nn.Module, side: str, positions: Tensor) -> tuple[Tensor, Tensor | None, str | None]:
    """What a convolution in groups makes of a group: positions, its units [units, step], a problem if any."""
    assert isinstance(module, nn.Conv2d)
    whole = module.in_channels if side == "in" else module.out_channels
    if positions.shape != (whole, 1):
        return positions, None, "a convolution in groups reads it together with others"
    places = positions.squeeze(1) % (whole // module.groups)
    units = places.argsort(stable=True).reshape(-1, module.groups)
    return (places[:, None] if side == "in" else positions), units, None


def _structural_problem(members: dict[tuple[str, str], Member], names: dict) -> str | None:
    modules = {name: module for module, name in names.items()}
    for (name, side), member in members.items():
        module = modules[name]
        size = side_size(module, side)
        shared = is_grouped(module) and side == "in"
        if not shared and member.positions.unique().numel() != member.positions.numel():
            return f"{name} would lose one position for two channels"
        if side == "out" and member.positions.numel() != size:
            return f"{name} mixes its channels with those of another layer"
        if side != "in" and isinstance(module, COMPRESSIBLE) and member.repeats > 1:
            # A width says how many channels a layer has, and would say half of them here.
            return f"{name} has each of its channels {member.repeats} times"
    if not any(member.side == "in" for member in members.values()):
        return "its channels are the network's output"
    return None

"""Removing channels from a traced network: index tables in, a smaller module out."""

from collections.abc import Iterable, Mapping
from typing import TypeVar, cast

import torch
from torch import Tensor, nn

from amc.groups import Group, Member, side_size

M = TypeVar("M", bound=nn.Module)


def clone_module(module: M) -> M:
    """A copy of a module tree with its own tensors; what the original uses twice, the copy uses twice.

    `copy.deepcopy` of a GraphModule regenerates its code each time (tens of milliseconds for ResNet-56);
    here the compiled forward pass and the graph are shared, which nothing that compresses a copy changes.
    """
    return _clone(module, {})


def _clone(module: M, known: dict[int, nn.Module]) -> M:
    if id(module) in known:
        return cast(M, known[id(module)])
    new = object.__new__(type(module))  # GraphModule.__new__ would make a class without the forward pass
    known[id(module)] = new
    # Dictionaries are copied: a hook on the copy must not fire in the original.
    new.__dict__.update({k: v.copy() if isinstance(v, dict) else v for k, v in module.__dict__.items()})
    new._parameters = {name: _clone_parameter(p) for name, p in module._parameters.items()}
    new._buffers = {name: b if b is None else b.clone() for name, b in module._buffers.items()}
    new._modules = {name: m if m is None else _clone(m, known) for name, m in module._modules.items()}
    return new


def _clone_parameter(parameter: nn.Parameter | None) -> nn.Parameter | None:
    if parameter is None:
        return None
    return nn.Parameter(parameter.detach().clone(), requires_grad=parameter.requires_grad)


def kept_positions(
    groups: Iterable[Group], kept: Mapping[str, Tensor], sizes: Mapping[tuple[str, str], int]
) -> dict[tuple[str, str], Tensor]:
    """Positions that survive on each side of each module.

    Args:
        groups: the network's groups.
        kept: group name to int64 [width], sorted indices of its kept channels; absent groups stay whole.
        sizes: (module, side) to the original size of that side.

    Returns:
        (module, side) to sorted int64 positions, for the sides that lose any. Several groups may share a
        side (a concat): what none of them drops is kept.
    """
    masks: dict[tuple[str, str], Tensor] = {}
    for group in groups:
        if group.name not in kept or len(kept[group.name]) == group.channels:
            continue
        dropped = torch.ones(group.channels, dtype=torch.bool)
        dropped[kept[group.name]] = False
        for member in group.members:
            key = (member.module, member.side)
            mask = masks.setdefault(key, torch.ones(sizes[key], dtype=torch.bool))
            mask[member.positions[dropped].reshape(-1)] = False
    return {key: mask.nonzero().squeeze(1) for key, mask in masks.items()}


def slice_module(module: nn.Module, side: str, keep: Tensor) -> None:
    """Keep only the positions `keep` of one side of a Conv2d, Linear or batch norm, in place."""
    dim = 1 if side == "in" else 0
    for name in ("weight", "bias"):
        parameter = module._parameters.get(name)
        if parameter is not None and (name == "weight" or dim == 0):
            sliced = parameter.detach().index_select(dim, keep.to(parameter.device))
            module._parameters[name] = nn.Parameter(sliced, requires_grad=parameter.requires_grad)
    for name in ("running_mean", "running_var"):
        buffer = module._buffers.get(name)
        if buffer is not None:
            module._buffers[name] = buffer.index_select(0, keep.to(buffer.device))
    _set_sizes(module, side)


def _set_sizes(module: nn.Module, side: str) -> None:
    if isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d):
        state = module.running_mean if module.running_mean is not None else module.weight
        module.num_features = state.shape[0]
    elif isinstance(module, nn.Linear):
        module.out_features, module.in_features = module.weight.shape[0], module.weight.shape[1]
    elif isinstance(module, nn.Conv2d):
        module.out_channels = module.weight.shape[0]
        if side == "both":  # depthwise
            module.in_channels = module.groups = module.weight.shape[0]
        else:
            module.in_channels = module.weight.shape[1] * module.groups


def apply_slices(model: nn.Module, positions: Mapping[tuple[str, str], Tensor]) -> None:
    """Slice every module of `model` in place, as `kept_positions` says."""
    for (name, side), keep in positions.items():
        slice_module(model.get_submodule(name), side, keep)


def mask_group(model: nn.Module, group: Group, dropped: Tensor) -> None:
    """Zero the dropped channels of a group at everything that produces them, in place.

    With weights, biases and batch-norm affine parameters at zero the channels carry exactly 0, so the
    masked network computes what the sliced one does, wherever the channels flow. It follows producers
    only, while slicing also cuts consumers, so a wrong coupling shows as a difference.
    """
    for member in group.members:
        if member.side != "in":
            _zero_rows(model.get_submodule(member.module), member, dropped)


def _zero_rows(module: nn.Module, member: Member, dropped: Tensor) -> None:
    rows = member.positions[dropped].reshape(-1)
    with torch.no_grad():
        for name in ("weight", "bias"):
            parameter = module._parameters.get(name)
            if parameter is not None:
                parameter[rows] = 0.0
        mean = module._buffers.get("running_mean")
        if mean is not None:  # what a batch norm without affine parameters would otherwise subtract
            mean[rows] = 0.0


def sizes_of(model: nn.Module, groups: Iterable[Group]) -> dict[tuple[str, str], int]:
    """The `sizes` argument of `kept_positions` for a model."""
    keys = {(member.module, member.side) for group in groups for member in group.members}
    return {(name, side): side_size(model.get_submodule(name), side) for name, side in keys}

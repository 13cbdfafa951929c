"""Importance of channels: one score a channel of every group, from weights or from gradients.

A group's score averages over all modules that its channels reach, each divided by its own mean so that no
member dominates; the order within a group is all that pruning uses.
"""

from collections.abc import Callable, Iterable, Mapping

import torch
from torch import Tensor, nn

from amc.errors import UserError
from amc.groups import NORMS, Group, Member
from amc.network import Network

MemberScore = Callable[[nn.Module, str], Tensor | None]
"""Scores of the positions on one side of a module, or None where it has nothing to say."""

LossFunction = Callable[[nn.Module, Tensor, Tensor], Tensor]


def _magnitude(module: nn.Module, side: str, power: int) -> Tensor | None:
    if isinstance(module, NORMS):
        return None
    weight = module.get_parameter("weight").detach()
    rows = weight.transpose(0, 1) if side == "in" else weight
    return rows.reshape(rows.shape[0], -1).abs().pow(power).sum(dim=1)


def l1_score(module: nn.Module, side: str) -> Tensor | None:
    """Sum of absolute weights (Li et al., 2017)."""
    return _magnitude(module, side, 1)


def l2_score(module: nn.Module, side: str) -> Tensor | None:
    """Sum of squared weights."""
    return _magnitude(module, side, 2)


def norm_scale_score(module: nn.Module, side: str) -> Tensor | None:
    """Absolute batch-norm scale (Liu et al., network slimming, 2017)."""
    if isinstance(module, NORMS) and module.affine:
        return module.weight.detach().abs()
    return None


def taylor_score(module: nn.Module, side: str) -> Tensor | None:
    """First-order Taylor expansion |sum w dL/dw| (Molchanov et al., 2019); needs gradients in place."""
    weight = module.get_parameter("weight") if getattr(module, "weight", None) is not None else None
    if weight is None or weight.grad is None:
        return None
    change = weight.detach() * weight.grad
    rows = change.transpose(0, 1) if side == "in" else change
    return rows.reshape(rows.shape[0], -1).sum(dim=1).abs()


SCORES: dict[str, MemberScore] = {
    "l1": l1_score,
    "l2": l2_score,
    "bn": norm_scale_score,
    "taylor": taylor_score,
}


def rank_channels(
    network: Network,
    importance: str = "l1",
    batches: Iterable[tuple[Tensor, Tensor]] = (),
    loss: LossFunction | None = None,
) -> dict[str, Tensor]:
    """Channels of every prunable group, most important first.

    Args:
        network: the traced network.
        importance: "l1", "l2", "bn" (batch-norm scale) or "taylor".
        batches: labelled batches for "taylor", from the training split.
        loss: loss(model, images, labels) for "taylor".

    Returns:
        Group name to int64 [channels].

    Raises:
        UserError: unknown importance, or "taylor" without data.
    """
    if importance not in SCORES:
        raise UserError(f"There is no importance {importance!r}; choose {', '.join(SCORES)}.")
    model = network.copy()
    if importance == "taylor":
        _accumulate_gradients(model, batches, loss)
    prunable = [group for group in network.groups if not group.frozen]
    return {group.name: group_order(model, group, SCORES[importance]) for group in prunable}


def kept_channels(ranking: Mapping[str, Tensor], widths: Mapping[str, int]) -> dict[str, Tensor]:
    """Sorted indices of the kept channels of each group, for group widths."""
    return {name: order[: widths[name]].sort().values for name, order in ranking.items()}


def group_order(model: nn.Module, group: Group, score: MemberScore) -> Tensor:
    """Channels of one group by a score of its members, most important first, int64 [channels]."""
    scores = [_member_score(model, member, score) for member in group.members]
    known = [s for s in scores if s is not None]
    if not known:  # no batch norm in the group, say
        return group_order(model, group, l1_score)
    channels = torch.stack(known).mean(dim=0)
    if group.units is None:
        return channels.argsort(descending=True, stable=True)
    # Whole units one after the other, so that every legal width keeps whole units.
    return group.units[channels[group.units].sum(dim=1).argsort(descending=True, stable=True)].reshape(-1)


def _member_score(model: nn.Module, member: Member, score: MemberScore) -> Tensor | None:
    positions = score(model.get_submodule(member.module), member.side)
    if positions is None:
        return None
    channels = positions[member.positions].sum(dim=1)
    return channels / channels.mean().clamp_min(1e-12)


def _accumulate_gradients(
    model: nn.Module, batches: Iterable[tuple[Tensor, Tensor]], loss: LossFunction | None
) -> None:
    batches = list(batches)
    if not batches or loss is None:
        raise UserError("Importance 'taylor' needs labelled training batches and a loss.")
    for images, labels in batches:
        loss(model, images, labels).backward()

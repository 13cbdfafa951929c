"""Which channels the layers behind can do without, once least squares has made up for them.

The Optimal Brain Surgeon (Hassibi and Stork, NIPS 1993) in blocks: with G the second moment of a layer's
inputs and W' the weights of the inputs that are left, leaving channel c out as well costs
tr(W'_c^T [(G^-1)_cc]^-1 W'_c) after all others have been refitted. The cheapest goes, the inverse is
downdated, and so on until none is left: an order in which every prefix is a set of kept channels. Magnitudes
do not know that two channels say the same; this does.
"""

from collections.abc import Mapping

import torch
from torch import Tensor

from amc.groups import NORMS, Group, Member
from amc.network import Network
from amc.pruning.importance import group_order, l2_score
from amc.pruning.reconstruction import RIDGE, InputMoments

STEPS = 64
"""Of a group with more channels than this several are left out at a time."""


def eliminate_channels(network: Network, moments: Mapping[str, InputMoments]) -> dict[str, Tensor]:
    """Channels of every prunable group, the one eliminated last first.

    Args:
        network: the traced network.
        moments: of the inputs of its layers (`reconstruction.input_moments`).

    Returns:
        Group name to int64 [channels]. A group that no layer with moments reads is ranked by its weights.
    """
    orders: dict[str, Tensor] = {}
    for group in network.groups:
        if group.frozen:
            continue
        readers = [member for member in group.members if member.side == "in" and member.module in moments]
        consumers = [_Consumer(network, group, member, moments[member.module]) for member in readers]
        orders[group.name] = (
            _elimination(group, consumers) if consumers else group_order(network.module, group, l2_score)
        )
    return orders


class _Consumer:
    """A layer that reads a group: what leaving channels out costs its outputs.

    Errors are those of what the rest of the network sees, behind the batch norm where one follows, as a share
    of that signal's variance; so layers that read the same channels can be added up.
    """

    def __init__(self, network: Network, group: Group, member: Member, moments: InputMoments):
        weight = network.module.get_submodule(member.module).get_parameter("weight").detach()
        per_input = weight[0, 0].numel()
        flat = weight.reshape(len(weight), -1).double().cpu()
        variance = ((flat @ moments.second) * flat).sum(dim=1).clamp_min(1e-12)
        gain = _gain(network, member.module, variance)
        signal = float((gain**2 * variance).sum())
        self.weights = (flat * gain[:, None]).T / max(signal, 1e-12) ** 0.5  # [d, out]
        size = len(moments.second)
        ridge = RIDGE * moments.second.diagonal().mean().clamp_min(1e-12)
        self.inverse = torch.linalg.inv(moments.second + ridge * torch.eye(size, dtype=torch.float64))
        places = member.positions[:, :, None] * per_input + torch.arange(per_input)
        columns = places.reshape(group.channels, -1)
        units = _units(group)
        self.columns = columns[units].reshape(len(units), -1)

    def costs(self, alive: Tensor) -> Tensor:
        """What leaving out each unit that is left would add to the error, [alive]."""
        columns = self.columns[alive]
        blocks = self.inverse[columns[:, :, None], columns[:, None, :]]
        own = self.weights[columns]
        return (own * torch.linalg.solve(blocks, own)).sum(dim=(1, 2))

    def leave_out(self, units: Tensor) -> None:
        """Refit the other inputs to what these units said."""
        columns = self.columns[units].reshape(-1)
        spread = torch.linalg.solve(self.inverse[columns][:, columns], self.inverse[columns]).T
        self.weights -= spread @ self.weights[columns]
        self.inverse -= spread @ self.inverse[columns]


def _gain(network: Network, name: str, variance: Tensor) -> Tensor:
    """What an output is multiplied with before anything else reads it: its norm divides by its deviation."""
    norm = network.layer(name).norm
    module = network.module.get_submodule(norm) if norm is not None else None
    if not isinstance(module, NORMS):
        return torch.ones_like(variance)
    scale = module.weight.detach().double().cpu() if module.affine else torch.ones_like(variance)
    return scale / variance.sqrt()


def _units(group: Group) -> Tensor:
    """Channels that only go together, int64 [units, step]."""
    return torch.arange(group.channels)[:, None] if group.units is None else group.units


def _elimination(group: Group, consumers: list[_Consumer]) -> Tensor:
    units = _units(group)
    alive, gone = torch.arange(len(units)), list[Tensor]()
    while len(alive):
        costs = torch.stack([consumer.costs(alive) for consumer in consumers]).sum(dim=0)
        cheapest = costs.argsort(stable=True)[: max(1, len(alive) // STEPS)]
        for consumer in consumers:
            consumer.leave_out(alive[cheapest])
        gone.append(alive[cheapest])
        left = torch.ones(len(alive), dtype=torch.bool)
        left[cheapest] = False
        alive = alive[left]
    return units[torch.cat(gone).flip(0)].reshape(-1)

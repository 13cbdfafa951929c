"""Which channels the layers behind can do without, once least squares has made up for them.

The Optimal Brain Surgeon (Hassibi and Stork, NIPS 1993) in blocks: with G the second moment of a layer's
inputs and W' the weights of the inputs that are left, leaving channel c out as well costs
tr(W'_c^T [(G^-1)_cc]^-1 W'_c) after all others have been refitted. The cheapest goes, the inverse is
downdated, and so on until none is left: an order in which every prefix is a set of kept channels. Magnitudes
do not know that two channels say the same; this does.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from amc.groups import NORMS, Group, Member
from amc.network import Network
from amc.pruning.importance import group_order, l2_score
from amc.pruning.reconstruction import RIDGE, InputMoments

STEPS = 64
"""Of a group with more channels than this several are left out at a time."""


@dataclass(frozen=True)
class Elimination:
    """Channels in the order in which they would be missed.

    Attributes:
        orders: group name to int64 [channels], the one eliminated last first.
        errors: group name to float64 [channels + 1], not increasing: what the network behind loses when so
            many channels are kept. Amplitudes, in units of the layers' signals, added up over the layers that
            read them: what a whole stage reads counts for more than what one layer reads.
    """

    orders: dict[str, Tensor]
    errors: dict[str, Tensor]


def eliminate_channels(network: Network, moments: Mapping[str, InputMoments]) -> Elimination:
    """Eliminate the channels of every prunable group one after the other.

    Args:
        network: the traced network.
        moments: of the inputs of its layers (`reconstruction.input_moments`). Convolutions in groups have no
            say: their channels go in units, one of each group. What no other layer with moments reads is
            ranked by its weights, and loses the share of channels that goes.
    """
    orders, errors = dict[str, Tensor](), dict[str, Tensor]()
    for group in network.groups:
        if group.frozen:
            continue
        single = [member for member in group.members if member.side == "in" and member.module in moments]
        readers = [member for member in single if network.layer_groups(member.module) == 1]
        consumers = [_Consumer(network, group, member, moments[member.module]) for member in readers]
        found = _elimination(group, consumers) if consumers else _by_weights(network, group)
        orders[group.name], errors[group.name] = found
    return Elimination(orders, errors)


def _by_weights(network: Network, group: Group) -> tuple[Tensor, Tensor]:
    order = group_order(network.module, group, l2_score)
    share = torch.arange(group.channels, -1, -1, dtype=torch.float64) / group.channels
    return order, share.sqrt()


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


def _elimination(group: Group, consumers: list[_Consumer]) -> tuple[Tensor, Tensor]:
    """Order and errors of one group, as in `Elimination`."""
    units = _units(group)
    alive, gone, added = torch.arange(len(units)), list[Tensor](), list[Tensor]()
    while len(alive):
        costs = torch.stack([consumer.costs(alive) for consumer in consumers])
        cheapest = costs.sum(dim=0).argsort(stable=True)[: max(1, len(alive) // STEPS)]
        for consumer in consumers:
            consumer.leave_out(alive[cheapest])
        gone.append(alive[cheapest])
        # Each channel of a unit has an equal share of what the unit costs.
        added.append(costs[:, cheapest].repeat_interleave(group.step, dim=1) / group.step)
        left = torch.ones(len(alive), dtype=torch.bool)
        left[cheapest] = False
        alive = alive[left]
    amplitudes = torch.cat(added, dim=1).clamp_min(0.0).cumsum(dim=1).sqrt().sum(dim=0)
    errors = torch.cat([amplitudes.new_zeros(1), amplitudes]).flip(0)
    return units[torch.cat(gone).flip(0)].reshape(-1), errors

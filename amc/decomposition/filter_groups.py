"""Filter group approximation (Peng et al., ECCV 2018): a convolution in groups, then a 1 x 1 convolution.

The input channels are cut into groups of `s` neighbours. For group j the weight W_j = W[:, group j], taken
as n x (s k^2), is approximated by its truncated SVD of rank s, W_j ~ P_j A_j: the A_j side by side are one
convolution in groups (c -> c channels, k x k), the P_j next to each other one 1 x 1 convolution (c -> n).
Since groups touch different inputs, the squared error is the sum of the discarded squared singular values of
all groups. Parameters and MACs are s / n + 1 / k^2 of the original's.

The first factor keeps a rank of up to c, where a plain low-rank form of equal cost is a bottleneck.
"""

import torch
from torch import Tensor, nn

from amc.decomposition.chain import Chain
from amc.decomposition.low_rank import Decomposition, Factors, convolution, truncated_svd
from amc.decomposition.operator import Part, legal_amounts
from amc.network import Layer, Network

BISECTIONS = 40


class FilterGroups(Decomposition):
    """A k x k convolution in groups of `amount` channels, then 1 x 1.

    Channels that pruning left may be no multiple of the group size; the last group is then filled up with
    zeros, and its cost counts as if it were full, because that is what runs.
    """

    name = "filter-groups"

    def factors(self, weight: Tensor, amount: int) -> Factors:
        """Truncated SVD of the weight of each group of inputs."""
        n, c, kh, kw = weight.shape
        groups, rank = -(-c // amount), min(amount, n)
        full = torch.zeros(n, groups * amount, kh, kw, dtype=torch.float64)
        full[:, :c] = weight.detach().double()
        blocks = full.reshape(n, groups, -1).transpose(0, 1)
        left, right = truncated_svd(blocks, rank)
        basis = torch.zeros(groups, rank, groups, amount, kh, kw, dtype=torch.float64)
        own = torch.arange(groups)
        basis[own, :, own] = right.reshape(groups, rank, amount, kh, kw)
        mixing = left.transpose(0, 1).reshape(n, groups * rank)
        return Factors(basis.reshape(groups * rank, groups * amount, kh, kw)[:, :c], mixing)

    def parts(self, layer: Layer, amount: int, inputs: int, outputs: int) -> tuple[Part, Part]:
        """Every channel between has amount x k^2 weights in front of it and n behind it."""
        groups = -(-inputs // amount)
        between = groups * min(amount, outputs)
        return (
            Part(groups * amount, between, layer.kernel, layer.out_size, groups),
            Part(between, outputs, 1, layer.out_size),
        )

    def chain(self, conv: nn.Conv2d, factors: Factors, amount: int) -> Chain:
        """Zero channels up to whole groups where they are needed, the groups, 1 x 1."""
        rank, missing = min(amount, conv.out_channels), -conv.in_channels % amount
        padded = nn.functional.pad(factors.basis, (0, 0, 0, 0, 0, missing))
        groups = padded.shape[1] // amount
        own = torch.arange(groups)
        blocks = padded.unflatten(1, (groups, amount)).unflatten(0, (groups, rank))[own, :, own]
        grouped = convolution(blocks.flatten(0, 1), conv, groups=groups)
        mixing = convolution(factors.mixing[:, :, None, None], conv, first=False)
        fill = [nn.ConstantPad3d((0, 0, 0, 0, 0, missing), 0.0)] if missing else []
        return Chain(*fill, grouped, mixing)

    def amounts(self, conv: nn.Conv2d) -> tuple[int, ...]:
        """Divisors s of the input channels with s / n + 1 / k^2 < 1."""
        n, kernel = conv.out_channels, conv.weight[0, 0].numel()
        sizes = [s for s in range(1, min(conv.in_channels, n) + 1) if conv.in_channels % s == 0]
        return tuple(s for s in sizes if s * kernel + n < n * kernel)


def group_schedule(network: Network, fraction: float, skip: frozenset[str] = frozenset()) -> dict[str, int]:
    """Group sizes of all layers, with more groups the deeper a layer lies.

    At relative depth t from 0 to 1 there are at least g^(1 + t) groups; the smallest g that keeps the MACs
    is found by bisection. Errors of early layers reach everything behind them, and late layers have more
    redundancy, so the degree of compression grows with depth. A search does not need the schedule: its knob
    offers all of these sizes in every layer, at any depth.

    Args:
        network: the original.
        fraction: of the original's MACs, an upper bound where it can be reached.
        skip: layers that stay as they are.

    Returns:
        Layer to group size; layers that are left out stay as they are.
    """
    operator = FilterGroups()
    choices = {
        layer.name: legal_amounts(operator, network.module.get_submodule(layer.name))
        for layer in network.layers
        if layer.name not in skip
    }
    eligible = [layer for layer in network.layers if choices.get(layer.name)]
    limit = fraction * network.macs

    def sizes(base: float) -> dict[str, int]:
        targets = [base ** (1 + depth) for depth in torch.linspace(0, 1, len(eligible)).tolist()]
        chosen = {}
        for layer, target in zip(eligible, targets, strict=True):
            fine = [s for s in choices[layer.name] if layer.in_channels / s >= target]
            if target > 1:
                chosen[layer.name] = max(fine, default=1)
        return chosen

    def macs(chosen: dict[str, int]) -> int:
        return network.macs + sum(_saving(operator, network.layer(n), s) for n, s in chosen.items())

    if limit >= network.macs:
        return {}
    low, high = 1.0, float(max((layer.in_channels for layer in eligible), default=1))
    for _ in range(BISECTIONS):
        middle = (low * high) ** 0.5
        low, high = (low, middle) if macs(sizes(middle)) <= limit else (middle, high)
    return sizes(high)


def _saving(operator: FilterGroups, layer: Layer, size: int) -> int:
    """The change of the MACs, negative where the groups need fewer."""
    return operator.cost(layer, size, layer.in_channels, layer.out_channels).macs - layer.macs

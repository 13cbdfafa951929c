"""What becomes of a layer's outputs: the batch norm behind them, the sum they go into, and the ReLU then."""

from dataclasses import dataclass

import torch
from torch import Tensor, fx, nn

from amc.blocks import is_sum
from amc.clips import ceiling_of
from amc.graph import module_of
from amc.groups import NORMS, maps_channels
from amc.network import Layer, Network
from amc.pruning.fits import Live
from amc.pruning.sums import Summand, summands
from amc.quantization.protocol import PointQuantizer

LEAST_FACTOR = 1e-6
"""Channels whose batch norm scales by less than this carry nothing, and make up for nothing."""


@dataclass(frozen=True)
class Outcome:
    """What happens to a layer's outputs.

    Attributes:
        end: the sum that they go into and nowhere else, if the other summand is known by then.
        norm: path of the batch norm that has to go on mapping them as the original's did, if one has to.
        ceiling: of the range [0, ceiling] that they are clipped to behind all of that, if they are.
    """

    end: Summand | None
    norm: str | None
    ceiling: float | None

    @property
    def unclipped(self) -> "Outcome":
        """As if nothing clipped them."""
        return Outcome(self.end, self.end.norm if self.end else None, None)


def outcomes(network: Network) -> dict[str, Outcome]:
    """Path of every layer to what happens to its outputs."""
    ends, calls, found = summands(network), dict[str, list[fx.Node]](), dict[str, Outcome]()
    for node in network.module.graph.nodes:
        if node.op == "call_module":
            calls.setdefault(str(node.target), []).append(node)
    for layer in network.layers:
        end, nodes = ends.get(layer.name), calls[layer.name]
        ceiling = _ceiling(nodes[0], layer, end is not None, network.module) if len(nodes) == 1 else None
        norm = end.norm if end else layer.norm if ceiling is not None else None
        found[layer.name] = Outcome(end, norm, ceiling)
    return found


def _ceiling(node: fx.Node, layer: Layer, ends_in_sum: bool, module: nn.Module) -> float | None:
    """Where outputs are clipped behind the batch norm, quantization points and the sum, if they are."""
    normed, summed = layer.norm is None, False
    while len(node.users) == 1:
        (user,) = node.users
        if layer.norm is not None and str(user.target) == layer.norm:
            normed = maps_channels(module.get_submodule(layer.norm))
        elif ends_in_sum and not summed and is_sum(user):
            summed = True
        elif not isinstance(module_of(user), PointQuantizer):
            break
        node = user
    ceilings = {ceiling_of(module, user) for user in node.users}
    return ceilings.pop() if normed and len(ceilings) == 1 else None


@dataclass(frozen=True)
class Affine:
    """What happens to outputs without bias, in evaluation: y -> factor y + offset, [channels] each."""

    factor: Tensor
    offset: Tensor

    @classmethod
    def of(cls, layer: nn.Module, norm: nn.Module | None, rows: Tensor) -> "Affine":
        """That of a layer's bias and the batch norm behind it, for its output channels `rows`."""
        bias = layer.bias[rows] if isinstance(layer.bias, nn.Parameter) else torch.zeros(len(rows))
        if norm is None:
            return cls(torch.ones(len(rows)), bias)
        assert isinstance(norm, NORMS)
        assert norm.running_var is not None and norm.running_mean is not None
        factor = norm.weight / (norm.running_var + norm.eps).sqrt()
        offset = norm.bias - norm.running_mean * factor
        return cls(factor[rows], offset[rows] + factor[rows] * bias)

    @property
    def used(self) -> Tensor:
        """The factor; infinite where a channel carries nothing."""
        return torch.where(self.factor.abs() < LEAST_FACTOR, torch.inf, self.factor)

    def live(self, ceiling: float, other: Tensor | None) -> Live:
        """Outputs [rows, channels] that end up between 0 and the ceiling once the other summand is added."""
        zero = -self.offset if other is None else -self.offset - other
        first, second = zero / self.used, (zero + ceiling) / self.used
        idle = self.used.isinf()
        low, high = torch.minimum(first, second), torch.maximum(first, second)
        return Live(torch.where(idle, -torch.inf, low), torch.where(idle, torch.inf, high))

    def keep_in(self, norm: nn.Module, mean: Tensor, variance: Tensor) -> None:
        """Let a batch norm that will be re-estimated map outputs of such moments as before; in place.

        Args:
            norm: the batch norm.
            mean: of the outputs without bias, [channels].
            variance: of the outputs, [channels].
        """
        assert isinstance(norm, NORMS)
        norm.weight.data.copy_(self.factor * (variance + norm.eps).sqrt())
        norm.bias.data.copy_(self.offset + mean * self.factor)

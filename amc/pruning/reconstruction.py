"""Least-squares reconstruction: a layer that lost inputs learns to do without them.

Channel pruning after He, Zhang and Sun (ICCV 2017), as AMC uses it: the kept weights minimise
|| Y - X_S W'^T ||^2, where Y = X W^T are the original outputs on unlabeled images and X_S are the kept
inputs. Since Y is linear in X, everything follows from one matrix a layer, the second moment of its inputs,
computed once; every policy then solves a sub-matrix: W'^T = G_SS^-1 G_S: W^T.

The groups of a convolution are layers side by side, with inputs of their own: each has its own matrix and its
own solution. A depthwise convolution has one input a group, and loses it with its output.

This is the symmetric variant: both sides see the original's inputs. `amc.pruning.asymmetric` has the other.

Where a batch norm follows, it is the layer's own output in front of it that is matched, up to a shift and a
factor for each channel: the norm is re-estimated afterwards, which undoes both. Least squares with an
intercept has the largest correlation with the original output that a linear layer can have; only that counts.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import TYPE_CHECKING, Protocol

import torch
from torch import Tensor, fx, nn

from amc.network import Layer, Network
from amc.pruning.patches import POSITIONS_PER_IMAGE, PatchSampler, by_group

if TYPE_CHECKING:
    from amc.decomposition.responses import Replace

NOTHING_REPLACED: "Mapping[str, Replace]" = MappingProxyType({})
RIDGE = 1e-6
"""Added to the diagonal, relative to its mean: inputs that are always equal make the matrix singular."""

Positions = Mapping[tuple[str, str], Tensor]
"""What slicing kept: (module, side) to sorted int64 positions (`amc.slicing.kept_positions`)."""


class Reconstruction(Protocol):
    """Refits a sliced model."""

    def __call__(
        self,
        model: fx.GraphModule,
        network: Network,
        positions: Positions,
        replace: "Mapping[str, Replace]" = NOTHING_REPLACED,
        final: bool = True,
    ) -> bool:
        """Refit every layer of `model`, a sliced copy of the network, that lost inputs; in place.

        Args:
            model, network, positions: what has been sliced how.
            replace: layer to what will replace it. Who does that here says so in the model's `meta`
                (`amc.decomposition.responses.REPLACED`).
            final: whether nothing else changes layers or their inputs afterwards.

        Returns:
            Whether that has re-normalized the batch norms, too.
        """


@dataclass(frozen=True)
class InputMoments:
    """Moments of one layer's inputs, unfolded to columns in the order of the flattened weight.

    Attributes:
        second: float64 [d, d]; centred where an intercept is free. Of a convolution in groups [groups, d, d].
        mean: float64 [d]; zero where no intercept is free. Of a convolution in groups [groups, d].
    """

    second: Tensor
    mean: Tensor


def input_moments(
    network: Network, batches: Sequence[Tensor], positions: int = POSITIONS_PER_IMAGE, seed: int = 0
) -> dict[str, InputMoments]:
    """Input moments of every layer whose inputs can be pruned, from one pass over unlabeled images.

    Layers with a bias or a batch norm behind them have a free intercept (the batch norm is re-normalized
    afterwards), so their inputs are centred: only the variance of the error is left to minimise.

    Args:
        network: the original network.
        batches: unlabeled images.
        positions: output positions drawn for each image.
        seed: draws them.
    """
    layers = refittable(network)
    gatherers = {
        v.name: _Gatherer(network.module.get_submodule(v.name), network.layer_groups(v.name), positions, seed)
        for v in layers
    }
    model = network.copy()
    for name, gatherer in gatherers.items():
        model.get_submodule(name).register_forward_pre_hook(gatherer)
    with torch.no_grad():
        for batch in batches:
            model(batch)
    return {layer.name: gatherers[layer.name].moments(has_intercept(layer)) for layer in layers}


def refittable(network: Network) -> list[Layer]:
    """Layers that may lose inputs, in execution order."""
    inputs = {m.module for g in network.groups if not g.frozen for m in g.members if m.side == "in"}
    return [layer for layer in network.layers if layer.name in inputs]


def has_intercept(layer: Layer) -> bool:
    """Whether a shift of its outputs is free: a bias, or a batch norm that is re-estimated."""
    return layer.has_bias or layer.norm is not None


class _Gatherer:
    """A forward pre-hook that adds up the moments of a layer's inputs."""

    def __init__(self, module: nn.Module, groups: int, positions: int, seed: int):
        self.patches, self.groups = PatchSampler(module, positions, seed), groups
        self.weight = module.get_parameter("weight")
        self.rows = 0
        self.total: Tensor | None = None
        self.products: Tensor | None = None

    def __call__(self, _: nn.Module, arguments: tuple[Tensor, ...]) -> None:
        columns = by_group(self.patches(arguments[0]).double(), self.weight, self.groups)
        if self.total is None or self.products is None:
            groups, size = len(columns), columns.shape[2]
            self.total, self.products = columns.new_zeros(groups, size), columns.new_zeros(groups, size, size)
        self.rows += columns.shape[1]
        self.total += columns.sum(dim=1)
        self.products += columns.mT @ columns

    def moments(self, centred: bool) -> InputMoments:
        assert self.total is not None and self.products is not None
        mean = self.total / self.rows
        second = self.products / self.rows
        # From the order of the rows, (kernel position, input), to that of a flattened weight.
        order = torch.arange(mean.shape[1]).reshape(-1, self.weight.shape[1]).T.flatten()
        second, mean = second[:, order][:, :, order], mean[:, order]
        if centred:
            second = second - mean[:, :, None] * mean[:, None, :]
        else:
            mean = torch.zeros_like(mean)
        return InputMoments(second, mean) if self.groups > 1 else InputMoments(second[0], mean[0])


def normal_equations(second: Tensor, prior: Tensor, ridge: float = RIDGE) -> Callable[[Tensor], Tensor]:
    """What solves a layer's normal equations, held to a prior where they leave the weight open.

    Args:
        second: second moment of the inputs, float64 [d, d].
        prior: weight, float64 [out, d].
        ridge: how firmly, relative to the mean of the diagonal.

    Returns:
        From the cross moment of inputs and targets, [d, out], to the weight, float64 [out, d]. The matrix is
        factored once.
    """
    added = ridge * second.diagonal().mean().clamp_min(1e-12)
    factors = torch.linalg.lu_factor(second + added * torch.eye(len(second), dtype=second.dtype))

    def solve(cross: Tensor) -> Tensor:
        return torch.linalg.lu_solve(*factors, cross + added * prior.T).T

    return solve


def weight_columns(weight: Tensor, kept: Tensor) -> Tensor:
    """Columns of the flattened weight that belong to the kept inputs, int64."""
    per_input = weight[0, 0].numel()
    return (kept[:, None] * per_input + torch.arange(per_input)).reshape(-1)


def reconstruct_weight(weight: Tensor, moments: InputMoments, kept: Tensor) -> tuple[Tensor, Tensor]:
    """Least-squares weight of a layer that keeps some of its inputs.

    Args:
        weight: original weight [out, in, ...].
        moments: of its inputs.
        kept: int64, sorted positions of the kept inputs along dimension 1; in every group the same.

    Returns:
        The new weight [out, kept, ...], and what a bias must gain to keep the mean output, [out].
    """
    if moments.second.dim() == 3:
        groups = zip(weight.chunk(len(moments.second)), moments.second, moments.mean, strict=True)
        solved = [reconstruct_weight(own, InputMoments(*both), kept) for own, *both in groups]
        weights, shifts = zip(*solved, strict=True)
        return torch.cat(weights), torch.cat(shifts)
    columns = weight_columns(weight, kept)
    flat = weight.detach().reshape(len(weight), -1).double().cpu()
    rows = moments.second[columns]
    solution = normal_equations(rows[:, columns], flat[:, columns])(rows @ flat.T)
    shift = flat @ moments.mean - solution @ moments.mean[columns]
    shape = (len(weight), len(kept), *weight.shape[2:])
    return solution.reshape(shape).to(weight.dtype), shift.to(weight.dtype)


@dataclass(frozen=True)
class SymmetricReconstruction:
    """Matches the original outputs on the original's own inputs; layers are independent of each other.

    Attributes:
        moments: `input_moments` of the original.
    """

    moments: Mapping[str, InputMoments]

    def __call__(
        self,
        model: fx.GraphModule,
        network: Network,
        positions: Positions,
        replace: "Mapping[str, Replace]" = NOTHING_REPLACED,
        final: bool = True,
    ) -> bool:
        """Refit every layer of `model`, a sliced copy of the network, that lost inputs; in place.

        What replaces layers does not depend on other layers here, so it is left to who comes later.
        """
        for name, known in self.moments.items():
            kept = positions.get((name, "in"))
            if kept is None:
                continue
            original = network.module.get_submodule(name).get_parameter("weight")
            rows = positions.get((name, "out"))
            weight, shift = reconstruct_weight(original if rows is None else original[rows], known, kept)
            refit(model.get_submodule(name), weight, shift)
        return False


def refit(layer: nn.Module, weight: Tensor, shift: Tensor) -> None:
    """Give a layer its new weight, and a bias that keeps the mean output where it has one; in place."""
    layer.get_parameter("weight").data.copy_(weight)
    if isinstance(layer.bias, nn.Parameter):
        layer.bias.data += shift

"""Fine-grained pruning: single weights become zero, those of the smallest magnitude in each layer.

Han et al. ("Learning both Weights and Connections", NIPS 2015) with one density a layer, which AMC (He et
al., ECCV 2018) lets an agent choose. A mask is a buffer beside the weight that no file stores: the zeros say
it all. They save memory where a file is packed, and time on no CPU that this project exports to.
"""

from collections.abc import Mapping

import torch
from torch import Tensor, fx, nn
from torch.utils.hooks import RemovableHandle

from amc.compress import Phase
from amc.groups import COMPRESSIBLE
from amc.network import Network
from amc.policy import CompressionPolicy
from amc.space import DecisionPoint, Knob, Partial

FULL_DENSITY = 100
SMALLEST_DENSITY = 5
"""Percent: with fewer weights left, even the widest layers of the reference networks carry nothing."""
MASK = "mask"


class DensityKnob:
    """How many percent of a layer's weights stay; every layer decides for itself."""

    name = "density"
    implied_by: tuple[str, Mapping[int, int]] | None = None
    reference_is_fixed = False
    choices = tuple(range(SMALLEST_DENSITY, FULL_DENSITY + 1))

    def values(self, point: DecisionPoint, partial: Partial | None) -> tuple[int, ...]:
        """Whole percents, the sparsest first."""
        return self.choices

    def decided_at(self, point: DecisionPoint) -> str:
        """The point itself."""
        return point.name

    def thresholds(self, point: DecisionPoint) -> tuple[float, ...]:
        """The common fraction is the density, rounded down."""
        return (0.0, *(percent / FULL_DENSITY for percent in self.choices[1:]))


def kept_weights(total: int, density: int) -> int:
    """How many of `total` weights a density in percent keeps: rounded down, at least one if there are any."""
    return max(min(total, 1), total * density // FULL_DENSITY)


def magnitude_mask(weight: Tensor, density: int) -> Tensor:
    """Bool mask of a weight's shape, true at its largest magnitudes; of equals, the first."""
    order = weight.detach().abs().reshape(-1).argsort(descending=True, stable=True)
    mask = torch.zeros(weight.numel(), dtype=torch.bool, device=weight.device)
    mask[order[: kept_weights(weight.numel(), density)]] = True
    return mask.reshape(weight.shape)


def prune_weights(model: nn.Module, densities: Mapping[str, int]) -> None:
    """Set the smallest weights of layers to zero and remember where, in place.

    Weights that are zero already are the smallest, so what one stage prunes stays pruned in the next.

    Args:
        model: holds the layers.
        densities: layer path to percent; a layer at 100 has no mask.
    """
    for name, density in densities.items():
        layer = model.get_submodule(name)
        weight = layer.get_parameter("weight")
        if density < FULL_DENSITY:
            mask = magnitude_mask(weight, density)
            layer.register_buffer(MASK, mask, persistent=False)
            weight.data.masked_fill_(~mask, 0.0)


def hold_zeros(model: nn.Module) -> list[RemovableHandle]:
    """Let no gradient reach a pruned weight, until the returned handles are removed.

    Without a gradient it also has no momentum, and weight decay of zero is zero: it stays zero exactly.
    """
    handles = []
    for module in model.modules():
        mask = module._buffers.get(MASK)
        if isinstance(module, COMPRESSIBLE) and mask is not None:

            def masked(gradient: Tensor, mask: Tensor = mask) -> Tensor:
                return gradient.masked_fill(~mask, 0.0)

            handles.append(module.weight.register_hook(masked))
    return handles


class FineGrainedPruning:
    """Zeroes the smallest weights of every layer; comes before any quantizer that keeps zeros.

    Args:
        knob: legal densities.
    """

    phase = Phase.OPERATOR

    def __init__(self, knob: DensityKnob | None = None):
        self.knobs: tuple[Knob, ...] = (knob or DensityKnob(),)

    def apply(self, model: fx.GraphModule, network: Network, policy: CompressionPolicy) -> None:
        """Prune each layer to its density."""
        found = {v.name: policy[v.name].values.get("density", FULL_DENSITY) for v in network.layers}
        prune_weights(model, found)

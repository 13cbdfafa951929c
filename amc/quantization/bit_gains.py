"""What further bits buy: by how much the relative error of a layer falls, for each unit of what they cost.

Giving the next bits where they buy most, until a budget is used up, makes the sum of all layers' errors as
small as it can be (Shoham and Gersho, "Efficient bit allocation for an arbitrary set of quantizers", IEEE
Trans. ASSP 36(9), 1988). Errors are relative to the layer's own weights or inputs: as good a measure as the
error of outputs, the Fisher information and the change of what the network says, and free of any gradient
(docs/tried.md).
"""

from collections.abc import Sequence
from functools import partial

import torch
from torch import Tensor

from amc.network import Network
from amc.pruning.sums import Values, WatchedRun
from amc.quantization.protocol import NOT_QUANTIZED, PointQuantizer, WeightQuantizer, even_sample

MOST_WEIGHTS = 1 << 16
"""Of a layer that are looked at; of larger ones some output channels."""

Errors = dict[str, list[float]]
"""Layer to the relative squared error with each choice of bits."""


def weight_errors(network: Network, kind: type[WeightQuantizer], choices: Sequence[int]) -> Errors:
    """Squared error of every layer's quantized weights over the square of the weights.

    Args:
        network: the traced network.
        kind: how weights are quantized.
        choices: bits, 2 to 8, or 32 for none.
    """
    found = {}
    for layer in network.layers:
        weight = network.module.get_submodule(layer.name).get_parameter("weight").detach()
        part = weight[:: -(-weight.numel() // MOST_WEIGHTS)]
        found[layer.name] = [
            _relative(kind.fitted(part, bits)(part).detach(), part)
            if bits != NOT_QUANTIZED and kind.pays(weight, bits, layer.norm is not None)
            else 0.0
            for bits in choices
        ]
    return found


@torch.no_grad()
def input_errors(
    network: Network, kind: type[PointQuantizer], choices: Sequence[int], images: Tensor
) -> Errors:
    """Squared error of every layer's quantized inputs over their square, on some of the values.

    Args:
        network: the traced network.
        kind: how activations are quantized.
        choices: bits, 2 to 8, or 32 for none.
        images: that are run through the network, [N, C, H, W].
    """
    found: Errors = {}

    def look(name: str, x: Tensor, others: Values) -> None:
        values = even_sample(x)
        found[name] = [
            0.0 if bits == NOT_QUANTIZED else _relative(kind(bits).eval()(values), values) for bits in choices
        ]

    run = WatchedRun(network.module, {layer.name: partial(look, layer.name) for layer in network.layers})
    run.run(images)
    return found


def gains(errors: Sequence[float], choices: Sequence[int], price: float) -> list[float]:
    """What each choice buys over the one before it, by unit of cost; never more than that one did.

    Args:
        errors: with each choice.
        choices: bits, ascending.
        price: of one bit more.
    """
    found: list[float] = []
    for place in range(1, len(choices)):
        bought = (errors[place - 1] - errors[place]) / (price * (choices[place] - choices[place - 1]))
        found.append(min([max(bought, 0.0), *found[-1:]]))
    return found


def _relative(values: Tensor, original: Tensor) -> float:
    power = float(original.square().sum())
    return float((values - original).square().sum()) / power if power else 0.0

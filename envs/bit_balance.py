"""Bits of the reference policy where they buy most, instead of the same bits in all layers."""

from collections.abc import Sequence

from torch import Tensor

from amc.knobs import BitsKnob
from amc.network import Network
from amc.quantization.bit_gains import Errors, gains, input_errors, weight_errors
from amc.quantization.registry import activation_quantizer, weight_quantizer
from envs.problem_config import ProblemConfig

IMAGES = 50
"""Unlabeled images whose activations are looked at."""


def balanced_bits(
    knobs: tuple[BitsKnob, BitsKnob], network: Network, config: ProblemConfig, calibration: Sequence[Tensor]
) -> tuple[BitsKnob, BitsKnob]:
    """The knobs of weights and activations, the reference policy's bits being a matter of what they buy.

    Bits that are fixed, or follow from others, stay as they are.

    Args:
        knobs: as `envs.bits.make_knobs` gives them.
        network: the traced network.
        config: names the costs and the quantizers.
        calibration: unlabeled images.
    """
    weights, activations = knobs
    found: dict[str, dict[str, list[float]]] = {}
    if _free(weights):
        kind = weight_quantizer(config.weight_quantizer)
        found[weights.name] = _gains(weights, network, config, weight_errors(network, kind, weights.choices))
    if _free(activations) and "bops" in config.active_costs:
        reads = activation_quantizer(config.activation_quantizer)
        errors = input_errors(network, reads, activations.choices, calibration[0][:IMAGES])
        found[activations.name] = _gains(activations, network, config, errors)
    levels = sorted(gain for of_layers in found.values() for each in of_layers.values() for gain in each)
    return (
        weights.with_gains(found.get(weights.name, {}), levels),
        activations.with_gains(found.get(activations.name, {}), levels),
    )


def _free(knob: BitsKnob) -> bool:
    return len(knob.choices) > 1 and knob.reference is None and knob.implied_by is None


def _gains(knob: BitsKnob, network: Network, config: ProblemConfig, errors: Errors) -> dict[str, list[float]]:
    """What every layer's bits buy, for each bit-operation or each bit of the file."""
    operations = "bops" in config.active_costs
    if knob.name == "weight_bits":
        prices = {layer.name: float(layer.macs if operations else layer.weights) for layer in network.layers}
    else:  # layers that read one tensor share its bits
        prices = {
            first.name: float(sum(each.macs for each in network.layers if each.input_tensor == tensor))
            for tensor, first in ((layer.input_tensor, layer) for layer in reversed(network.layers))
        }
    return {name: gains(errors[name], knob.choices, price) for name, price in prices.items()}

"""Rows of the quantization results that ask what a choice of the quantizer, layer by layer, can win.

Whatever searches it, a choice among quantizers and bits can only win by spending the same bytes better. So
bytes are spent as well as they can be, once with each quantizer alone and once with all of them: with the
least sum of relative errors over the layers (Shoham and Gersho, IEEE Trans. ASSP 36(9), 1988).
"""

from collections import Counter
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from torch import fx

from amc.compress import WeightQuantization
from amc.inference import inference_form
from amc.knobs import BITS, BitsKnob
from amc.network import Network
from amc.policy import CompressionPolicy, LayerDecision
from amc.pruning.asymmetric import AsymmetricReconstruction
from amc.quantization.bit_gains import weight_errors
from amc.quantization.registry import WEIGHT_QUANTIZERS
from scripts.quantization_rows import CHOICES, QuantizationResults, Spec
from scripts.quantization_untrained import Bench, bench_of

ALL = "any, layer by layer"
STEPS = 60
"""Halvings of the interval that the price of a byte is looked for in."""
LEAST_PRICE, MOST_PRICE = 1e-12, 1e2


@dataclass(frozen=True)
class Option:
    """One way to quantize the weight of a layer.

    Attributes:
        quantizer, bits: the way.
        size: bytes that a budget is charged.
        error: squared error over the squared weights.
    """

    quantizer: str
    bits: int
    size: float
    error: float


Options = Mapping[str, list[Option]]
"""Layer to every way to quantize it."""


def choice_row(options: QuantizationResults, spec: Spec) -> dict[str, Any]:
    """Every quantizer alone and all of them, at the bytes of the uniform one with so many bits everywhere.

    Halves and quarters of a bit lie between the bytes of whole ones.
    """
    bench = bench_of(options, spec.network)
    ways = layer_options(bench.network)
    limit = bytes_of(ways, float(spec.budget))
    arms = {
        name: allocated(ways, {*WEIGHT_QUANTIZERS} if name == ALL else {name}, limit)
        for name in (*WEIGHT_QUANTIZERS, ALL)
    }
    found = {name: arm_figures(bench, arm) for name, arm in arms.items() if arm is not None}
    return {"limit": round(limit), "original": bench.original, "arms": found}


def arm_figures(bench: Bench, chosen: Mapping[str, Option]) -> dict[str, Any]:
    """What one allocation comes to; accuracy in percent."""
    model = quantized(bench.network, chosen, bench.refits)
    return {
        "bytes": round(sum(option.size for option in chosen.values())),
        "error": round(sum(option.error for option in chosen.values()), 4),
        "test": bench.score(inference_form(model)),
        "bits": [option.bits for option in chosen.values()],
        "layers": dict(Counter(option.quantizer for option in chosen.values())),
    }


def layer_options(network: Network) -> Options:
    """Every quantizer with 2 to 8 bits, for every layer."""
    errors = {name: weight_errors(network, kind, CHOICES) for name, kind in WEIGHT_QUANTIZERS.items()}
    found: dict[str, list[Option]] = {}
    for layer in network.layers:
        weight = network.module.get_submodule(layer.name).get_parameter("weight").detach()
        elements, channels = (np.array([float(size)]) for size in (weight.numel(), len(weight)))
        normed = np.array([layer.norm is not None])
        found[layer.name] = [
            Option(
                name,
                bits,
                float(kind.charged_bytes(elements, channels, np.array([bits]), normed)[0]),
                error,
            )
            for name, kind in WEIGHT_QUANTIZERS.items()
            for bits, error in zip(CHOICES, errors[name][layer.name], strict=True)
        ]
    return found


def bytes_of(ways: Options, bits: float) -> float:
    """Bytes of the uniform quantizer with the same bits in all layers; between whole bits on a line."""
    below = int(bits)
    totals = [
        sum(
            option.size
            for layer in ways.values()
            for option in layer
            if option.quantizer == "uniform" and option.bits == whole
        )
        for whole in (below, below + 1)
    ]
    return totals[0] + (bits - below) * (totals[1] - totals[0])


def allocated(ways: Options, quantizers: Collection[str], limit: float) -> dict[str, Option] | None:
    """The options with the least sum of errors that one price of a byte leads to; None if nothing fits."""
    offered = {
        name: [option for option in layer if option.quantizer in quantizers] for name, layer in ways.items()
    }

    def at(price: float) -> dict[str, Option]:
        return {
            name: min(layer, key=lambda option: option.error + price * option.size)
            for name, layer in offered.items()
        }

    low, high = LEAST_PRICE, MOST_PRICE
    best = None
    for _ in range(STEPS):
        price = (low * high) ** 0.5
        chosen = at(price)
        if sum(option.size for option in chosen.values()) <= limit:
            best, high = chosen, price
        else:
            low = price
    return best


def quantized(
    network: Network, chosen: Mapping[str, Option], refits: AsymmetricReconstruction
) -> fx.GraphModule:
    """The network with these weights; as in a search, layers make up for those in front of them."""
    decisions = (LayerDecision(name, {"weight_bits": option.bits}) for name, option in chosen.items())
    policy = CompressionPolicy(network.fingerprint, tuple(decisions))
    knob = BitsKnob("weight_bits", network, BITS)
    ways = {
        name: WeightQuantization(knob, name).ways(network, policy)
        for name in {option.quantizer for option in chosen.values()}
    }
    model = network.copy()
    refits(model, network, {}, {name: ways[option.quantizer][name] for name, option in chosen.items()})
    return model.eval()

"""Which bits a search may choose from, and what a person should know about them."""

from collections.abc import Set

from amc.errors import UserError
from amc.knobs import BitsKnob, WidthKnob
from amc.network import Network
from amc.quantization.registry import activation_quantizer, weight_quantizer
from amc.quantization.uniform import NOT_QUANTIZED
from amc.targets import Target
from envs.problem_config import ProblemConfig

Bits = tuple[int, ...]
STORED_BITS = 8
"""Integers of fewer bits are computed with as if they had 8, where a target has no kernels for them."""


def make_knobs(
    config: ProblemConfig, network: Network, target: Target
) -> tuple[tuple[WidthKnob, BitsKnob, BitsKnob], tuple[str, ...]]:
    """Widths, weight bits and activation bits, and notes about them.

    Under latency alone a layer runs in integers or in floats: one decision for its weights and its input.
    """
    weights, activations, notes = choose_bits(config, target)
    latency = "latency" in config.active_costs
    multiple = config.width_multiple or (target.width_multiple if latency else 1)
    floats = _ends(network) if config.ends_stay_float else ()
    implied = None
    if latency and not config.fractional and _pairs(weights) and _pairs(activations):
        meaning = dict(zip(sorted(activations), sorted(weights), strict=True))
        implied = ("activation_bits", meaning)
    knobs = (
        width_knob(config, network, multiple),
        BitsKnob("weight_bits", network, weights, min(weights) if latency else None, implied, floats),
        BitsKnob(
            "activation_bits", network, activations, min(activations) if latency else None, floats=floats
        ),
    )
    return knobs, notes


def width_knob(config: ProblemConfig, network: Network, multiple: int) -> WidthKnob:
    """Which widths a search may choose from.

    Raises:
        UserError: a smallest width is given for a layer that the network does not have.
    """
    names = [layer.name for layer in network.layers]
    unknown = [name for name in config.least_widths if name not in names]
    if unknown:
        raise UserError(f"--min-widths: there is no layer {unknown[0]}; the layers are {', '.join(names)}.")
    least = {
        network.group_of[name].name: width
        for name, width in config.least_widths.items()
        if name in network.group_of
    }
    return WidthKnob(multiple, config.min_channels, config.min_keep, least)


def choose_bits(config: ProblemConfig, target: Target) -> tuple[Bits, Bits, tuple[str, ...]]:
    """Legal bits for weights and activations, and what a person should know about them.

    Bits that nothing depends on stay out: under MACs or parameters alone the network stays in floating
    point; under size the weights have 2 bits up; under bit-operations activations too; under latency alone
    only bits that make the target faster take part.
    """
    latency = "latency" in config.active_costs
    quantizes = config.fractional or latency or any(bits < NOT_QUANTIZED for bits in config.weight_bits)
    # Asking makes the target run a small network, unless it remembers: only where weights are quantized.
    in_integers = weight_quantizer(config.weight_quantizer).integer_codes
    exact = target.weight_bits_exact if quantizes and in_integers else 8
    notes = _overflow_notes(config, target, exact) + _quantizer_notes(config)
    weights: Bits = (NOT_QUANTIZED,)
    activations: Bits = (NOT_QUANTIZED,)
    if config.fractional:
        weights = tuple(range(2, exact + 1))
        activations = tuple(range(2, 9)) if "bops" in config.active_costs else (8,)
    elif latency and STORED_BITS in target.fast_bits:
        weights, activations = (exact, NOT_QUANTIZED), (STORED_BITS, NOT_QUANTIZED)
    weights, activations = config.weight_bits or weights, config.activation_bits or activations
    if latency and not config.fractional:
        kept = _that_pay_off(weights, target), _that_pay_off(activations, target)
        notes += (_speed_note(config, target, {*weights, *activations}, {*kept[0], *kept[1]}),)
        weights, activations = kept
    return weights, activations, notes + (_doubts(target) if latency else ())


def _ends(network: Network) -> tuple[str, ...]:
    """The first layer and the last linear one."""
    linear = [layer.name for layer in network.layers if layer.kind == "linear"]
    return (network.layers[0].name, *linear[-1:])


def _that_pay_off(bits: Bits, target: Target) -> Bits:
    """Without integers that run no faster than more accurate ones among the choices."""
    if NOT_QUANTIZED in bits and STORED_BITS not in target.fast_bits:
        return tuple(b for b in bits if b in {*target.fast_bits, NOT_QUANTIZED})
    most = max((b for b in bits if b < NOT_QUANTIZED), default=NOT_QUANTIZED)
    return tuple(b for b in bits if b >= most or b in target.fast_bits)


def _pairs(bits: Bits) -> bool:
    """Whether there is one choice of integers and one of floats."""
    return len(bits) == 2 and min(bits) < NOT_QUANTIZED == max(bits)


def _speed_note(config: ProblemConfig, target: Target, asked_for: Set[int], kept: Set[int]) -> str:
    if STORED_BITS not in target.fast_bits:
        floats = kept == {NOT_QUANTIZED}
        left = "every layer stays in floats" if floats else "they are there because they were asked for"
        return f"8-bit integers bring nothing on {target.name}: {left}."
    dropped = asked_for - kept
    asked = f" ({', '.join(str(b) for b in sorted(dropped))} asked for)" if dropped else ""
    return (
        f"Fewer than 8 bits bring nothing on {target.name}{asked}: a layer runs in 8-bit integers or in "
        f"floats, with channels in steps of {config.width_multiple or target.width_multiple}."
    )


def _doubts(target: Target) -> tuple[str, ...]:
    """Says where a busy machine has decided which bits and channel steps take part."""
    if target.profile.reliable:
        return ()
    return (
        f"The machine was too busy to calibrate {target.name}: which bits and which steps of channels pay "
        "may be wrong, and a new run on a quieter machine finds out again.",
    )


def _quantizer_notes(config: ProblemConfig) -> tuple[str, ...]:
    notes: tuple[str, ...] = ()
    if not weight_quantizer(config.weight_quantizer).integer_codes:
        notes += (
            f"No runtime computes with {config.weight_quantizer} codes: exported networks hold the values of "
            "quantized weights as floats.",
        )
    if not activation_quantizer(config.activation_quantizer).integer_codes:
        notes += (
            f"No runtime computes with {config.activation_quantizer} codes: exported networks do not "
            "quantize the inputs of layers.",
        )
    if config.ends_stay_float:
        notes += ("The first layer and the last linear one stay in full precision.",)
    return notes


def _overflow_notes(config: ProblemConfig, target: Target, exact: int) -> tuple[str, ...]:
    if exact == 8:
        return ()
    cause = f"{target.name} on this CPU adds pairs of 8-bit products in 16 bits, which overflow"
    if 8 in config.weight_bits:
        return (f"{cause}; with 8-bit weights the exported network may say something else here.",)
    return () if config.weight_bits else (f"{cause}; weights therefore have at most {exact} bits here.",)

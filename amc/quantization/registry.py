"""From a name on the command line to a quantizer; a new one is a file and a line here."""

from dataclasses import dataclass

from torch import nn

from amc.errors import UserError
from amc.quantization.kmeans import KmeansWeightQuantizer
from amc.quantization.label_free import (
    LabelFreeActivationQuantizer,
    LabelFreeWeightQuantizer,
    PowerWeightQuantizer,
)
from amc.quantization.lq import LqActivationQuantizer, LqWeightQuantizer
from amc.quantization.max_abs import MaxAbsWeightQuantizer
from amc.quantization.modules import ActivationQuantizer, UniformWeightQuantizer
from amc.quantization.protocol import PointQuantizer, WeightQuantizer
from amc.quantization.value_aware import ValueAwareActivationQuantizer, ValueAwareWeightQuantizer

UNIFORM = "uniform"
NO_QUANTIZER = "none"
"""In the place of a name where no weight is quantized; layers too small to gain by it stay floats."""

_WEIGHTS: tuple[type[WeightQuantizer], ...] = (
    UniformWeightQuantizer,
    MaxAbsWeightQuantizer,
    LabelFreeWeightQuantizer,
    PowerWeightQuantizer,
    LqWeightQuantizer,
    ValueAwareWeightQuantizer,
    KmeansWeightQuantizer,
)
_ACTIVATIONS: tuple[type[PointQuantizer], ...] = (
    ActivationQuantizer,
    LabelFreeActivationQuantizer,
    LqActivationQuantizer,
    ValueAwareActivationQuantizer,
)
WEIGHT_QUANTIZERS = {kind.name: kind for kind in _WEIGHTS}
ACTIVATION_QUANTIZERS = {kind.name: kind for kind in _ACTIVATIONS}


@dataclass(frozen=True)
class QuantizerNames:
    """Which quantizers a network uses.

    Attributes:
        weights: of all quantized layers; `NO_QUANTIZER` of a network that turned out to have none.
        activations: of all quantized inputs of layers.
    """

    weights: str = UNIFORM
    activations: str = UNIFORM


def weight_quantizer(name: str) -> type[WeightQuantizer]:
    """The weight quantizer of this name, which may end in an option: `value-aware:0.01`.

    Raises:
        UserError: there is none.
    """
    plain, colon, option = name.partition(":")
    if plain not in WEIGHT_QUANTIZERS:
        raise UserError(f"There is no weight quantizer {name!r}; there are {', '.join(WEIGHT_QUANTIZERS)}.")
    kind = WEIGHT_QUANTIZERS[plain]
    return kind.with_option(option) if colon else kind


def activation_quantizer(name: str) -> type[PointQuantizer]:
    """The activation quantizer of this name, which may end in an option: `value-aware:0.01`.

    Raises:
        UserError: there is none.
    """
    plain, colon, option = name.partition(":")
    if plain not in ACTIVATION_QUANTIZERS:
        known = ", ".join(ACTIVATION_QUANTIZERS)
        raise UserError(f"There is no activation quantizer {name!r}; there are {known}.")
    kind = ACTIVATION_QUANTIZERS[plain]
    return kind.with_option(option) if colon else kind


def quantizers_of(model: nn.Module) -> QuantizerNames:
    """Names of the quantizers in a compressed network.

    Sums and pools are uniform whatever layers read, so any other name among the points is that of layers.
    """
    weights = [part.name for part in model.modules() if isinstance(part, WeightQuantizer)]
    points = [part.name for part in model.modules() if isinstance(part, PointQuantizer) and part.enabled]
    return QuantizerNames(
        next(iter(weights), NO_QUANTIZER), next((name for name in points if name != UNIFORM), UNIFORM)
    )

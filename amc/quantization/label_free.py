"""Scale and codes by alternating minimisation, for weights and for activations.

He and Cheng, ECCV 2018, "Learning Compression from Limited Unlabeled Data", section 3. For
the numbers x of one channel (of one tensor, for activations) minimise || x - a q ||^2 over a scale a and
codes q from a fixed set. Both half-steps have a closed form, so the error never rises:

    q <- the code nearest to x / a
    a <- <x, q> / <q, q>

Code sets of weights are the integers -L..L with L = 2^(b-1) - 1 and, as in the authors' program, zero and
signed powers of two; of activations 0..2^b - 1, the range that ReLU leaves (their program counts to
2^(b-1) - 1 only, as it keeps a sign bit). The optimum is a local one. Together with batch-norm
re-normalization (`amc.recovery.calibrate`) this is the method of the paper.
"""

import torch
from torch import Tensor

from amc.quantization.channel_scale import ChannelScaleQuantizer
from amc.quantization.modules import ActivationQuantizer, UniformWeightQuantizer
from amc.quantization.protocol import Coded, even_sample
from amc.quantization.sorted_rows import SortedRows, midpoints
from amc.quantization.uniform import SMALLEST_SCALE, per_channel, weight_levels

WEIGHT_TOLERANCE, ACTIVATION_TOLERANCE = 1e-7, 1e-3
"""Relative change of the scale at which the alternation ends."""
MOST_STEPS = 500


def integer_codes(bits: int) -> Tensor:
    """The codes -L..L, float64."""
    levels = weight_levels(bits)
    return torch.arange(-levels, levels + 1, dtype=torch.float64)


def power_codes(bits: int) -> Tensor:
    """Zero and the first L powers of two with both signs, ascending, float64; 4 bits: 1 to 2^6.

    More than 31 are never used: what is 2^31 times smaller than the largest weight may be 0 as well.
    """
    powers = 2.0 ** torch.arange(min(weight_levels(bits), 31), dtype=torch.float64)
    return torch.cat([-powers.flip(0), torch.zeros(1, dtype=torch.float64), powers])


def nearest(rows: SortedRows, scale: Tensor, code_set: Tensor) -> tuple[Tensor, Tensor]:
    """The code half-step: how many numbers take each code, and their sums, both [rows, codes].

    Args:
        rows: numbers [rows, n].
        scale: [rows], positive.
        code_set: ascending [codes].
    """
    return rows.cells(scale[:, None] * midpoints(code_set))


def best_scale(counts: Tensor, sums: Tensor, scale: Tensor, code_set: Tensor) -> Tensor:
    """The scale half-step <x, q> / <q, q>, [rows]; a row of zero codes keeps its scale."""
    norm = counts.double() @ code_set.square()
    return torch.where(norm > 0, sums @ code_set / norm.clamp_min(1e-300), scale)


def alternate(rows: SortedRows, scale: Tensor, code_set: Tensor, tolerance: float) -> Tensor:
    """Both half-steps until no scale changes by more than `tolerance` of itself.

    Args:
        rows: numbers [rows, n].
        scale: where to start, [rows], positive.
        code_set: ascending [codes].
        tolerance: relative.

    Returns:
        Scales [rows], float64.
    """
    scale = scale.double()
    for _ in range(MOST_STEPS):
        update = best_scale(*nearest(rows, scale, code_set), scale, code_set)
        update = update.clamp_min(SMALLEST_SCALE)
        settled = bool(((update - scale).abs() <= tolerance * scale).all())
        scale = update
        if settled:
            break
    return scale


def fit_weights(weight: Tensor, code_set: Tensor) -> Tensor:
    """Per-channel scale [out] of a weight [out, ...]."""
    rows = SortedRows(weight.flatten(1))
    code_set = code_set.to(weight.device)
    largest = rows.values.abs().amax(dim=1).clamp_min(SMALLEST_SCALE)
    return alternate(rows, largest / code_set[-1], code_set, WEIGHT_TOLERANCE)


def fit_activations(values: Tensor, bits: int) -> tuple[float, int]:
    """Scale and zero point of activations of any shape.

    Where there are negative values half of the codes stand for them.
    """
    rows = SortedRows(even_sample(values)[None])
    zero_point = 2 ** (bits - 1) if bool(rows.values[0, 0] < 0) else 0
    code_set = torch.arange(2**bits, dtype=torch.float64, device=values.device) - zero_point
    largest = rows.values.abs().amax(dim=1).clamp_min(SMALLEST_SCALE)
    scale = alternate(rows, largest / code_set[-1], code_set, ACTIVATION_TOLERANCE)
    return float(scale), zero_point


class LabelFreeWeightQuantizer(UniformWeightQuantizer):
    """Codes -L..L and their alternating-minimisation scale."""

    name = "label-free"

    def fit(self, x: Tensor) -> None:
        """Alternate to the end."""
        self.scale.copy_(fit_weights(x, integer_codes(self.bits)))


class PowerWeightQuantizer(ChannelScaleQuantizer):
    """Codes that are zero or signed powers of two, the authors' choice; state: `scale` [out].

    Stored are positions in the ascending code set and the scales. A multiplication is a shift.
    """

    name = "label-free-power"

    def fit(self, x: Tensor) -> None:
        """Alternate to the end."""
        self.scale.copy_(fit_weights(x, power_codes(self.bits)))

    def quantize(self, x: Tensor) -> Coded:
        """Positions in the code set, and the scales."""
        thresholds = midpoints(power_codes(self.bits)).to(x)
        codes = torch.bucketize(x.detach() / per_channel(self.scale, x), thresholds)
        return Coded(codes.to(torch.uint8), self.bits, {"scale": self.scale})

    def dequantize(self, coded: Coded) -> Tensor:
        """The code times the scale of its channel."""
        scale = coded.parts["scale"]
        return power_codes(coded.bits).to(scale)[coded.codes.long()] * per_channel(scale, coded.codes)


class LabelFreeActivationQuantizer(ActivationQuantizer):
    """Uniform codes 0..2^bits - 1 and their alternating-minimisation scale."""

    name = "label-free"

    def fit(self, x: Tensor) -> None:
        """Alternate to the end."""
        self.take_grid(*fit_activations(x, self.bits))

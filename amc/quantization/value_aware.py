"""Value-aware quantization: few large values in high precision, the rest in few bits.

Park, Yoo and Vajda, ECCV 2018, arXiv:1804.07802. Of a tensor's N values the ceil(r N) of largest magnitude
are kept in 16-bit floats. The rest are quantized linearly over their own, much smaller range R: in steps of
R / (2^(b-1) - 1) on both sides of zero, or of R / (2^b - 1) where nothing is negative. With r = 0 this is
max-abs scaling of the tensor.

Signed codes are -L..L; the one code that is left says that the value is the next of the large ones, so that
large values of weights need no positions. Sorting while a network runs is too slow, so activations are told
apart by the magnitude that separated them on the calibration batch.
"""

import math
from functools import cache
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor

from amc.errors import UserError
from amc.quantization.protocol import (
    FLOAT_BYTES,
    NOT_QUANTIZED,
    Coded,
    PointQuantizer,
    WeightQuantizer,
    packed_bytes,
    straight_through,
)
from amc.quantization.uniform import SMALLEST_SCALE, weight_levels

SHARE = 0.02
"""Share r of the values that stay in high precision, unless `value-aware:r` names another."""
LARGE = torch.float16
LARGE_BITS = 16


def large_count(elements: int, share: float = SHARE) -> int:
    """ceil(r N)."""
    return math.ceil(share * elements)


def largest(x: Tensor, count: int) -> Tensor:
    """Which `count` values of x have the largest magnitudes, bool of the same shape; exactly so many."""
    mask = torch.zeros(x.numel(), dtype=torch.bool, device=x.device)
    mask[torch.topk(x.reshape(-1).abs(), count).indices] = True
    return mask.reshape(x.shape)


def small_range(x: Tensor, large: Tensor) -> Tensor:
    """R, the largest magnitude among the values that are not large; a positive number."""
    return x.abs().masked_fill(large, 0).amax().clamp_min(SMALLEST_SCALE)


def mean_bits(bits: int, share: float) -> float:
    """Bits of an operand, the mean over small and large values."""
    return (1 - share) * bits + share * max(bits, LARGE_BITS)


def mixed(x: Tensor, large: Tensor, step: Tensor, low: int, high: int) -> Tensor:
    """Large values rounded to 16 bits, the others to multiples low..high of `step`."""
    small = (x / step).round_().clamp_(low, high).mul_(step)
    return torch.where(large, x.to(LARGE).to(x.dtype), small)


def weight_grid(weight: Tensor, bits: int, share: float = SHARE) -> tuple[Tensor, Tensor]:
    """Which values of a weight of any shape are large, and the step of the others.

    No small value ends above a large one that 16 bits have rounded down: a quantized weight would otherwise
    change whenever it is quantized again, and a file could not give it back.
    """
    large, levels = largest(weight, large_count(weight.numel(), share)), weight_levels(bits)
    reach = small_range(weight, large)
    if bool(large.any()):
        least = weight[large].to(LARGE).to(weight.dtype).abs().amin()
        reach = torch.minimum(reach, least).clamp_min(SMALLEST_SCALE)
    step = reach / levels
    return large, torch.where(step * levels > reach, torch.nextafter(step, torch.zeros_like(step)), step)


def quantized_weight(weight: Tensor, bits: int, share: float = SHARE) -> Tensor:
    """A weight of any shape with its large values in 16 bits and the rest in `bits`."""
    large, step = weight_grid(weight, bits, share)
    return mixed(weight, large, step, -weight_levels(bits), weight_levels(bits))


@cache
def with_share(kind: Any, share: float) -> Any:
    """A quantizer of this file with another share r of large values; its name says which."""
    return type(kind.__name__, (kind,), {"share": share, "name": f"{kind.name}:{share:g}"})


def share_of(option: str) -> float:
    """The share that `value-aware:option` means, with as many digits as the quantizer's name shows.

    Raises:
        UserError: it is none.
    """
    try:
        share = float(f"{float(option):g}")
    except ValueError:
        share = -1.0
    if not 0 <= share < 1:
        raise UserError(f"The share of large values in value-aware:{option} must lie in [0, 1): 0.01, say.")
    return share


class ValueAwareWeightQuantizer(WeightQuantizer):
    """Values of one tensor; without state, as every forward pass selects exactly."""

    name = "value-aware"
    share: ClassVar[float] = SHARE
    follows = True

    @classmethod
    def with_option(cls, option: str) -> type["ValueAwareWeightQuantizer"]:
        """The quantizer with the share r that `value-aware:r` names."""
        made: type[ValueAwareWeightQuantizer] = with_share(cls, share_of(option))
        return made

    @classmethod
    def empty(cls, weight: Tensor, bits: int) -> WeightQuantizer:
        """There is nothing to keep."""
        return cls(bits)

    @classmethod
    def stored_bytes(cls, elements: np.ndarray, channels: np.ndarray, bits: np.ndarray) -> np.ndarray:
        """Packed codes, the large values in 16 bits, one float32 step."""
        return (
            packed_bytes(elements, bits)
            + LARGE_BITS / 8 * np.ceil(cls.share * elements)
            + FLOAT_BYTES * (elements > 0)
        )

    @classmethod
    def operand_bits(cls, bits: int) -> float:
        """The mean over small and large values."""
        return mean_bits(bits, cls.share)

    def fit(self, x: Tensor) -> None:
        """Every forward pass selects anew."""

    def quantize(self, x: Tensor) -> Coded:
        """Codes -L..L counted from 0, the last one for "large"; the large values in order; the step."""
        x, levels = x.detach(), weight_levels(self.bits)
        large, step = weight_grid(x, self.bits, self.share)
        codes = (x / step).round_().clamp_(-levels, levels) + levels
        codes = codes.masked_fill(large, 2 * levels + 1).to(torch.uint8)
        return Coded(codes, self.bits, {"step": step, "large": x[large].to(LARGE)})

    def dequantize(self, coded: Coded) -> Tensor:
        """(code - L) * step, or the next large value."""
        levels, step = weight_levels(coded.bits), coded.parts["step"]
        values = (coded.codes.to(step.dtype) - levels) * step
        values[coded.codes == 2 * levels + 1] = coded.parts["large"].to(step.dtype)
        return values

    def values(self, weight: Tensor) -> Tensor:
        """The quantized weight."""
        return quantized_weight(weight, self.bits, self.share)


class ValueAwareActivationQuantizer(PointQuantizer):
    """Values above the calibrated `limit` R in 16 bits, the others in `bits`.

    State: `limit`, and `signed`, whether the batch had negative values. Gradients pass everywhere,
    as nothing is clipped.
    """

    name = "value-aware"
    share: ClassVar[float] = SHARE
    limit: Tensor
    signed: Tensor

    def __init__(self, bits: int = NOT_QUANTIZED):
        super().__init__(bits)
        self.register_buffer("limit", torch.tensor(1.0))
        self.register_buffer("signed", torch.zeros((), dtype=torch.int32))

    @classmethod
    def with_option(cls, option: str) -> type["ValueAwareActivationQuantizer"]:
        """The quantizer with the share r that `value-aware:r` names."""
        made: type[ValueAwareActivationQuantizer] = with_share(cls, share_of(option))
        return made

    @classmethod
    def operand_bits(cls, bits: int) -> float:
        """The mean over small and large values."""
        return mean_bits(bits, cls.share)

    def fit(self, x: Tensor) -> None:
        """Select exactly on a whole batch and remember the range of the rest."""
        x = x.detach()
        self.limit.copy_(small_range(x, largest(x, large_count(x.numel(), self.share))))
        self.signed.fill_(int(x.min() < 0))

    def quantize(self, x: Tensor) -> Coded:
        """Codes from the lowest level, step and lowest level, and the large values with their positions."""
        x, (step, low, high) = x.detach(), self._grid()
        large = x.abs() > self.limit
        codes = (x / step).round_().clamp_(low, high).sub_(low).to(torch.uint8)
        positions = large.reshape(-1).nonzero().squeeze(1).to(torch.int32)
        parts = {"step": step, "low": torch.tensor(low, dtype=torch.int32)}
        return Coded(codes, self.bits, {**parts, "positions": positions, "large": x[large].to(LARGE)})

    def dequantize(self, coded: Coded) -> Tensor:
        """(code + low) * step, or the large value of a position."""
        step = coded.parts["step"]
        values = (coded.codes.to(step.dtype) + coded.parts["low"]) * step
        values.view(-1)[coded.parts["positions"].long()] = coded.parts["large"].to(step.dtype)
        return values

    def quantized(self, x: Tensor) -> Tensor:
        """Round small and large values, each in their way."""
        with torch.no_grad():
            values = mixed(x, x.abs() > self.limit, *self._grid())
        return straight_through(x, values)

    def _grid(self) -> tuple[Tensor, int, int]:
        """Step, lowest and highest level of the small values."""
        high = weight_levels(self.bits) if bool(self.signed) else 2**self.bits - 1
        return self.limit / high, -high if bool(self.signed) else 0, high

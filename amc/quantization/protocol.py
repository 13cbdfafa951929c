"""The protocol of all quantizers: fit, quantize, dequantize, what is stored, a straight-through gradient.

A quantizer is a small module that holds fitted state; its numerics are pure functions in the same file. One
of weights sits in front of a layer's weight and is fitted when it is made; one of activations sits at a
quantization point of the graph and is fitted on the first batch that passes.
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from amc.errors import UserError
from amc.quantization.uniform import NOT_QUANTIZED

if TYPE_CHECKING:
    from typing_extensions import Self

FLOAT_BYTES = 4


@dataclass(frozen=True)
class Coded:
    """What is stored of one quantized tensor.

    Attributes:
        codes: uint8, the shape of the tensor, each below 2^bits; stored with `bits` bits each.
        bits: 1 to 8.
        parts: what else it takes to read the codes, stored as it is: scales, a codebook, large values.
    """

    codes: Tensor
    bits: int
    parts: Mapping[str, Tensor]

    @property
    def bytes(self) -> int:
        """Bytes of the packed codes and of all parts."""
        packed = -(-self.codes.numel() * self.bits // 8)
        return packed + sum(part.numel() * part.element_size() for part in self.parts.values())


def packed_bytes(elements: np.ndarray, bits: np.ndarray) -> np.ndarray:
    """Bytes of `elements` codes of `bits` bits each, every tensor packed for itself."""
    return np.ceil(elements * bits / 8)


class Quantizer(nn.Module, ABC):
    """What all quantizers have in common.

    Attributes:
        name: on the command line and in the registry.
        integer_codes: values are (integer - zero point) * scale, with one scale a channel of weights or a
            tensor of activations: what int8 kernels compute with.
        follows: the state follows the data in every forward pass of training, and needs no fit between.
        bits: 2 to 8, or 32 at a point that is not quantized.
        paused: values pass through as they are, for an epoch of fine-tuning in floats.
    """

    name: ClassVar[str]
    integer_codes: ClassVar[bool] = False
    follows: ClassVar[bool] = False
    bits: int
    paused: bool

    @classmethod
    def with_option(cls, option: str) -> "type[Self]":
        """The quantizer that `name:option` means on the command line and in a package.

        Raises:
            UserError: there is none.
        """
        raise UserError(f"The quantizer {cls.name} has no option, so {cls.name}:{option} means nothing.")

    @abstractmethod
    def fit(self, x: Tensor) -> None:
        """Choose the state for a tensor."""

    @abstractmethod
    def quantize(self, x: Tensor) -> Coded:
        """What would be stored of a tensor; without a gradient."""

    @abstractmethod
    def dequantize(self, coded: Coded) -> Tensor:
        """The values that stored codes stand for; asks for nothing but what is stored."""

    @staticmethod
    def operand_bits(bits: int) -> float:
        """Bits of an operand in bit-operations; 32 where values are multiplied as floats."""
        return bits


class WeightQuantizer(Quantizer):
    """A quantizer in front of a layer's weight [out, ...].

    Attributes:
        absorbs: a factor a channel, such as that of a batch norm, goes into the state; see `absorb`.
        keeps_zeros: a weight that is zero stays zero, so that pruned weights stay pruned.
    """

    absorbs: ClassVar[bool] = False
    keeps_zeros: ClassVar[bool] = True

    def __init__(self, bits: int):
        super().__init__()
        self.bits, self.paused = bits, False

    @classmethod
    @abstractmethod
    def empty(cls, weight: Tensor, bits: int) -> "WeightQuantizer":
        """A quantizer with room for the state of a weight of this shape."""

    @classmethod
    def fitted(cls, weight: Tensor, bits: int) -> "WeightQuantizer":
        """A quantizer that is fitted to a weight [out, ...]."""
        quantizer = cls.empty(weight.detach(), bits).to(weight.device)
        quantizer.fit(weight.detach())
        return quantizer

    @classmethod
    @abstractmethod
    def stored_bytes(cls, elements: np.ndarray, channels: np.ndarray, bits: np.ndarray) -> np.ndarray:
        """`Coded.bytes` of weights with these element counts, output channels and bits, all [layers]."""

    @classmethod
    def charged_bytes(
        cls, elements: np.ndarray, channels: np.ndarray, bits: np.ndarray, normed: np.ndarray | bool = False
    ) -> np.ndarray:
        """What a budget is charged for weights, all [layers]; never falls with the bits.

        In tiny layers the tables of some quantizers are larger than what they save; those stay in floats.

        Args:
            elements, channels, bits: as in `stored_bytes`; 32 bits are floats.
            normed: whether a batch norm follows; one whose factors nothing absorbs has them stored.
        """
        floats = FLOAT_BYTES * elements
        factors = FLOAT_BYTES * channels * (normed if not cls.absorbs else False)
        stored = cls.stored_bytes(elements, channels, np.minimum(bits, 8)) + factors
        quantized = stored if cls.integer_codes else np.minimum(stored, floats)
        return np.where(bits == NOT_QUANTIZED, floats, quantized)

    @classmethod
    def pays(cls, weight: Tensor, bits: int, normed: bool = False) -> bool:
        """Whether a weight [out, ...] is stored in fewer bytes than as floats; kernels may want it anyway."""
        elements, channels, width = (np.array([size]) for size in (weight.numel(), weight.shape[0], bits))
        charged = cls.charged_bytes(elements, channels, width, normed)[0]
        return cls.integer_codes or bool(charged < FLOAT_BYTES * weight.numel())

    @classmethod
    def bits_per_element(cls, elements: int, channels: int, bits: int) -> float:
        """Stored bits for each element of one weight, everything included."""
        sizes = cls.stored_bytes(*(np.array([float(v)]) for v in (elements, channels, bits)))
        return 8 * float(sizes[0]) / elements

    def absorb(self, weight: Tensor, factor: Tensor) -> Tensor:
        """Take a factor a channel [out] into the state; the quantized weight [out, ...] times the factors.

        Raises:
            NotImplementedError: the quantizer absorbs nothing.
        """
        raise NotImplementedError

    def values(self, weight: Tensor) -> Tensor:
        """The quantized weight [out, ...], without a gradient."""
        return self.dequantize(self.quantize(weight))

    def forward(self, weight: Tensor) -> Tensor:
        """Quantize and dequantize a weight [out, ...]; gradients pass straight through."""
        if self.paused:
            return weight
        with torch.no_grad():
            values = self.values(weight)
        return straight_through(weight, values)


class PointQuantizer(Quantizer):
    """A quantizer at one quantization point of the graph: the identity until a policy gives it bits.

    Attributes:
        calibrating: the next forward pass fits the state before it quantizes.
    """

    def __init__(self, bits: int = NOT_QUANTIZED):
        super().__init__()
        self.bits, self.paused = bits, False
        self.calibrating = bits != NOT_QUANTIZED

    @property
    def enabled(self) -> bool:
        """Whether the point quantizes at all."""
        return self.bits != NOT_QUANTIZED

    @abstractmethod
    def quantized(self, x: Tensor) -> Tensor:
        """Quantize and dequantize x of any shape, with a straight-through gradient."""

    def forward(self, x: Tensor) -> Tensor:
        """Quantize and dequantize x of any shape; fits the state first if it has to."""
        if not self.enabled or self.paused:
            return x
        if self.calibrating:
            self.fit(x.detach())
            self.calibrating = False
        return self.quantized(x)


def straight_through(x: Tensor, values: Tensor, passes: Tensor | None = None) -> Tensor:
    """`values` forward; backward the gradient passes to x where `passes` is true, everywhere without it."""
    if torch.is_grad_enabled() and x.requires_grad:
        return _StraightThrough.apply(x, values, passes)
    return values


class _StraightThrough(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, values: Tensor, passes: Tensor | None) -> Tensor:
        ctx.save_for_backward(*(() if passes is None else (passes,)))
        return values.view_as(values)  # a function must not return what it was given

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None]:
        passes = ctx.saved_tensors
        return gradients[0] * passes[0] if passes else gradients[0], None, None


def even_sample(x: Tensor, most: int = 16384) -> Tensor:
    """Some `most` values of a tensor, evenly spread, as [n]."""
    stride = max(1, x.numel() // most)
    # Sharing a factor with an axis it would only ever meet some columns of an image, or some channels.
    while any(math.gcd(stride, side) > 1 for side in x.shape):
        stride += 1
    return x.detach().reshape(-1)[::stride]

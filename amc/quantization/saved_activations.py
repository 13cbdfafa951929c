"""Training memory: what the backward pass needs of activations, stored value-aware.

Park, Yoo and Vajda, ECCV 2018, section 3: every layer computes with full-precision activations, only what is
kept for the backward pass is quantized. The gradient of a layer's input needs its weight alone, and ReLU's
needs one bit, so both are exact; only gradients of weights see quantized inputs.

An input of N values is kept as codes of b bits, and its ceil(r N) largest values as 16-bit floats with 32-bit
positions; what a ReLU needs as one bit a value. RV-Quant saves that bit: two of the codes mean zero, of which
one blocks the gradient, so that a ReLU and the layers behind it keep one tensor between them.
"""

import weakref
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

from amc.quantization.bit_packing import pack, unpack
from amc.quantization.protocol import FLOAT_BYTES
from amc.quantization.saved_bytes import SavedBytes
from amc.quantization.uniform import weight_levels
from amc.quantization.value_aware import LARGE, LARGE_BITS, SHARE, large_count, largest, small_range

POSITION_BITS = 32

_LAYERS = (F.conv2d, F.linear)
_RELUS = (F.relu, torch.relu, Tensor.relu)


def stored_bytes(elements: int, bits: int, share: float) -> int:
    """Bytes of one stored activation: packed codes, large values, their positions, the step."""
    large = large_count(elements, share)
    return -(-elements * bits // 8) + large * (LARGE_BITS + POSITION_BITS) // 8 + FLOAT_BYTES


@dataclass(frozen=True)
class StoredActivation:
    """One activation as it is kept between the passes.

    Attributes:
        packed: codes of all values, uint8 [bytes]; code c stands for c - `offset` steps.
        positions, large: int32 and float16 [ceil(r N)].
        step: of the small values, a float32 scalar.
        bits: of a code.
        offset: code of the value 0.
        shape: of the activation.
    """

    packed: Tensor
    positions: Tensor
    large: Tensor
    step: Tensor
    bits: int
    offset: int
    shape: Sequence[int]

    @property
    def bytes(self) -> int:
        """Bytes of everything that is kept."""
        kept = (self.packed, self.positions, self.large, self.step)
        return sum(part.numel() * part.element_size() for part in kept)

    @property
    def codes(self) -> Tensor:
        """Uint8 [N]."""
        return unpack(self.packed, self.bits, torch.Size(self.shape).numel())

    def values(self) -> Tensor:
        """The activation, with its rounding errors."""
        values = (self.codes.to(self.step.dtype) - self.offset) * self.step
        values[self.positions.long()] = self.large.to(values.dtype)
        return values.reshape(self.shape)


@dataclass(frozen=True)
class StoredRelu(StoredActivation):
    """What a ReLU gave: code 0 is a zero that blocks the gradient, code 1 one that lets it pass."""

    def values(self) -> Tensor:
        """The activation, with its rounding errors."""
        values = (self.codes.to(self.step.dtype) - 1).clamp_min_(0) * self.step
        values[self.positions.long()] = self.large.to(values.dtype)
        return values.reshape(self.shape)

    def passes(self) -> Tensor:
        """1.0 where the ReLU lets the gradient pass, 0.0 elsewhere."""
        return (self.codes > 0).to(self.step.dtype).reshape(self.shape)


def store(x: Tensor, bits: int, share: float) -> StoredActivation:
    """V-Quant: the small values in steps of R / (2^b - 1), or R / (2^(b-1) - 1) on both sides of zero."""
    signed = bool(x.min() < 0)
    levels, offset = (weight_levels(bits),) * 2 if signed else (2**bits - 1, 0)
    large = largest(x, large_count(x.numel(), share))
    step = small_range(x, large) / levels
    codes = ((x / step).round_().clamp_(-offset, levels) + offset).to(torch.uint8)
    return StoredActivation(pack(codes, bits), *_large_part(x, large), step, bits, offset, x.shape)


def store_relu(x: Tensor, bits: int, share: float) -> StoredRelu:
    """RV-Quant of what a ReLU gave: positive codes from 2 up, in steps of R / (2^b - 2)."""
    levels = 2**bits - 2
    large = largest(x, large_count(x.numel(), share))
    step = small_range(x, large) / levels
    codes = (x / step).round_().clamp_(0, levels) + (x > 0)
    return StoredRelu(pack(codes.to(torch.uint8), bits), *_large_part(x, large), step, bits, 1, x.shape)


def _large_part(x: Tensor, large: Tensor) -> tuple[Tensor, Tensor]:
    """Positions and values of what is large."""
    return large.reshape(-1).nonzero().squeeze(1).to(torch.int32), x[large].to(LARGE)


class ValueAwareStorage(TorchFunctionMode):
    """Stores activations value-aware while it is entered; run the forward pass inside.

    It covers the inputs of convolutions and linear layers, and what ReLUs keep. Batch norms and poolings
    keep what they always do: the gradient of a batch norm's input depends on that input.

    Args:
        bits: of the small values.
        share: r, the share of values in high precision.
        relu_aware: RV-Quant instead of V-Quant with its mask of one bit.
        owned: parameters and buffers, which are there anyway and count nowhere.

    Attributes:
        bytes: of all that was stored value-aware since it was made, masks included.
        plain_bytes: what the same tensors would have taken in floats, one counted once.
        rest: counts everything else that the forward pass keeps.
    """

    def __init__(
        self,
        bits: int = 3,
        share: float = SHARE,
        relu_aware: bool = False,
        owned: Iterable[Tensor] = (),
    ):
        super().__init__()
        self.bits, self.share, self.relu_aware = bits, share, relu_aware
        self.bytes = self.plain_bytes = 0
        self.rest = SavedBytes(owned)
        self._known: dict[int, tuple[weakref.ref[Tensor], StoredActivation | None]] = {}

    @property
    def all_bytes(self) -> int:
        """Bytes of all that the forward pass keeps, stored value-aware or not."""
        return self.bytes + self.rest.bytes

    def __enter__(self) -> "ValueAwareStorage":
        self.rest.__enter__()
        super().__enter__()
        return self

    def __exit__(self, *error: Any) -> None:
        super().__exit__(*error)
        self.rest.__exit__(*error)

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: Sequence[Any] = (), kwargs: Any = None
    ) -> Any:
        """Run every function as it is, with hooks on what it keeps where it is covered."""
        kwargs = kwargs or {}
        if not torch.is_grad_enabled():
            return func(*args, **kwargs)
        if func in _LAYERS:
            return self._layer(func, args, kwargs)
        return self._relu(func, args, kwargs) if func in _RELUS else func(*args, **kwargs)

    def _layer(self, func: Callable[..., Any], args: Sequence[Any], kwargs: Any) -> Any:
        # The graph keeps the hooks, which must not keep the activation in their turn.
        given = weakref.ref(args[0] if args else kwargs["input"])

        def keep(saved: Tensor) -> Any:
            # A layer keeps its input and its weight, which may be a quantized one and no parameter.
            x = given()
            if x is not None and saved.data_ptr() == x.data_ptr() and saved.shape == x.shape:
                return self._stored(x)
            return self.rest.count(saved)

        def restore(kept: Any) -> Tensor:
            return kept.values() if isinstance(kept, StoredActivation) else kept

        with torch.autograd.graph.saved_tensors_hooks(keep, restore):
            return func(*args, **kwargs)

    def _relu(self, func: Callable[..., Any], args: Sequence[Any], kwargs: Any) -> Any:
        made: list[StoredRelu] = []

        def keep(saved: Tensor) -> Any:
            if self.relu_aware:
                made.append(store_relu(saved, self.bits, self.share))
                self.bytes += made[-1].bytes
                return made[-1]
            mask = pack((saved > 0).to(torch.uint8), 1)
            self.bytes += mask.numel()
            return mask, saved.shape, saved.dtype

        def restore(kept: Any) -> Tensor:
            if isinstance(kept, StoredRelu):
                return kept.passes()
            mask, shape, dtype = kept
            return unpack(mask, 1, shape.numel()).to(dtype).reshape(shape)

        with torch.autograd.graph.saved_tensors_hooks(keep, restore):
            result = func(*args, **kwargs)
        if result.requires_grad:
            self.plain_bytes += result.numel() * result.element_size()
            self._remember(result, made[-1] if made else None)
        return result

    def _stored(self, x: Tensor) -> StoredActivation:
        """The tensor as it is kept; what was stored already is not stored again."""
        reference, known = self._known.get(id(x), (None, None))
        fresh = reference is None or reference() is not x
        if fresh:
            self.plain_bytes += x.numel() * x.element_size()
        if fresh or known is None:
            known = store(x.detach(), self.bits, self.share)
            self.bytes += known.bytes
            self._remember(x, known)
        return known

    def _remember(self, x: Tensor, stored: StoredActivation | None) -> None:
        # By identity: an address alone may belong to another tensor by now.
        self._known[id(x)] = (weakref.ref(x), stored)

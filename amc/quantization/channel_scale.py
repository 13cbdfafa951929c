"""What weight quantizers with one scale a channel share: their state, their bytes, a factor a channel."""

import numpy as np
import torch
from torch import Tensor

from amc.quantization.protocol import FLOAT_BYTES, WeightQuantizer, packed_bytes
from amc.quantization.uniform import SMALLEST_SCALE, per_channel


class ChannelScaleQuantizer(WeightQuantizer):
    """Codes that mean the same multiples of a channel's scale in both signs; state: `scale` [out]."""

    absorbs = True
    scale: Tensor

    def __init__(self, bits: int, channels: int):
        super().__init__(bits)
        self.register_buffer("scale", torch.ones(channels))

    @classmethod
    def empty(cls, weight: Tensor, bits: int) -> WeightQuantizer:
        """A quantizer with one scale a channel."""
        return cls(bits, weight.shape[0])

    @classmethod
    def stored_bytes(cls, elements: np.ndarray, channels: np.ndarray, bits: np.ndarray) -> np.ndarray:
        """Packed codes and a float32 scale a channel."""
        return packed_bytes(elements, bits) + FLOAT_BYTES * channels

    def absorb(self, weight: Tensor, factor: Tensor) -> Tensor:
        """Scales stay positive, as runtimes want them: a negative factor turns the codes around."""
        coded = self.quantize(weight)
        # What was coded refers to the scales themselves and so sees the new ones.
        self.scale.mul_(factor.abs()).clamp_min_(SMALLEST_SCALE)
        return self.dequantize(coded) * per_channel(factor.sign(), weight)

"""Modules that hold quantizer state: weight quantizers inside layers, activation quantizers in the graph.

A compressed network is an ordinary `nn.Module`; where a layer's weights are quantized its Conv2d or Linear
is a `QuantizedConv2d` or `QuantizedLinear`, and where a tensor is quantized its `ActivationQuantizer` is
enabled. Simulation, fine-tuning and export all read the same modules.
"""

from typing import Protocol

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from amc.quantization import uniform


class WeightQuantizer(Protocol):
    """What a quantized layer asks of its weight quantizer (an `nn.Module`)."""

    bits: int

    def fit(self, weight: Tensor) -> None:
        """Choose the quantizer's parameters for a weight [out, ...]."""

    def __call__(self, weight: Tensor) -> Tensor:
        """Quantize and dequantize; gradients pass straight through."""


class UniformWeightQuantizer(nn.Module):
    """Symmetric per-channel codes -L..L, L = 2^(bits-1) - 1; state: `scale` [out].

    Attributes:
        bits: 2 to 8.
        paused: weights pass through as they are, for an epoch of fine-tuning in floats.
    """

    scale: Tensor

    def __init__(self, bits: int, channels: int):
        super().__init__()
        self.bits, self.paused = bits, False
        self.register_buffer("scale", torch.ones(channels))

    def fit(self, weight: Tensor) -> None:
        """Take the scale of least squared error; see `uniform.fit_weight_scale`."""
        self.scale.copy_(uniform.fit_weight_scale(weight, self.bits))

    def codes(self, weight: Tensor) -> Tensor:
        """Codes int8 [out, ...], what the exported file stores."""
        return uniform.quantize_weight(weight.detach(), self.scale, self.bits)

    def forward(self, weight: Tensor) -> Tensor:
        """Quantize and dequantize a weight [out, ...]; gradients pass straight through."""
        if self.paused:
            return weight
        levels = uniform.weight_levels(self.bits)
        return uniform.fake_quantize(weight, uniform.per_channel(self.scale, weight), -levels, levels)


class QuantizedConv2d(nn.Conv2d):
    """A Conv2d whose weight passes through `quantizer` in every forward pass."""

    quantizer: UniformWeightQuantizer

    def forward(self, x: Tensor) -> Tensor:
        """Convolve x [N, C, H, W] with the quantized weight."""
        return self._conv_forward(x, self.quantizer(self.weight), self.bias)


class QuantizedLinear(nn.Linear):
    """A Linear whose weight passes through `quantizer` in every forward pass."""

    quantizer: UniformWeightQuantizer

    def forward(self, x: Tensor) -> Tensor:
        """Apply the quantized weight to x [..., in]."""
        return F.linear(x, self.quantizer(self.weight), self.bias)


def with_quantized_weight(layer: nn.Conv2d | nn.Linear, quantizer: nn.Module) -> nn.Module:
    """The same layer (sharing its parameters) with a weight quantizer in front of its weight."""
    kind = QuantizedConv2d if isinstance(layer, nn.Conv2d) else QuantizedLinear
    quantized = kind.__new__(kind)
    quantized.__dict__.update(layer.__dict__)
    quantized._modules = {**layer._modules, "quantizer": quantizer}
    return quantized


class ActivationQuantizer(nn.Module):
    """One quantization point of the graph: the identity until a policy gives it bits.

    Attributes:
        bits: 2 to 8, or 32 for "not quantized" (the identity).
        scale, zero_point: unsigned codes 0..2^bits - 1; value = (code - zero_point) * scale.
        calibrating: the next forward pass fits scale and zero point before it quantizes.
        paused: values pass through as they are, for an epoch of fine-tuning in floats.
    """

    scale: Tensor
    zero_point: Tensor

    def __init__(self, bits: int = uniform.NOT_QUANTIZED):
        super().__init__()
        self.bits = bits
        self.calibrating, self.paused = bits != uniform.NOT_QUANTIZED, False
        self.register_buffer("scale", torch.tensor(1.0))
        self.register_buffer("zero_point", torch.tensor(0, dtype=torch.int32))

    @property
    def enabled(self) -> bool:
        """Whether the point quantizes at all."""
        return self.bits != uniform.NOT_QUANTIZED

    def forward(self, x: Tensor) -> Tensor:
        """Quantize and dequantize x of any shape; gradients pass straight through inside the range."""
        if not self.enabled or self.paused:
            return x
        if self.calibrating:
            scale, zero_point = uniform.fit_activation_grid(x, self.bits)
            self.scale.fill_(scale)
            self.zero_point.fill_(zero_point)
            self.calibrating = False
        lowest = -int(self.zero_point)
        return uniform.fake_quantize(x, self.scale, lowest, lowest + 2**self.bits - 1)


def pause_quantizers(model: nn.Module, paused: bool) -> None:
    """Let weights and activations pass through as they are, or quantize them again, in place."""
    for module in model.modules():
        if isinstance(module, ActivationQuantizer | UniformWeightQuantizer):
            module.paused = paused


def recalibrate(model: nn.Module) -> None:
    """Let the next forward pass fit the range of every quantization point anew, in place."""
    for module in model.modules():
        if isinstance(module, ActivationQuantizer):
            module.calibrating = module.enabled

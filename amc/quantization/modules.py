"""Modules that hold quantizer state: weight quantizers inside layers, activation quantizers in the graph.

A compressed network is an ordinary `nn.Module`; where a layer's weights are quantized its Conv2d or Linear
is a `QuantizedConv2d` or `QuantizedLinear`, and where a tensor is quantized its `ActivationQuantizer` is
enabled. Simulation, fine-tuning and export all read the same modules.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from amc.quantization import uniform
from amc.quantization.channel_scale import ChannelScaleQuantizer
from amc.quantization.protocol import Coded, PointQuantizer, Quantizer, WeightQuantizer


class UniformWeightQuantizer(ChannelScaleQuantizer):
    """Symmetric per-channel codes -L..L, L = 2^(bits-1) - 1; state: `scale` [out].

    Stored are the codes + L and the scales. Clipped weights receive no gradient.
    """

    name = "uniform"
    integer_codes = True

    def fit(self, x: Tensor) -> None:
        """Take the scale of least squared error; see `uniform.fit_weight_scale`."""
        self.scale.copy_(uniform.fit_weight_scale(x, self.bits))

    def codes(self, weight: Tensor) -> Tensor:
        """Codes int8 [out, ...], what the exported file stores."""
        return uniform.quantize_weight(weight.detach(), self.scale, self.bits)

    def quantize(self, x: Tensor) -> Coded:
        """Codes counted from 0, and the scales."""
        shifted = (self.codes(x) + uniform.weight_levels(self.bits)).to(torch.uint8)
        return Coded(shifted, self.bits, {"scale": self.scale})

    def dequantize(self, coded: Coded) -> Tensor:
        """(code - L) * scale."""
        codes = coded.codes.to(torch.int8) - uniform.weight_levels(coded.bits)
        return uniform.dequantize_weight(codes, coded.parts["scale"])

    def forward(self, weight: Tensor) -> Tensor:
        """Quantize and dequantize a weight [out, ...]; gradients pass straight through inside the range."""
        if self.paused:
            return weight
        levels = uniform.weight_levels(self.bits)
        return uniform.fake_quantize(weight, uniform.per_channel(self.scale, weight), -levels, levels)


class QuantizedConv2d(nn.Conv2d):
    """A Conv2d whose weight passes through `quantizer` in every forward pass."""

    quantizer: WeightQuantizer

    def forward(self, x: Tensor) -> Tensor:
        """Convolve x [N, C, H, W] with the quantized weight."""
        return self._conv_forward(x, self.quantizer(self.weight), self.bias)


class QuantizedLinear(nn.Linear):
    """A Linear whose weight passes through `quantizer` in every forward pass."""

    quantizer: WeightQuantizer

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


def with_plain_weight(layer: QuantizedConv2d | QuantizedLinear) -> nn.Module:
    """The layer without its quantizer, its weight what the quantizer made of it; shares the bias."""
    kind = nn.Conv2d if isinstance(layer, nn.Conv2d) else nn.Linear
    plain = kind.__new__(kind)
    plain.__dict__.update(layer.__dict__)
    weight = nn.Parameter(layer.quantizer(layer.weight).detach())
    plain._parameters = {**layer._parameters, "weight": weight}
    plain._modules = {name: part for name, part in layer._modules.items() if name != "quantizer"}
    return plain


class ActivationQuantizer(PointQuantizer):
    """A quantization point with uniform codes 0..2^bits - 1; value = (code - zero_point) * scale."""

    name = "uniform"
    integer_codes = True
    scale: Tensor
    zero_point: Tensor

    def __init__(self, bits: int = uniform.NOT_QUANTIZED):
        super().__init__(bits)
        self.register_buffer("scale", torch.tensor(1.0))
        self.register_buffer("zero_point", torch.tensor(0, dtype=torch.int32))

    def fit(self, x: Tensor) -> None:
        """Take the range of least squared error; see `uniform.fit_activation_grid`."""
        self.take_grid(*uniform.fit_activation_grid(x, self.bits))

    def take_grid(self, scale: float, zero_point: int) -> None:
        """Set scale and zero point."""
        self.scale.fill_(scale)
        self.zero_point.fill_(zero_point)

    def quantize(self, x: Tensor) -> Coded:
        """Codes, scale and zero point."""
        codes = (x.detach() / self.scale).round_().add_(self.zero_point).clamp_(0, 2**self.bits - 1)
        return Coded(codes.to(torch.uint8), self.bits, {"scale": self.scale, "zero_point": self.zero_point})

    def dequantize(self, coded: Coded) -> Tensor:
        """(code - zero_point) * scale."""
        return (coded.codes.int() - coded.parts["zero_point"]) * coded.parts["scale"]

    def quantized(self, x: Tensor) -> Tensor:
        """Quantize and dequantize x of any shape; gradients pass straight through inside the range."""
        lowest = -int(self.zero_point)
        return uniform.fake_quantize(x, self.scale, lowest, lowest + 2**self.bits - 1)


def pause_quantizers(model: nn.Module, paused: bool) -> None:
    """Let weights and activations pass through as they are, or quantize them again, in place."""
    for module in model.modules():
        if isinstance(module, Quantizer):
            module.paused = paused


def quantizes(model: nn.Module) -> bool:
    """Whether anything is quantized in a forward pass now."""
    parts = (module for module in model.modules() if isinstance(module, Quantizer))
    return any(part.bits != uniform.NOT_QUANTIZED and not part.paused for part in parts)


def recalibrate(model: nn.Module) -> None:
    """Let the next forward pass fit every quantization point anew, in place."""
    for module in model.modules():
        if isinstance(module, PointQuantizer):
            module.calibrating = module.enabled

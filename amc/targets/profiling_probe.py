"""Small networks that show what one convolution costs on a target: what a calibration measures."""

from dataclasses import dataclass

import torch
from torch import fx, nn

from amc.graph import trace_graph
from amc.quantization.modules import ActivationQuantizer, UniformWeightQuantizer, with_quantized_weight
from amc.quantization.uniform import NOT_QUANTIZED

KINDS = ("1x1", "3x3", "depthwise")
SIDE = 16
"""Height and width in pixels of every image of a probe."""
LAYERS = {"1x1": 8, "3x3": 3, "depthwise": 8}
"""Equal layers of a probe: enough that they outweigh what every inference costs beside its layers."""
ACTIVATION_BITS = 8


@dataclass(frozen=True)
class Probe:
    """A stack of equal convolutions, each with bias and ReLU.

    Attributes:
        kind: one of `KINDS`; "depthwise" is 3x3.
        bits: of the weights, as it is reported; 32 is not quantized.
        width: input and output channels of every layer.
    """

    kind: str
    bits: int
    width: int

    @property
    def layers(self) -> int:
        """How many convolutions there are."""
        return LAYERS[self.kind]

    def build(self, weight_bits_exact: int = 8) -> fx.GraphModule:
        """Return the network as a policy would leave it: traced, calibrated, in evaluation mode.

        Between quantized layers the activations have 8 bits, so that int8 kernels hand on int8.

        Args:
            weight_bits_exact: 8-bit weights have this many bits instead where int8 sums would overflow.
        """
        generator = torch.Generator().manual_seed(0)
        bits = self.bits if self.bits == NOT_QUANTIZED else min(self.bits, weight_bits_exact)
        points = NOT_QUANTIZED if bits == NOT_QUANTIZED else ACTIVATION_BITS
        parts: list[nn.Module] = [ActivationQuantizer(points)]
        for _ in range(self.layers):
            parts += [self._layer(bits, generator), nn.ReLU(), ActivationQuantizer(points)]
        network = trace_graph(nn.Sequential(*parts))
        with torch.no_grad():
            network(torch.randn(2, self.width, SIDE, SIDE, generator=generator))
        return network

    def example(self) -> torch.Tensor:
        """Return one input [1, width, SIDE, SIDE]."""
        return torch.zeros(1, self.width, SIDE, SIDE)

    def _layer(self, bits: int, generator: torch.Generator) -> nn.Module:
        kernel = 1 if self.kind == "1x1" else 3
        groups = self.width if self.kind == "depthwise" else 1
        layer = nn.Conv2d(self.width, self.width, kernel, padding=kernel // 2, groups=groups)
        fan_in = layer.weight[0].numel()
        # Drawn so that neither ranges nor activations vanish or explode over the layers of the stack.
        layer.weight.data = torch.randn(layer.weight.shape, generator=generator) * (2 / fan_in) ** 0.5
        layer.bias.data = torch.randn(self.width, generator=generator) * 0.1  # type: ignore[union-attr]
        if bits == NOT_QUANTIZED:
            return layer
        quantizer = UniformWeightQuantizer(bits, self.width)
        quantizer.fit(layer.weight)
        return with_quantized_weight(layer, quantizer)

"""The grid that a quantized tensor lies on."""

from dataclasses import dataclass

from amc.quantization.modules import ActivationQuantizer


@dataclass(frozen=True)
class Grid:
    """Values (code - zero_point) * scale for the unsigned codes 0..2^bits - 1; 0 is one of them."""

    scale: float
    zero_point: int
    bits: int

    @property
    def highest(self) -> float:
        """The largest value."""
        return (2**self.bits - 1 - self.zero_point) * self.scale

    def swallows_clip(self, low: float, high: float) -> bool:
        """Whether clipping to [low, high] before quantizing changes no code."""
        codes = [
            round(bound / self.scale) + self.zero_point for bound in (low, min(high, 2 * self.highest + 1))
        ]
        return codes[0] <= 0 and codes[1] >= 2**self.bits - 1


def grid_of(quantizer: ActivationQuantizer) -> Grid:
    """The grid of an enabled, calibrated quantization point."""
    return Grid(float(quantizer.scale), int(quantizer.zero_point), quantizer.bits)

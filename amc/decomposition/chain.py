"""Convolutions in a row that stand for one."""

from collections.abc import Callable

from torch import nn

from amc.quantization.protocol import PointQuantizer


class Chain(nn.Sequential):
    """Convolutions in a row, without anything between, that stand for one; see `amc.export.chains`.

    Where what the layer reads is quantized, so is what lies between, or integers would stop there.
    """

    @property
    def working(self) -> list[nn.Module]:
        """Its parts without those that pass on what they get."""
        return [
            part
            for part in self
            if not isinstance(part, nn.Identity)
            and not (isinstance(part, PointQuantizer) and not part.enabled)
        ]

    def quantize_between(self, make: Callable[[], nn.Module]) -> None:
        """Put a quantization point in front of every convolution but the first, in place."""
        parts: list[nn.Module] = []
        seen = False
        for part in self:
            if isinstance(part, nn.Conv2d):
                parts += [make()] if seen else []
                seen = True
            parts.append(part)
        self._modules = {str(index): part for index, part in enumerate(parts)}

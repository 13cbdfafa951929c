"""What a target gains from channel counts and bit widths, as data.

A `Profile` is measured on the user's own machine (`amc.targets.profiling`) unless a target declares one.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

Progress = Callable[[int, int], None]
"""Called with the files measured so far and all files, first with 0 before any work."""


@dataclass(frozen=True)
class Curve:
    """What one layer costs on a target, against its channels.

    Attributes:
        kind: "1x1", "3x3" or "depthwise".
        bits: of the weights; 32 is not quantized, all others have 8-bit activations.
        latencies: width (input and output channels) to the cost of one layer in the target's unit.
        noise: mean relative uncertainty of the latencies.
    """

    kind: str
    bits: int
    latencies: Mapping[int, float]
    noise: float = 0.0

    def to_json(self) -> dict[str, Any]:
        """Return the fields as JSON types."""
        latencies = {str(width): latency for width, latency in self.latencies.items()}
        return {"kind": self.kind, "bits": self.bits, "latencies": latencies, "noise": self.noise}

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> "Curve":
        """Rebuild a curve; raises KeyError, TypeError, ValueError or AttributeError if `data` is not one."""
        latencies = {int(width): float(latency) for width, latency in data["latencies"].items()}
        return cls(str(data["kind"]), int(data["bits"]), latencies, float(data["noise"]))


@dataclass(frozen=True)
class Profile:
    """Which layer shapes and bits pay off on a target.

    Attributes:
        width_multiple: the channel step to use when one number has to serve all layers.
        fast_bits: bit widths that are faster than the next wider one; 32 is not quantized and always there.
        width_multiple_at: the channel step at particular weight bits, where it differs.
        source: where the facts come from, for reports.
        curves: what they were read off; none where they were declared.
        reliable: False if the machine was too busy for the timings to be trusted.
    """

    width_multiple: int
    fast_bits: tuple[int, ...] = (8, 32)
    width_multiple_at: Mapping[int, int] = field(default_factory=dict)
    source: str = "declared"
    curves: tuple[Curve, ...] = ()
    reliable: bool = True

    def multiple_for(self, bits: int) -> int:
        """Return the channel step of a layer whose weights have `bits` bits."""
        return self.width_multiple_at.get(bits, self.width_multiple)

    def to_json(self) -> dict[str, Any]:
        """Return the fields as JSON types."""
        return {
            "width_multiple": self.width_multiple,
            "fast_bits": list(self.fast_bits),
            "width_multiple_at": {str(bits): step for bits, step in self.width_multiple_at.items()},
            "source": self.source,
            "curves": [curve.to_json() for curve in self.curves],
            "reliable": self.reliable,
        }

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> "Profile":
        """Rebuild a profile; raises as `Curve.from_json` does."""
        if not isinstance(data["reliable"], bool):
            raise TypeError("reliable must be true or false")
        return cls(
            width_multiple=int(data["width_multiple"]),
            fast_bits=tuple(int(bits) for bits in data["fast_bits"]),
            width_multiple_at={int(bits): int(step) for bits, step in data["width_multiple_at"].items()},
            source=str(data["source"]),
            curves=tuple(Curve.from_json(curve) for curve in data["curves"]),
            reliable=data["reliable"],
        )

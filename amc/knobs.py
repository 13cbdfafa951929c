"""The knobs of channel pruning and of uniform quantization."""

import math
from bisect import bisect_right
from collections.abc import Collection, Mapping, Sequence
from functools import cached_property
from itertools import pairwise

from amc.errors import UserError
from amc.groups import Group
from amc.network import Network
from amc.quantization.uniform import NOT_QUANTIZED
from amc.space import DecisionPoint, Partial

BITS = (2, 3, 4, 5, 6, 7, 8, NOT_QUANTIZED)


class WidthKnob:
    """How many output channels of a layer are kept; layers of one group share it.

    Args:
        multiple: legal widths are multiples of it, and the original width.
        min_channels: the smallest legal width, before rounding up.
        min_keep: the smallest legal fraction of the original width.
        least: group name to the smallest legal width where that is larger.
        errors: group name to what is lost when so many channels are kept, [channels + 1]. The reference
            policy then has about the same error in all groups, and not the same keep ratio.
    """

    name = "width"
    implied_by: tuple[str, Mapping[int, int]] | None = None
    reference_is_fixed = False

    def __init__(
        self,
        multiple: int = 1,
        min_channels: int = 1,
        min_keep: float = 0.1,
        least: Mapping[str, int] | None = None,
        errors: Mapping[str, Sequence[float]] | None = None,
    ):
        if multiple < 1 or min_channels < 1 or not 0 <= min_keep <= 1:
            raise UserError("Width multiple and smallest width must be at least 1, smallest keep in [0, 1].")
        self.multiple, self.min_channels, self.min_keep = multiple, min_channels, min_keep
        self._least = dict(least or {})
        self.errors = dict(errors or {})
        self._levels = sorted(error for curve in self.errors.values() for error in curve)
        self._known: dict[str, tuple[int, ...]] = {}

    def with_errors(self, errors: Mapping[str, Sequence[float]]) -> "WidthKnob":
        """The same legal widths; see `errors`."""
        return WidthKnob(self.multiple, self.min_channels, self.min_keep, self._least, errors)

    def least(self, group: Group) -> int:
        """The smallest legal width of a group, before it is rounded up to a multiple."""
        share = math.ceil(self.min_keep * group.channels)
        return min(group.channels, max(self.min_channels, share, self._least.get(group.name, 1), 1))

    def values(self, point: DecisionPoint, partial: Partial | None) -> tuple[int, ...]:
        """Multiples from the smallest legal width up, and the original width."""
        if point.name not in self._known:
            self._known[point.name] = self._legal(point)
        return self._known[point.name]

    def _legal(self, point: DecisionPoint) -> tuple[int, ...]:
        if point.group is None or point.group.frozen:
            return (point.layer.out_channels,) if point.layer else ()
        full = point.group.channels
        multiple = math.lcm(self.multiple, point.group.step)
        first = math.ceil(self.least(point.group) / multiple) * multiple
        return (*range(first, full, multiple), full)

    def decided_at(self, point: DecisionPoint) -> str:
        """The first layer of the group."""
        return point.group.name if point.group else point.name

    def thresholds(self, point: DecisionPoint) -> tuple[float, ...]:
        """Every keep ratio goes to the nearest legal width; with errors, their ranks are the fractions."""
        values = self.values(point, None)
        if self.errors and point.group is not None and not point.group.frozen:
            curve = self.errors[point.group.name]
            return (0.0, *(_fraction(self._levels, curve[value]) for value in values[:-1]))
        middles = [(a + b) / 2 / values[-1] for a, b in pairwise(values)]
        return (0.0, *middles)


class BlockKnob:
    """Whether a residual block stays; decided at its first layer, before anything else about the block.

    Args:
        network: tells which blocks can be left out.
        reference: names of the blocks that the reference policy keeps; all by default.
    """

    name = "block"
    implied_by: tuple[str, Mapping[int, int]] | None = None
    reference_is_fixed = False

    def __init__(self, network: Network, reference: Collection[str] | None = None):
        self.blocks = frozenset(block.name for block in network.blocks)
        self.reference = self.blocks if reference is None else frozenset(reference)

    def values(self, point: DecisionPoint, partial: Partial | None) -> tuple[int, ...]:
        """Left out or kept; at points that begin no such block there is no choice."""
        return (0, 1) if point.name in self.blocks else (1,)

    def decided_at(self, point: DecisionPoint) -> str:
        """The point itself."""
        return point.name

    def thresholds(self, point: DecisionPoint) -> tuple[float, ...]:
        """The reference policy keeps its blocks at every fraction."""
        if point.name not in self.blocks:
            return (0.0,)
        return (0.0, 0.0 if point.name in self.reference else math.inf)


class BitsKnob:
    """Bit width of a layer's weights or of the tensor that it reads.

    Args:
        name: "weight_bits" or "activation_bits".
        network: tells which layers read the same tensor, and hence share its bits.
        choices: legal bit widths, from 2 to 8, or 32 for not quantized.
        reference: the reference policy's bits, where they are not a matter of the budget.
        implied_by: another knob whose bits decide these, and how: for latency only a layer with quantized
            weights *and* inputs is faster, so one decision serves both.
        floats: layers whose weights or inputs are never quantized.
        gains: point that decides to what each of its choices buys over the one before it
            (`amc.quantization.bit_gains`). The reference policy then has bits where they buy most, and not
            the same everywhere.
        levels: all gains that the reference policy weighs against each other, ascending; those of other
            knobs too.
    """

    def __init__(
        self,
        name: str,
        network: Network,
        choices: Sequence[int],
        reference: int | None = None,
        implied_by: tuple[str, Mapping[int, int]] | None = None,
        floats: Collection[str] = (),
        gains: Mapping[str, Sequence[float]] | None = None,
        levels: Sequence[float] = (),
    ):
        unknown = sorted(set(choices) - set(BITS))
        if unknown or not choices:
            raise UserError(f"Bits must be 2 to 8, or 32 for not quantized, not {unknown or 'nothing'}.")
        self.name = name
        self.choices = tuple(sorted(set(choices)))
        self.reference, self.implied_by = reference, implied_by
        self.floats = frozenset(floats)
        self.gains, self._levels = dict(gains or {}), tuple(levels)
        self._network = network

    def with_gains(self, gains: Mapping[str, Sequence[float]], levels: Sequence[float]) -> "BitsKnob":
        """The same choices; see `gains` and `levels`."""
        fixed = self.reference, self.implied_by, self.floats
        return BitsKnob(self.name, self._network, self.choices, *fixed, gains, levels)

    @property
    def reference_is_fixed(self) -> bool:
        """Whether the reference policy's bits are no matter of the budget."""
        return self.reference is not None

    @cached_property
    def _first_reader(self) -> dict[str, str]:
        layers = reversed(self._network.layers)
        return {layer.input_tensor: layer.name for layer in layers}

    def values(self, point: DecisionPoint, partial: Partial | None) -> tuple[int, ...]:
        """The choices, fewest bits first."""
        return (NOT_QUANTIZED,) if self.decided_at(point) in self.floats else self.choices

    def decided_at(self, point: DecisionPoint) -> str:
        """For activations the first layer that reads the same tensor; for weights the layer itself."""
        if self.name == "weight_bits" or point.layer is None:
            return point.name
        return self._first_reader[point.layer.input_tensor]

    def thresholds(self, point: DecisionPoint) -> tuple[float, ...]:
        """Every choice owns an equal interval, unless the reference policy's bits are fixed or bought."""
        if self.decided_at(point) in self.floats:
            return (0.0,)
        if self.gains:
            return (0.0, *(_fraction(self._levels, gain) for gain in self.gains[self.decided_at(point)]))
        if self.reference is not None:
            return tuple(0.0 if bits <= self.reference else math.inf for bits in self.choices)
        return tuple(rank / len(self.choices) for rank in range(len(self.choices)))


def _fraction(levels: Sequence[float], figure: float) -> float:
    """The fraction from which an error is too much, or a gain wanted: the share of larger ones, above 0."""
    return max(1.0 - bisect_right(levels, figure) / len(levels), 1e-9)

"""From latency curves to channel steps and bits that pay off: arithmetic only."""

import math
from collections.abc import Mapping, Sequence
from statistics import fmean

from amc.targets.calibration import Curve, Profile
from amc.targets.protocol import NOISE_FLOOR

STEPS = (1, 2, 4, 8, 16, 32)
TOLERANCE = 0.2
"""Share of a smooth curve's gain, above which the widths between the multiples are worth having."""
CERTAIN = 3.0
"""Times the noise of a curve by which two of its points differ if they do: two standard deviations."""
NARROWEST = 8
"""Widths below this do not vote: such layers take next to no time in any network."""


def decide(curves: Sequence[Curve], source: str, reliable: bool = True) -> Profile:
    """Read a target's profile off its curves.

    Args:
        curves: of every kind, in 32 and in 8 bits, and in fewer where those were measured.
        source: where the curves come from, for reports.
        reliable: whether their timings can be trusted.
    """
    steps = {bits: width_multiple(of_bits(curves, bits)) for bits in (8, 32)}
    fast = fast_bits(curves)
    return Profile(
        width_multiple=steps[8 if 8 in fast else 32],
        fast_bits=fast,
        width_multiple_at=steps,
        source=source,
        curves=tuple(curves),
        reliable=reliable,
    )


def of_bits(curves: Sequence[Curve], bits: int) -> list[Curve]:
    """Return the curves whose weights have `bits` bits."""
    return [curve for curve in curves if curve.bits == bits]


def width_multiple(curves: Sequence[Curve]) -> int:
    """Return the largest step between whose multiples no width pays, on any of the curves.

    A larger step can be fine where a smaller one is not: where 28 channels are slower than 32, rounding 26 up
    to 28 costs something and rounding it up to 32 nothing.
    """

    def harmless(step: int, curve: Curve) -> bool:
        share = share_between(curve, step)
        return share is not None and share <= TOLERANCE

    return max(step for step in STEPS if step == 1 or all(harmless(step, curve) for curve in curves))


def share_between(curve: Curve, step: int) -> float | None:
    """Return how much of the gain of fewer channels is to be had between the multiples of a step.

    Rounding a width up to the next multiple gives away `log(latency of the multiple / latency of the width)`,
    or nothing where that is within the noise or the width is even slower. On a smooth curve, a power of the
    width that goes through both ends of this one, it would give away `exponent * log(multiple / width)`. A
    share of 0 is a plateau up to each multiple, 1 a curve without steps.

    Args:
        curve: its widths that are no multiples, and whose next multiple was measured too, are compared.
        step: channels.

    Returns:
        The sum of the first over the sum of the second, or None where there is nothing to compare.
    """
    latencies = {width: value for width, value in curve.latencies.items() if width >= NARROWEST}
    above = {width: math.ceil(width / step) * step for width in latencies}
    pairs = [(width, wider) for width, wider in above.items() if width != wider and wider in latencies]
    if not pairs:
        return None
    gains = [math.log(latencies[wider] / latencies[width]) for width, wider in pairs]
    given_away = sum(gain for gain in gains if gain > max(0.0, CERTAIN * curve.noise))
    smooth = _exponent(latencies) * sum(math.log(wider / width) for width, wider in pairs)
    return given_away / smooth if smooth > 0 else 0.0


def _exponent(latencies: Mapping[int, float]) -> float:
    """The exponent of the power of the width that goes through both ends of a curve."""
    first, last = min(latencies), max(latencies)
    return math.log(latencies[last] / latencies[first]) / math.log(last / first)


def fast_bits(curves: Sequence[Curve]) -> tuple[int, ...]:
    """Return the bits that are faster than the next wider fast ones on at least one kind of layer.

    One kind is enough: int8 is worth offering where it speeds up 3x3 convolutions and slows down depthwise
    ones. "Faster" means by more than the noise; 32 is always in.
    """
    fast = [32]
    for bits in sorted({curve.bits for curve in curves} - {32}, reverse=True):
        if any(_beats(curves, kind, bits, fast[-1]) for kind in {curve.kind for curve in curves}):
            fast.append(bits)
    return tuple(sorted(fast))


def relative_latency(curves: Sequence[Curve], kind: str, bits: int, wider: int) -> float | None:
    """Return the time that layers take in `bits` bits as a multiple of their time in `wider` bits.

    It is the geometric mean over the widths that a policy would choose in `wider` bits, the multiples of the
    channel step there; None where no such width was measured in both.
    """
    narrow, wide = _curve(curves, kind, bits), _curve(curves, kind, wider)
    if narrow is None or wide is None:
        return None
    step = width_multiple(of_bits(curves, wider))
    widths = [width for width in narrow.latencies if width in wide.latencies and width % step == 0]
    if not widths:
        return None
    return math.exp(fmean(math.log(narrow.latencies[width] / wide.latencies[width]) for width in widths))


def _beats(curves: Sequence[Curve], kind: str, bits: int, wider: int) -> bool:
    relative = relative_latency(curves, kind, bits, wider)
    noise = sum(curve.noise for curve in curves if curve.kind == kind and curve.bits in (bits, wider))
    return relative is not None and relative * (1 + NOISE_FLOOR + noise) < 1


def _curve(curves: Sequence[Curve], kind: str, bits: int) -> Curve | None:
    return next((curve for curve in curves if (curve.kind, curve.bits) == (kind, bits)), None)

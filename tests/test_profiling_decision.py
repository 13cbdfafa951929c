"""What is decided from measured curves: channel steps and bits that pay off."""

import json
import math
from collections.abc import Callable

import numpy as np
import pytest

import tests.test_run as runs
from amc.targets import Profile
from amc.targets.calibration import Curve
from amc.targets.profiling import WIDTHS
from amc.targets.profiling_decision import decide, fast_bits, relative_latency, share_between, width_multiple
from amc.targets.profiling_probe import KINDS

# Fixtures are found by name in the module that uses them.
_surroundings = runs._surroundings

POWERS = {"1x1": 2, "3x3": 2, "depthwise": 1}
Shape = Callable[[int], float]


def plateaus(step: int) -> Shape:
    """Kernels that work on whole blocks of `step` channels."""
    return lambda width: math.ceil(width / step) * step


def dented(width: int) -> float:
    """Blocks of 16, and multiples of 4 between them are slower than the next block."""
    return plateaus(16)(width) * (1.2 if width % 4 == 0 and width % 16 else 1.0)


def curve(
    kind: str, bits: int, shape: Shape, factor: float = 1.0, noise: float = 0.0, seed: int = 0
) -> Curve:
    rng = np.random.default_rng([seed, KINDS.index(kind), bits])
    latencies = {
        width: factor * shape(width) ** POWERS[kind] * (1 + noise * rng.standard_normal()) for width in WIDTHS
    }
    return Curve(kind, bits, latencies, noise)


def curves(shape: Shape, noise: float = 0.0, seed: int = 0, **factors: float) -> list[Curve]:
    """Curves of every kind and of bits 32, 8 and 4; `eight` and `four` are their latencies against fp32's."""
    times = {32: 1.0, 8: factors.get("eight", 0.5), 4: factors.get("four", 0.5)}
    return [curve(kind, bits, shape, time, noise, seed) for kind in KINDS for bits, time in times.items()]


# ---- what is read off curves ----------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("noise", [0.0, 0.02])
@pytest.mark.parametrize(
    ("shape", "step"),
    [(float, 1), (plateaus(2), 2), (plateaus(4), 4), (plateaus(8), 8), (plateaus(16), 16), (dented, 16)],
    ids=["smooth", "plateaus of 2", "of 4", "of 8", "of 16", "of 16 with dents"],
)
def test_width_multiple_is_the_length_of_the_plateaus(shape: Shape, step: int, noise: float, seed: int):
    found = decide(curves(shape, noise, seed), "test")
    assert (found.width_multiple, found.multiple_for(8), found.multiple_for(32)) == (step, step, step)


def test_one_kind_that_gains_between_the_multiples_suffices():
    coarse = [curve(kind, 8, plateaus(16)) for kind in KINDS]
    assert width_multiple(coarse) == 16
    assert width_multiple([*coarse[1:], curve("1x1", 8, plateaus(4))]) == 4


def test_layers_that_take_the_same_time_at_any_width_want_the_largest_step():
    assert width_multiple([curve(kind, 32, lambda width: 3.0) for kind in KINDS]) == 32


def test_share_between_the_multiples_by_hand():
    smooth = Curve("3x3", 32, {8: 1.0, 12: 2.25, 16: 4.0})
    assert share_between(smooth, 8) == pytest.approx(1.0)
    half = Curve("3x3", 32, {8: 1.0, 12: 3.0, 16: 4.0})
    assert share_between(half, 8) == pytest.approx(math.log(4 / 3) / math.log(16 / 9))
    assert share_between(Curve("3x3", 32, {8: 1.0, 12: 5.0, 16: 4.0}), 8) == 0.0
    assert share_between(smooth, 4) is None  # nothing lies between


def test_step_of_the_weights_that_are_fast_serves_all_layers():
    mixed = [curve(kind, 32, plateaus(16)) for kind in KINDS] + [
        curve(kind, 8, plateaus(8), 0.5) for kind in KINDS
    ]
    found = decide(mixed, "test")
    assert (found.width_multiple, found.multiple_for(7), found.multiple_for(32)) == (8, 8, 16)
    slow = [curve(each.kind, each.bits, plateaus(each.bits // 2 if each.bits == 32 else 8)) for each in mixed]
    assert decide(slow, "test").width_multiple == 16


@pytest.mark.parametrize(
    ("eight", "four", "expected"),
    [
        (0.5, 0.5, (8, 32)),
        (0.5, 0.3, (4, 8, 32)),
        (1.0, 1.0, (32,)),
        (1.5, 1.5, (32,)),
        (0.99, 0.99, (32,)),  # within the noise of a measurement
        (1.0, 0.5, (4, 32)),
    ],
)
def test_fast_bits_beat_the_next_wider_fast_ones(eight: float, four: float, expected: tuple[int, ...]):
    assert fast_bits(curves(plateaus(8), eight=eight, four=four)) == expected


@pytest.mark.parametrize("seed", range(5))
def test_noise_makes_no_bits_fast(seed: int):
    assert fast_bits(curves(plateaus(8), 0.02, seed)) == (8, 32)


def test_bits_that_speed_up_one_kind_are_fast():
    mixed = [curve(kind, bits, plateaus(8)) for kind in KINDS for bits in (32, 8)]
    assert fast_bits(mixed) == (32,)
    mixed[3] = curve("3x3", 8, plateaus(8), 0.7)
    mixed[5] = curve("depthwise", 8, plateaus(8), 2.0)
    assert fast_bits(mixed) == (8, 32)


def test_bits_are_compared_at_the_multiples():
    """Between them no policy has its widths."""
    odd = curve("3x3", 8, lambda width: plateaus(8)(width) * (3.0 if width % 8 else 0.5))
    pair = [curve("3x3", 32, plateaus(8)), odd]
    assert relative_latency(pair, "3x3", 8, 32) == pytest.approx(0.25)
    assert relative_latency(pair, "1x1", 8, 32) is None


def test_profile_survives_json():
    found = decide(curves(plateaus(8), 0.02), "calibration of some day", reliable=False)
    assert Profile.from_json(json.loads(json.dumps(found.to_json()))) == found

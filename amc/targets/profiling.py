"""A target's own profile: what layers cost on it against channels and bits, measured once and remembered.

Small stacks of equal convolutions (`profiling_probe`) are exported and measured as any policy's network is,
several in the same rounds. Only their ratios to one reference stack are used, so that phases in which the
whole machine is slow do not bend the curves.
"""

import math
import tempfile
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import date
from operator import attrgetter
from pathlib import Path
from statistics import fmean

from amc.targets.base import Target, Timing
from amc.targets.cache import JsonCache, default_cache_directory
from amc.targets.calibration import Curve, Profile, Progress
from amc.targets.machine import cpu_model
from amc.targets.profiling_decision import decide
from amc.targets.profiling_probe import KINDS, Probe
from amc.targets.protocol import PROTOCOL_VERSION, UNRELIABLE_NOISE, noise

CALIBRATION_VERSION = 1
"""Raised whenever the probes or the decisions change; part of the cache key."""
EXPECTED_S = 45
"""About how long the default calibration takes on a quiet machine."""

WIDTHS = (4, 6, 8, 10, 11, 12, 14, 15, 16, 18, 20, 24, 28, 31, 32, 36, 40, 44, 48, 56, 64)
"""Channels that are measured: odd numbers, and multiples of 2 to 32 with what lies between them."""
FULL_WIDTHS = (*range(4, 34), *range(36, 97, 4))
"""A finer grid, for plots."""
FEWER_BITS, FEWER_BITS_STEP = 4, 8
"""Below 8 bits one point stands for all, at multiples of 8: enough to see what fewer bits bring."""

REFERENCE = Probe("3x3", 32, 32)
BATCH = 7
"""Probes beside the reference in one measurement: the measuring process keeps 8 models loaded."""
TIME_LIMIT_S = 10.0
"""For one measurement; it takes about 1 s unless the machine is busy."""
TRIES = 3
STEADY_NOISE = 0.03
"""A reading is measured up to so many times until its even and odd rounds differ by less, and it agrees with
an earlier one."""


def measured_profile(
    target: Target,
    cache: JsonCache | None = None,
    *,
    widths: Sequence[int] = WIDTHS,
    on_progress: Progress | None = None,
) -> Profile:
    """Return the target's profile: the remembered one, or a new one.

    Args:
        target: it runs about 150 small networks unless the answer is cached.
        cache: where the answer is kept; default `targets` in `default_cache_directory()`.
        widths: channels to measure.
        on_progress: hears of every measurement; not called where the answer is cached.

    Raises:
        UserError: the target cannot be used.
    """
    known = recall(target, cache)
    if known is not None:
        return known
    profile = calibrate(target, widths, on_progress)
    remember(target, profile, cache)
    return profile


def recall(target: Target, cache: JsonCache | None = None) -> Profile | None:
    """Return what was measured earlier with this runtime on this CPU, or None."""
    value = (cache or _default_cache()).get(_identity(target))
    try:
        return None if value is None else Profile.from_json(value)
    except (KeyError, TypeError, ValueError, AttributeError):
        return None


def remember(target: Target, profile: Profile, cache: JsonCache | None = None) -> None:
    """Store a profile; an unreliable one is not kept, so that a quieter moment can replace it."""
    if profile.reliable:
        (cache or _default_cache()).put(_identity(target), profile.to_json())


def calibrate(target: Target, widths: Sequence[int] = WIDTHS, on_progress: Progress | None = None) -> Profile:
    """Measure a profile, whatever is remembered.

    Args:
        target: runs the probes.
        widths: channels to measure.
        on_progress: hears of every measurement.
    """
    probes = probes_of(widths)
    report = on_progress or (lambda done, total: None)
    report(0, len(probes))
    with tempfile.TemporaryDirectory(prefix="amc-profile-") as folder:
        bench = Bench(target, Path(folder))
        # What was doubtful is measured again after all others: a slow phase of the machine lasts seconds.
        for _ in range(TRIES):
            for batch in _batches(bench.doubtful(probes)):
                bench.measure(batch)
                report(len(bench.readings), len(probes))
    reliable = all(reading.noise < UNRELIABLE_NOISE for reading in bench.readings.values())
    return decide(bench.curves(), f"calibration of {date.today().isoformat()}", reliable)


def probes_of(widths: Sequence[int]) -> list[Probe]:
    """Return what is measured for these widths, neighbours beside each other."""
    few = [width for width in widths if width % FEWER_BITS_STEP == 0]
    grids = ((32, widths), (8, widths), (FEWER_BITS, few))
    return [Probe(kind, bits, width) for kind in KINDS for bits, grid in grids for width in grid]


@dataclass(frozen=True)
class Reading:
    """One probe's latency as a multiple of the reference's, with its relative uncertainty."""

    ratio: float
    noise: float

    @classmethod
    def of(cls, timing: Timing) -> "Reading":
        """Take what counts from a timing; an unreliable one is noisy."""
        return cls(timing.ratio, noise(timing))


class Bench:
    """Exports probes and measures them beside the reference.

    Args:
        target: runs them.
        folder: for the files; empty.

    Attributes:
        readings: the least noisy reading of every probe so far.
    """

    def __init__(self, target: Target, folder: Path):
        self.target, self.folder = target, folder
        self.readings: dict[Probe, Reading] = {}
        self._reference_latency = math.inf
        self._weight_bits = target.weight_bits_exact
        self._reference = self._export(REFERENCE, "reference")

    def doubtful(self, probes: Sequence[Probe]) -> list[Probe]:
        """Return the probes that were not measured yet, or not well enough."""
        return [
            probe
            for probe in probes
            if probe not in self.readings or self.readings[probe].noise > STEADY_NOISE
        ]

    def measure(self, probes: Sequence[Probe]) -> None:
        """Measure probes in the same rounds."""
        files = [self._export(probe, str(index)) for index, probe in enumerate(probes)]
        timings = self.target.measure([self._reference, *files], time_limit_s=TIME_LIMIT_S)
        self._reference_latency = min(self._reference_latency, timings[0].best)
        fresh = dict(zip(probes, map(Reading.of, timings[1:]), strict=True))
        gap = self._disagreement(fresh)
        for probe, reading in fresh.items():
            careful = replace(reading, noise=max(reading.noise, gap))
            self.readings[probe] = min(careful, self.readings.get(probe, careful), key=attrgetter("noise"))

    def curves(self) -> list[Curve]:
        """Gather the readings by kind and bits, as the latency of one layer."""
        grouped: dict[tuple[str, int], list[Probe]] = defaultdict(list)
        for probe in self.readings:
            grouped[probe.kind, probe.bits].append(probe)
        return [
            Curve(
                kind,
                bits,
                {probe.width: self._latency_of_a_layer(probe) for probe in probes},
                fmean(self.readings[probe].noise for probe in probes),
            )
            for (kind, bits), probes in grouped.items()
        ]

    def _disagreement(self, fresh: Mapping[Probe, Reading]) -> float:
        """How far readings lie from trusted ones of the same probes, if by more than the noise.

        A neighbour on the machine can slow down int8 kernels and leave the reference, which is fp32, alone.
        """
        known = {probe: self.readings[probe] for probe in fresh if probe in self.readings}
        gaps = [
            abs(math.log(fresh[probe].ratio / trusted.ratio))
            for probe, trusted in known.items()
            if trusted.noise <= STEADY_NOISE
        ]
        return max((gap for gap in gaps if gap > STEADY_NOISE), default=0.0)

    def _latency_of_a_layer(self, probe: Probe) -> float:
        return self.readings[probe].ratio * self._reference_latency / probe.layers

    def _export(self, probe: Probe, name: str) -> Path:
        file = self.folder / f"{name}{self.target.file_suffix}"
        self.target.export(probe.build(self._weight_bits), probe.example(), file)
        return file


def _batches(probes: Sequence[Probe]) -> Iterator[Sequence[Probe]]:
    """Each begins with the last probe of the one before, whose two readings must agree."""
    starts = range(0, max(len(probes) - 1, min(len(probes), 1)), BATCH - 1)
    return (probes[start : start + BATCH] for start in starts)


def _default_cache() -> JsonCache:
    return JsonCache(default_cache_directory() / "targets")


def _identity(target: Target) -> dict[str, object]:
    """Everything that the measured numbers depend on."""
    return {
        "check": f"profile {CALIBRATION_VERSION}",
        "target": target.name,
        "cpu": cpu_model(),
        "runtime": target.runtime_version,
        "protocol": PROTOCOL_VERSION,
    }

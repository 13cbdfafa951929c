"""The same files in several fresh measuring processes, and what those say together.

A process draws its memory addresses, and with them cache conflicts and alignment, once: all its rounds share
that luck. How far a ratio can be trusted therefore shows between processes, not between rounds.
"""

import math
import statistics
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from scipy.stats import t as student_t

from amc.targets.base import Target, Timing
from amc.targets.protocol import NOISE_FLOOR, Verdict, noise

SPREADS = 2.0
"""A median ratio counts as a difference beyond so many standard deviations of the ratios."""
CONFIDENCE = 0.99
"""And beyond this two-sided interval of Student's t, the wider of the two below six processes."""


@dataclass(frozen=True)
class Summary:
    """One file beside the original, over all processes.

    Attributes:
        ratio: median over the processes of the ratio to the original.
        ratio_cv: coefficient of variation of the ratios: sample standard deviation divided by mean.
        verdict: "faster" or "slower" than the original, or "no difference".
    """

    ratio: float
    ratio_cv: float
    verdict: Verdict


def measure_in_fresh_processes(
    create: Callable[[], Target], files: Sequence[Path], processes: int
) -> Iterator[list[Timing]]:
    """Measure the files, interleaved, in one new measuring process after the other.

    Args:
        create: returns a target that has no process yet.
        files: the original first.
        processes: how many times.

    Yields:
        One timing a file, after each process.

    Raises:
        UserError: a file is missing or the runtime refuses it.
    """
    for _ in range(processes):
        with create() as target:
            timings = target.measure(files)
        yield timings


def summarize(candidate: Sequence[Timing], original: Sequence[Timing]) -> Summary:
    """Say what several processes found out about a file.

    Args:
        candidate: the file's timing in each process, at least two.
        original: the reference's timing in the same processes.
    """
    ratios = [timing.ratio for timing in candidate]
    return Summary(
        ratio=statistics.median(ratios),
        ratio_cv=statistics.stdev(ratios) / statistics.fmean(ratios),
        verdict=verdict(candidate, original),
    )


def verdict(candidate: Sequence[Timing], original: Sequence[Timing]) -> Verdict:
    """Say whether all processes together show a difference, or whether noise explains it.

    The median ratio must be further from 1 than the noise floor, than the ratios differ between processes,
    and than the rounds of a typical process differ (far, where most of the timings are unreliable). The
    fewer the processes, the less their own spread says about how far the next one strays: with three, equal
    files would be called different in one comparison of fourteen beyond two standard deviations.
    """
    logs = [math.log(timing.ratio) for timing in candidate]
    within = statistics.median(noise(c) + noise(o) for c, o in zip(candidate, original, strict=True))
    interval = student_t.ppf((1 + CONFIDENCE) / 2, len(logs) - 1) / math.sqrt(len(logs))
    spread = max(SPREADS, interval) * statistics.stdev(logs)
    threshold = max(math.log1p(max(NOISE_FLOOR, within)), spread)
    change = statistics.median(logs)
    if abs(change) <= threshold:
        return "no difference"
    return "faster" if change < 0 else "slower"

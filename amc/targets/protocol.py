"""How to time models on a noisy machine: arithmetic only, no runtime and no clock of its own.

The mean of many runs varies by 8 to 13 % between processes on a busy machine, the minimum of 300 runs by
0.4 %, and the ratio of minima to a reference model timed in the same rounds by 0.7 %. Host-wide slow phases
of 1.5x that last seconds exist; only the reference shows them. Hence: interleave the candidates with a
reference, take minima, divide by the reference's, and measure again while the reference is slower than it
has been.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

from amc.targets.base import DEFAULT_TIME_LIMIT_S, Timing

PROTOCOL_VERSION = 1
"""Raised whenever the numbers of this file change their meaning; part of every cache key."""

Call = Callable[[], object]
Clock = Callable[[], float]
Verdict = Literal["faster", "slower", "no difference"]

NOISE_FLOOR = 0.02
"""Smallest relative difference that counts: three standard deviations of a ratio of minima (0.7 % each)."""
UNRELIABLE_NOISE = 0.10
"""Differences below this mean nothing where one of the two timings is unreliable."""


@dataclass(frozen=True)
class Settings:
    """The protocol's numbers.

    Attributes:
        rounds: rounds per try; the runs of every model are spread over them.
        min_runs: runs per model and try.
        max_runs: more runs than this bring nothing, however short they are.
        aim_s: seconds that a try of short models should last, so that it spans more than one time slice.
        drift: relative excess of the reference over its best above which a round does not count.
        steady_rounds: rounds of a try that must count. One would not do: a slow phase that ends within the
            last round can leave the reference its best time and a candidate nothing but slow ones.
        max_attempts: tries before the result is called unreliable.
        time_limit_s: seconds for all tries together; a try is cut short rather than run past it.
    """

    rounds: int = 15
    min_runs: int = 150
    max_runs: int = 600
    aim_s: float = 1.0
    drift: float = 0.03
    steady_rounds: int = 3
    max_attempts: int = 5
    time_limit_s: float = DEFAULT_TIME_LIMIT_S


def measure(
    calls: Sequence[Call],
    clock: Clock,
    *,
    settings: Settings | None = None,
    reference_best: float | None = None,
) -> list[Timing]:
    """Time several models in interleaved rounds; the first is the reference.

    Args:
        calls: each runs one inference of one model.
        clock: seconds, monotonic.
        settings: the protocol's numbers.
        reference_best: the reference's best time in earlier measurements, if there were any.

    Returns:
        One timing a model, in order. If no try passes, those of the try whose reference was fastest, marked
        unreliable.
    """
    settings = settings or Settings()
    start = clock()
    runs, complete = runs_per_round(_cost_of_one_run(calls, clock), settings)
    best, kept, kept_steady = reference_best or math.inf, [], math.inf
    for attempt in range(1, settings.max_attempts + 1):
        attempt_start = clock()
        rounds = [_one_round(calls, clock, runs, backwards=bool(i % 2)) for i in range(settings.rounds)]
        timings = _summary(rounds, complete, attempt)
        best = min(best, timings[0].best)
        steady = sorted(timings[0].rounds)[settings.steady_rounds - 1]
        if steady <= best * (1 + settings.drift):
            return timings
        if steady < kept_steady:
            kept, kept_steady = timings, steady
        now = clock()
        if now + (now - attempt_start) > start + settings.time_limit_s:
            break  # another try would not end in time
    return [_unreliable(timing, attempt) for timing in kept]


def runs_per_round(cost_s: float, settings: Settings) -> tuple[int, bool]:
    """Choose how many runs of each model go into one round.

    Args:
        cost_s: seconds that one run of every model takes together.
        settings: the protocol's numbers.

    Returns:
        Runs per model and round (at least 1), and whether they make up the minimum number of runs.
    """
    cost_s = max(cost_s, 1e-9)
    wanted = min(max(settings.aim_s / cost_s, settings.min_runs), settings.max_runs)
    affordable = settings.time_limit_s / cost_s
    per_round = math.ceil(min(wanted, affordable) / settings.rounds)
    return per_round, per_round * settings.rounds >= settings.min_runs


def compare(candidate: Timing, baseline: Timing) -> Verdict:
    """Say whether `candidate` is faster or slower than `baseline`, or whether noise explains the difference.

    Both must be relative to the same reference; best taken in the same call of `Target.measure`.
    """
    change = candidate.ratio / baseline.ratio
    threshold = max(NOISE_FLOOR, noise(candidate) + noise(baseline))
    if abs(math.log(change)) <= math.log1p(threshold):
        return "no difference"
    return "faster" if change < 1 else "slower"


def noise(timing: Timing) -> float:
    """Return the relative uncertainty of one timing: how much its even and odd rounds disagree."""
    floor = 0.0 if timing.reliable else UNRELIABLE_NOISE
    if len(timing.rounds) < 2:
        return floor
    even, odd = min(timing.rounds[::2]), min(timing.rounds[1::2])
    return max(floor, abs(even - odd) / min(even, odd))


def _cost_of_one_run(calls: Sequence[Call], clock: Clock) -> float:
    """Return the seconds of one run of every model; the first runs also warm up caches and allocators."""
    return sum(min(_time(call, clock) for _ in range(3)) for call in calls)


def _one_round(calls: Sequence[Call], clock: Clock, runs: int, *, backwards: bool) -> list[float]:
    """Return each model's smallest time in seconds, in the order of `calls`.

    Every other round runs backwards, so that no model always follows the same one.
    """
    order = range(len(calls) - 1, -1, -1) if backwards else range(len(calls))
    best = {i: min(_time(calls[i], clock) for _ in range(runs)) for i in order}
    return [best[i] for i in range(len(calls))]


def _time(call: Call, clock: Clock) -> float:
    start = clock()
    call()
    return clock() - start


def _summary(rounds: Sequence[Sequence[float]], reliable: bool, attempt: int) -> list[Timing]:
    columns = [tuple(1e3 * seconds for seconds in column) for column in zip(*rounds, strict=True)]
    reference = min(columns[0])
    return [Timing(min(c), c, min(c) / reference, reliable, attempt) for c in columns]


def _unreliable(timing: Timing, attempts: int) -> Timing:
    return Timing(timing.best, timing.rounds, timing.ratio, False, attempts)

"""Where the time of an evaluation goes, heard from the evaluator itself while it does what it always does."""

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager

from torch import fx

from amc.compress import ChannelPruning, Compressor
from amc.decomposition.responses import Replace
from amc.evaluate import Evaluator
from amc.network import Network
from amc.policy import CompressionPolicy
from amc.pruning.reconstruction import NOTHING_REPLACED, Positions, Reconstruction

REST = "the rest"
LEAST_SQUARES = "least squares"


class Stopwatch:
    """Adds up the seconds of named parts; while a part inside another one runs, the outer one stands still.

    So all parts together last as long as the outermost ones.

    Args:
        clock: tells the time in seconds.

    Attributes:
        seconds: by part, in the order in which they first began.
    """

    def __init__(self, clock: Callable[[], float] = time.perf_counter):
        self.seconds: dict[str, float] = {}
        self._clock, self._running, self._since = clock, list[str](), 0.0

    @contextmanager
    def __call__(self, part: str) -> Iterator[None]:
        """The part lasts as long as the context."""
        self._count()
        self._running.append(part)
        self.seconds.setdefault(part, 0.0)
        try:
            yield
        finally:
            self._count()
            self._running.pop()

    def _count(self) -> None:
        """Give the innermost part the time since the last change."""
        now = self._clock()
        if self._running:
            self.seconds[self._running[-1]] += now - self._since
        self._since = now


def phases_of(
    evaluator: Evaluator,
    policies: Sequence[CompressionPolicy],
    clock: Callable[[], float] = time.perf_counter,
) -> dict[str, float]:
    """Mean milliseconds of each part of an evaluation; together they are the mean evaluation.

    Args:
        evaluator: left as it is.
        policies: the first one brings the data into memory and is not counted.
        clock: tells the time in seconds.
    """
    watched, warm, stopwatch = evaluator.alone(), Stopwatch(clock), Stopwatch(clock)
    watched.costs = dict(evaluator.costs)
    for watch, chosen in ((warm, policies[:1]), (stopwatch, policies[1:])):
        watched.watch = watch
        watched.compressors = tuple(_watched(each, watch) for each in evaluator.compressors)
        for policy in chosen:
            with watch(REST):
                watched([policy])
    seconds = dict(stopwatch.seconds)
    rest = seconds.pop(REST)
    return {part: 1e3 * each / len(policies[1:]) for part, each in {**seconds, REST: rest}.items()}


def _watched(compressor: Compressor, watch: Stopwatch) -> Compressor:
    """The same compressor, its reconstruction a part of its own."""
    if not isinstance(compressor, ChannelPruning) or compressor.reconstruction is None:
        return compressor
    refits: Reconstruction = compressor.reconstruction

    def refit(
        model: fx.GraphModule,
        network: Network,
        positions: Positions,
        replace: Mapping[str, Replace] = NOTHING_REPLACED,
        final: bool = True,
    ) -> bool:
        with watch(LEAST_SQUARES):
            return refits(model, network, positions, replace, final)

    return compressor.refitting(refit)

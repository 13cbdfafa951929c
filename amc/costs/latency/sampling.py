"""Measured latencies of random legal policies: what a predictor is fitted to."""

import itertools
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import torch

from amc.compress import ChannelPruning, Compressor, apply
from amc.costs.latency.predictor import Sample
from amc.decomposition.operator import AMOUNT
from amc.decomposition.replacement import OperatorReplacement
from amc.decomposition.shapes import OperatorShapes
from amc.errors import UserError
from amc.network import Network
from amc.recovery.calibrate import calibrate
from amc.space import Space
from amc.targets.base import Target, Timing

MOST_SAMPLES, LEAST_SAMPLES = 240, 40
FILES_AT_ONCE = 6
"""As many as the measuring process keeps loaded beside reference and anchor."""
TIMING_S = 0.7
"""Seconds of timing for so many files: more than 40 runs of each."""
LOADING_S = 0.02
"""Seconds of timing that only make the target load the networks."""
TRIES, DRIFT, MOST_STRAYS = 3, 0.03, 0.2
"""How often they are timed, while anchor and reference differ by more than this from their usual ratio, and
the largest share of measurements that is left out because they still do."""

Progress = Callable[[int, int], None]
"""Called with the samples so far and the samples wanted."""


def random_table(space: Space, rng: np.random.Generator) -> np.ndarray:
    """A random legal policy as a table [points, knobs].

    Widths scatter around a common level, as those of a search do: with independent widths every policy
    would cost about the same. A third of the policies has the fewest bits everywhere, a sixth the most, and
    the others draw bits layer by layer. Where residual blocks may go, each policy leaves out its own share.
    Where operators may replace layers, a quarter of the policies has none of them, and each of the others
    its own share; their amounts scatter around a common level of their own.
    """
    partial = space.empty()
    level, scatter = rng.uniform(0.05, 1.0), rng.uniform(0.0, 0.4)
    style = rng.choice(["fewest", "most", "mixed"], p=[1 / 3, 1 / 6, 1 / 2])
    few = {"fewest": 1.0, "most": 0.0, "mixed": rng.uniform(0.3, 1.0)}[style]
    width, gone = space.column("width"), rng.uniform(0.0, 0.9)
    replaced, far = (max(0.0, rng.uniform(-1 / 3, 1.0)), rng.uniform(0.0, 1.0)) if space.chooses else (0, 0)
    for row, column in np.ndindex(space.decider.shape):
        if partial.decided[row, column] or space.decider[row, column] != row:
            continue
        values = space.legal(row, column, partial)
        if column == width or space.knobs[column].name == AMOUNT:
            middle = level if column == width else far
            place = int(np.clip((middle + scatter * rng.normal()) * len(values), 0, len(values) - 1))
        elif space.knobs[column].name == "operator":
            place = int(rng.integers(len(values) - 1)) if rng.random() < replaced else -1
        elif space.knobs[column].name == "block":
            place = int(rng.random() >= gone)
        else:
            place = 0 if rng.random() < few else int(rng.integers(1, len(values)))
        partial = space.decide(partial, row, column, values[place])
    return partial.values


def paired_ratio(timing: Timing, other: Timing) -> float:
    """The median over rounds of a file's time divided by another's in the same round.

    So few runs may lie within one slow phase of the machine but for the other's best; the ratio of the two
    minima was off by 40 % for all files of a measurement then. Within a round both are slow.
    """
    return float(np.median(np.divide(timing.rounds, other.rounds)))


def with_ratios(timed: Sequence[tuple[Sequence[np.ndarray], Sequence[Timing]]]) -> list[Sample]:
    """Policies with their latencies as fractions of the reference's.

    Measurements in which anchor and reference disagree with what they are to each other in all of them are
    left out, up to a fifth: the policies beside them are off together. While they are being taken nobody
    knows the final median, the first measurement least of all.

    Args:
        timed: the tables of each measurement, and the timings of reference, anchor and those tables.
    """
    anchors = np.array([paired_ratio(timings[1], timings[0]) for _, timings in timed] or [1.0])
    anchor = float(np.median(anchors))
    drift = np.abs(anchors / anchor - 1.0)
    allowed = max(DRIFT, float(np.quantile(drift, 1.0 - MOST_STRAYS, method="higher")))
    return [
        Sample(table, anchor * paired_ratio(timing, timings[1]))
        for (tables, timings), off in zip(timed, drift, strict=False)
        if off <= allowed
        for table, timing in zip(tables, timings[2:], strict=True)
    ]


class Sampler:
    """Builds and measures random policies of a network.

    Every measurement holds the reference, one fixed compressed network, the anchor, and some policies. On a
    machine whose caches are shared with others the large reference slows down more than small networks do,
    so policies are compared with the anchor beside them, and the anchor with the reference over all
    measurements.

    Args:
        network: the traced network; its weights do not matter.
        space: its legal policies.
        compressors: what carries a policy out.
        target: the runtime.
        reference: the uncompressed network as a file of the target.
    """

    def __init__(
        self,
        network: Network,
        space: Space,
        compressors: Sequence[Compressor],
        target: Target,
        reference: Path,
    ):
        self.network, self.space, self.target, self.reference = network, space, target, reference
        # Fitting weights costs time and changes no latency.
        self.compressors = [_without_fits(compressor) for compressor in compressors]
        self._rng = np.random.default_rng(0)
        noise = torch.Generator().manual_seed(0)
        self._images = torch.randn(2, *network.example.shape[1:], generator=noise)
        self._drawn: set[bytes] = set()
        self._anchors: list[float] = []

    def collect(self, progress: Progress = lambda done, total: None) -> list[Sample]:
        """Measure random policies until there are enough, time is up, or there are no others.

        Raises:
            UserError: time was up before a predictor could be fitted and judged.
        """
        timed: list[tuple[list[np.ndarray], list[Timing]]] = []
        started, slowest = time.monotonic(), 0.0
        with tempfile.TemporaryDirectory(prefix="amc-samples-") as folder, _one_thread() as builder:
            anchor = Path(folder) / f"anchor{self.target.file_suffix}"
            self._write(self._anchor(), anchor)
            tables, files = self._build(Path(folder) / "0")
            for number in itertools.count(1):
                begun = time.monotonic()
                if not tables or begun + slowest > started + self.target.sampling_limit_s:
                    break
                # Runtimes take as long to load networks as it takes to build the next ones. Nothing may run
                # beside the timing itself: on a neighbouring core it shifted all ratios by 14 %.
                following = builder.submit(self._build, Path(folder) / str(number))
                everything = [self.reference, anchor, *files]
                self.target.measure(everything, time_limit_s=LOADING_S)
                loaded = following.result()
                timed.append((tables, self._timed(everything)))
                shutil.rmtree(files[0].parent)
                tables, files = loaded
                slowest = max(slowest, time.monotonic() - begun)
                progress(sum(len(tables) for tables, _ in timed), MOST_SAMPLES)
        samples = with_ratios(timed)
        if len(samples) < LEAST_SAMPLES:
            raise UserError(
                f"Only {len(samples)} random policies could be measured on {self.target.name} within "
                f"{self.target.sampling_limit_s:.0f} s, and a latency budget needs {LEAST_SAMPLES}: there "
                "are no more, or the machine is too busy."
            )
        return samples

    def _build(self, folder: Path) -> tuple[list[np.ndarray], list[Path]]:
        """The next policies and their files, none when there are enough."""
        tables = self._new_tables(min(FILES_AT_ONCE, MOST_SAMPLES - len(self._drawn)))
        folder.mkdir()
        files = [folder / f"{index}{self.target.file_suffix}" for index in range(len(tables))]
        for table, file in zip(tables, files, strict=True):
            self._write(table, file)
        return tables, files

    def _write(self, table: np.ndarray, file: Path) -> None:
        model = apply(self.space.policy(table), self.network, self.compressors)
        # Scales fitted to noise: latency does not depend on them.
        calibrate(model, [self._images])
        self.target.export(model, self.network.example, file)

    def _anchor(self) -> np.ndarray:
        """Half of the channels, the fewest bits."""
        width = self.space.column("width")
        return self.space.at_fraction([0.5 if c == width else 0.0 for c in range(len(self.space.knobs))])

    def _new_tables(self, count: int) -> list[np.ndarray]:
        """Up to `count` policies that have not been drawn yet."""
        tables: list[np.ndarray] = []
        for _ in range(20 * count):
            table = random_table(self.space, self._rng)
            if len(tables) < count and table.tobytes() not in self._drawn:
                self._drawn.add(table.tobytes())
                tables.append(table)
        return tables

    def _timed(self, files: Sequence[Path]) -> list[Timing]:
        """Time files; again where reference and anchor disagree with what they have been before.

        One of the two was held up then, and nobody knows which, or how much the policies beside them were.
        """
        for _ in range(TRIES):
            timings = self.target.measure(files, time_limit_s=TIMING_S)
            ratio = paired_ratio(timings[1], timings[0])
            self._anchors.append(ratio)
            if abs(ratio / float(np.median(self._anchors)) - 1.0) <= DRIFT:
                break
        return timings


def _without_fits(compressor: Compressor) -> Compressor:
    if isinstance(compressor, OperatorReplacement):
        return OperatorShapes()
    return ChannelPruning(compressor.ranking) if isinstance(compressor, ChannelPruning) else compressor


@contextmanager
def _one_thread() -> Iterator[ThreadPoolExecutor]:
    """A thread that computes on one core, so that the core of the measurement stays free."""
    threads = torch.get_num_threads()
    with ThreadPoolExecutor(1, initializer=torch.set_num_threads, initargs=(1,)) as builder:
        yield builder
    torch.set_num_threads(threads)

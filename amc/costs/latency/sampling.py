"""Measured latencies of random legal policies: what a predictor is fitted to."""

import math
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch

from amc.compress import ChannelPruning, Compressor, apply
from amc.costs.latency.predictor import Sample
from amc.errors import UserError
from amc.network import Network
from amc.recovery.calibrate import calibrate
from amc.space import Space
from amc.targets.base import Target, Timing

MOST_SAMPLES, LEAST_SAMPLES = 240, 40
FILES_AT_ONCE = 7
"""As many as the measuring process keeps loaded beside the reference."""
TIMING_S = 0.7
"""Seconds of timing for so many files: more than 40 runs of each."""
TRIES, DRIFT = 3, 0.02
"""How often, and from which relative excess of the reference over its best, they are timed again."""

Progress = Callable[[int, int], None]
"""Called with the samples so far and the samples wanted."""


def random_table(space: Space, rng: np.random.Generator) -> np.ndarray:
    """A random legal policy as a table [points, knobs].

    Widths scatter around a common level, as those of a search do: with independent widths every policy
    would cost about the same. A third of the policies has the fewest bits everywhere, a sixth the most, and
    the others draw bits layer by layer.
    """
    partial = space.empty()
    level, scatter = rng.uniform(0.05, 1.0), rng.uniform(0.0, 0.4)
    style = rng.choice(["fewest", "most", "mixed"], p=[1 / 3, 1 / 6, 1 / 2])
    few = {"fewest": 1.0, "most": 0.0, "mixed": rng.uniform(0.3, 1.0)}[style]
    width = space.column("width")
    for row, column in np.ndindex(space.decider.shape):
        if partial.decided[row, column] or space.decider[row, column] != row:
            continue
        values = space.legal(row, column, partial)
        if column == width:
            place = int(np.clip((level + scatter * rng.normal()) * len(values), 0, len(values) - 1))
        else:
            place = 0 if rng.random() < few else int(rng.integers(1, len(values)))
        partial = space.decide(partial, row, column, values[place])
    return partial.values


class Sampler:
    """Builds and measures random policies of a network.

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
        # Refitting weights costs time and changes no latency.
        self.compressors = [
            ChannelPruning(c.ranking) if isinstance(c, ChannelPruning) else c for c in compressors
        ]
        self._rng = np.random.default_rng(0)
        noise = torch.Generator().manual_seed(0)
        self._images = torch.randn(2, *network.example.shape[1:], generator=noise)
        self._drawn: set[bytes] = set()
        self._best = math.inf

    def collect(self, progress: Progress = lambda done, total: None) -> list[Sample]:
        """Measure random policies until there are enough, time is up, or there are no others.

        Raises:
            UserError: time was up before a predictor could be fitted and judged.
        """
        samples: list[Sample] = []
        started, slowest = time.monotonic(), 0.0
        with tempfile.TemporaryDirectory(prefix="amc-samples-") as folder:
            while len(samples) < MOST_SAMPLES:
                begun = time.monotonic()
                tables = self._new_tables(min(FILES_AT_ONCE, MOST_SAMPLES - len(samples)))
                if not tables or begun + slowest > started + self.target.sampling_limit_s:
                    break
                samples += self._measure(tables, Path(folder))
                slowest = max(slowest, time.monotonic() - begun)
                progress(len(samples), MOST_SAMPLES)
        if len(samples) < LEAST_SAMPLES:
            raise UserError(
                f"Only {len(samples)} random policies could be measured on {self.target.name} within "
                f"{self.target.sampling_limit_s:.0f} s, and a latency budget needs {LEAST_SAMPLES}: there "
                "are no more, or the machine is too busy."
            )
        return samples

    def _new_tables(self, count: int) -> list[np.ndarray]:
        """Up to `count` policies that have not been drawn yet."""
        tables: list[np.ndarray] = []
        for _ in range(20 * count):
            table = random_table(self.space, self._rng)
            if len(tables) < count and table.tobytes() not in self._drawn:
                self._drawn.add(table.tobytes())
                tables.append(table)
        return tables

    def _measure(self, tables: Sequence[np.ndarray], folder: Path) -> list[Sample]:
        files = [folder / f"{index}{self.target.file_suffix}" for index in range(len(tables))]
        for table, file in zip(tables, files, strict=True):
            model = apply(self.space.policy(table), self.network, self.compressors)
            # Scales fitted to noise: latency does not depend on them.
            calibrate(model, [self._images])
            self.target.export(model, self.network.example, file)
        timings = self._timed([self.reference, *files])
        return [Sample(table, timing.ratio) for table, timing in zip(tables, timings[1:], strict=True)]

    def _timed(self, files: Sequence[Path]) -> list[Timing]:
        """Time files; again while the reference is slower than it has been, as all ratios would be off."""
        for _ in range(TRIES):
            timings = self.target.measure(files, time_limit_s=TIMING_S)
            self._best = min(self._best, timings[0].best)
            if timings[0].best <= self._best * (1.0 + DRIFT):
                break
        return timings

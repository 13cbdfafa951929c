"""A target whose runtime lives in a measuring process of its own."""

import functools
import tempfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from amc.errors import UserError
from amc.targets.base import DEFAULT_TIME_LIMIT_S, Target, Timing, existing_file
from amc.targets.calibration import Profile
from amc.targets.machine import installed_version
from amc.targets.measuring_process import MeasuringProcess, RequestFailed

CHUNK_BYTES = 64 * 2**20
"""Inputs handed over at a time; between two chunks another process may use the core."""


class ProcessTarget(Target):
    """Base of the targets that run in `amc.targets.worker`: a subclass sets three class attributes.

    Attributes:
        name: see `Target`.
        distribution: the runtime's name at the package index, asked for its version.
        engine: "package.module:load", imported in the measuring process.

    Args:
        core: the core to measure on; by default the last one that this process may use.
    """

    distribution: str
    engine: str

    def __init__(self, core: int | None = None):
        self.process = MeasuringProcess(self.engine, core)

    @property
    def runtime_version(self) -> str:
        """Version of the installed runtime; raises UserError if there is none."""
        version = installed_version(self.distribution)
        if version is None:
            raise UserError(f"The target {self.name} needs a package: pip install {self.distribution}.")
        return version

    @property
    def weight_bits_exact(self) -> int:
        """7 where this CPU's int8 kernels saturate, 8 otherwise; found by a short check, then remembered."""
        from amc.targets.saturation import weight_bits_exact

        return weight_bits_exact(self)

    @functools.cached_property
    def profile(self) -> Profile:
        """Found by a calibration of less than a minute, then remembered on disk."""
        # Here, because it imports torch, which the measuring process does without.
        from amc.targets.profiling import measured_profile

        return measured_profile(self, on_progress=self.on_calibration)

    def measure(
        self, files: Sequence[Path | str], *, time_limit_s: float = DEFAULT_TIME_LIMIT_S
    ) -> list[Timing]:
        """Time exported models on one pinned core, interleaved; see `Target.measure`."""
        if not files or time_limit_s <= 0:
            raise UserError("A measurement needs at least one model file and a time limit above 0 s.")
        paths = [str(existing_file(file)) for file in files]
        reply = self._ask(paths, {"op": "measure", "files": paths, "time_limit_s": time_limit_s})
        return [Timing.from_json(timing) for timing in reply["timings"]]

    def run(self, file: Path | str, inputs: np.ndarray) -> np.ndarray:
        """Return the model's first output for `[N, ...]` inputs; see `Target.run`."""
        path = str(existing_file(file))
        if len(inputs) == 0:
            raise UserError(f"There are no images to run {path} on.")
        size = max(1, CHUNK_BYTES // max(1, inputs[:1].nbytes))
        return np.concatenate([self._run(path, inputs[i : i + size]) for i in range(0, len(inputs), size)])

    def close(self) -> None:
        """End the measuring process; the next use starts a new one."""
        self.process.close()

    def _run(self, path: str, inputs: np.ndarray) -> np.ndarray:
        with tempfile.TemporaryDirectory(prefix="amc-run-") as directory:
            source, result = Path(directory) / "x.npy", Path(directory) / "y.npy"
            np.save(source, np.asarray(inputs, dtype=np.float32), allow_pickle=False)
            self._ask([path], {"op": "run", "file": path, "inputs": str(source), "outputs": str(result)})
            return np.load(result, allow_pickle=False)

    def _ask(self, paths: list[str], message: dict[str, object]) -> dict:
        self.runtime_version  # noqa: B018 - a missing package gets its own sentence, before a process is started
        try:
            return self.process.request(message)
        except RequestFailed as error:
            raise UserError(f"{self.name} cannot use {', '.join(paths)}: {error}.") from error

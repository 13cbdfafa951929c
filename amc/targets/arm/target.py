"""LiteRT on an emulated ARM core: the cost of a network is how many instructions it runs."""

import functools
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from amc.errors import UserError
from amc.targets.arm import counts, emulator
from amc.targets.arm.cores import CORTEX_A76, Core
from amc.targets.arm.installation import LITERT_VERSION, Installation
from amc.targets.base import DEFAULT_TIME_LIMIT_S, Target, Timing, existing_file
from amc.targets.cache import default_cache_directory
from amc.targets.calibration import Profile

if TYPE_CHECKING:
    from torch import Tensor, fx

    from amc.export import Exported

DECLARED = Profile(
    width_multiple=8, width_multiple_at={8: 16}, source="declared: counted, 3x3 with 4 to 48 outputs"
)
"""Counted on both cores, 3x3 convolutions of 16 channels to 4..48: further output channels cost nothing up to
each multiple of 8 in fp32 and of 16 in int8, XNNPACK's tiles. Where one number has to serve, 8: the next
layer's inputs shrink with it all the same, and 16 leaves a layer of 16 channels no choice."""
FILE_LIMIT_S = 600.0
"""Seconds for one file, after which the emulator is taken to hang; a count cannot be cut short."""


def default_installation() -> Installation:
    """The directory that `scripts/setup_arm.py` prepares unless told otherwise."""
    return Installation(default_cache_directory().resolve() / "arm")


class ArmInstructionsTarget(Target):
    """LiteRT with XNNPACK for 64-bit ARM in QEMU; counts the instructions of one inference.

    A count depends on the file, the core and the versions of the libraries, and on nothing else: neither on
    the machine that emulates nor on its load. Instructions are not time: caches and memory do not count.

    Args:
        core: the core to emulate.
        installation: what `scripts/setup_arm.py` has prepared; nothing is looked up before it is used.
    """

    unit = "M instructions"
    file_suffix = ".tflite"
    sampling_limit_s = 900.0

    def __init__(self, core: Core = CORTEX_A76, installation: Installation | None = None):
        self.name = (
            "arm-instructions" if core is CORTEX_A76 else f"arm-instructions-{core.name.split('-')[-1]}"
        )
        self.core = core
        self.installation = installation or default_installation()

    @functools.cached_property
    def profile(self) -> Profile:
        """What `scripts/profile_target.py` has found on this core and remembered, or else `DECLARED`.

        Declared and not calibrated unasked: a count is the same on every machine, so that one calibration
        serves all of them, and 150 networks are slow to emulate.
        """
        from amc.targets.profiling import recall  # imports torch, which counting does without

        remembered = recall(self) if self.installation.is_ready() else None
        return remembered or DECLARED

    @property
    def runtime_version(self) -> str:
        """LiteRT, core and whatever else decides a count; raises UserError if nothing is prepared."""
        versions = self.installation.versions()
        libraries = f"qemu {versions['qemu-user']}, libc {versions['libc6']}"
        return f"{LITERT_VERSION} on {self.core.name}, {libraries}, counting {counts.VERSION}"

    def measure(
        self, files: Sequence[Path | str], *, time_limit_s: float = DEFAULT_TIME_LIMIT_S
    ) -> list[Timing]:
        """Count the instructions of one inference with each file; see `Target.measure`.

        Args:
            files: the reference, then any number of candidates.
            time_limit_s: not heeded, as a count cannot be cut short: 2 to 10 s for a network of CIFAR size.
        """
        if not files or time_limit_s <= 0:
            raise UserError("A measurement needs at least one model file and a time limit above 0 s.")
        self.installation.versions()
        paths = [existing_file(file) for file in files]
        with emulator.working_directory() as directory:
            emulator.link_files(paths, directory)
            arguments = ["count", str(len(paths))]
            log = self._emulate(paths, directory, arguments, FILE_LIMIT_S * len(paths))
        return timings(counts.inferences(log, len(paths)))

    def run(self, file: Path | str, inputs: np.ndarray) -> np.ndarray:
        """Return the outputs as the emulated core computes them, one image at a time; see `Target.run`.

        About a hundred times slower than the hardware: meant for a handful of images.
        """
        path = existing_file(file)
        self.installation.versions()
        if len(inputs) == 0:
            raise UserError(f"There are no images to run {path} on.")
        with emulator.working_directory() as directory:
            (directory / "model.tflite").symlink_to(path)
            np.save(directory / "inputs.npy", np.asarray(inputs, np.float32), allow_pickle=False)
            self._emulate([path], directory, ["run"], FILE_LIMIT_S + len(inputs) * DEFAULT_TIME_LIMIT_S)
            return np.load(directory / "outputs.npy", allow_pickle=False)

    def export(self, module: "fx.GraphModule", example: "Tensor", path: Path) -> "Exported":
        """Write a traced network as a .tflite file; see `Target.export`."""
        from amc.export.tflite import export_tflite

        return export_tflite(module, example, path)

    def _emulate(self, paths: list[Path], directory: Path, arguments: list[str], timeout_s: float) -> str:
        try:
            return emulator.emulate(self.installation, self.core, directory, arguments, timeout_s)
        except emulator.EmulatorFailed as error:
            file = paths[error.index or 0]
            raise UserError(f"{self.name} cannot use {file}: {error}.") from error


def timings(rounds: Sequence[tuple[int, ...]]) -> list[Timing]:
    """Turn instructions of one inference, several rounds a file, into timings; the first is the reference.

    They are reliable if all rounds agree to the digit, which they do unless something is broken.
    """
    reference = min(rounds[0])
    return [
        Timing(
            best=min(counted) / 1e6,
            rounds=tuple(count / 1e6 for count in counted),
            ratio=min(counted) / reference,
            reliable=len(set(counted)) == 1,
            attempts=1,
        )
        for counted in rounds
    ]

"""What every target offers, and what one measurement says."""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any

from amc.errors import UserError
from amc.targets.calibration import Profile, Progress

if TYPE_CHECKING:
    import numpy as np
    from torch import Tensor, fx
    from typing_extensions import Self

    from amc.export import Exported

DEFAULT_TIME_LIMIT_S = 30.0
"""Seconds one call of `Target.measure` may spend on timing, all tries together."""


@dataclass(frozen=True)
class Timing:
    """The latency of one file at batch 1, measured in the same rounds as a reference file.

    Attributes:
        best: smallest cost of one inference, in the target's unit: milliseconds, or millions of instructions.
        rounds: smallest cost of each round, in the order of the rounds.
        ratio: `best` divided by the reference's (the first file's); 1.0 for the reference itself.
        reliable: False if the reference never came within 3 % of its best, or time ran out.
        attempts: how many times all rounds were run, the kept one included.
    """

    best: float
    rounds: tuple[float, ...]
    ratio: float
    reliable: bool
    attempts: int

    def to_json(self) -> dict[str, Any]:
        """Return the fields as JSON types."""
        return {
            "best": self.best,
            "rounds": list(self.rounds),
            "ratio": self.ratio,
            "reliable": self.reliable,
            "attempts": self.attempts,
        }

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> "Timing":
        """Rebuild a timing; raises KeyError, TypeError or ValueError if `data` is not one."""
        if not isinstance(data["reliable"], bool):
            raise TypeError("reliable must be true or false")
        return cls(
            best=float(data["best"]),
            rounds=tuple(float(value) for value in data["rounds"]),
            ratio=float(data["ratio"]),
            reliable=data["reliable"],
            attempts=int(data["attempts"]),
        )


class Target(ABC):
    """A runtime on a CPU that runs an exported model and says how long it takes.

    Nothing here assumes that the runtime can be imported where the target object lives: it may run in
    another process, another virtual environment or an emulator.

    Attributes:
        name: the name people give on the command line; part of every cache key and result.
        unit: what `Timing.best` counts: "ms", or "M instructions" on a target that counts instead of timing.
        file_suffix: of the files that it reads.
        sampling_limit_s: seconds that measuring random policies for a latency predictor may take.
        on_calibration: hears of the target's calibration, should reading `profile` start one; for whoever
            wants to tell a person why it takes a while.
    """

    name: str
    unit: str = "ms"
    file_suffix: str = ".onnx"
    sampling_limit_s: float = 165.0
    on_calibration: Progress | None = None

    @property
    @abstractmethod
    def profile(self) -> Profile:
        """Channel steps and bit widths that pay off: declared by a class attribute, or measured."""

    def adopt(self, profile: Profile) -> None:
        """Use a profile that was measured before, such as that of a run which is being continued."""
        vars(self)["profile"] = profile

    @property
    def width_multiple(self) -> int:
        """Channel counts should be multiples of this when latency matters."""
        return self.profile.width_multiple

    @property
    def fast_bits(self) -> tuple[int, ...]:
        """Bit widths that this target really speeds up; 32 means not quantized."""
        return self.profile.fast_bits

    @property
    def weight_bits_exact(self) -> int:
        """Signed weight bits (7 or 8) for which int8 convolutions are exact for every input on this CPU."""
        return 8

    @property
    @abstractmethod
    def runtime_version(self) -> str:
        """Version of the runtime, as in "1.32.0"; part of every cache key.

        Raises:
            UserError: the runtime is not installed.
        """

    @abstractmethod
    def measure(
        self, files: Sequence[Path | str], *, time_limit_s: float = DEFAULT_TIME_LIMIT_S
    ) -> list[Timing]:
        """Time exported models at batch 1 on one pinned core, interleaved; the first is the reference.

        Args:
            files: the reference, then any number of candidates.
            time_limit_s: seconds to spend on timing at most, loading and waiting for the core aside.

        Returns:
            One timing a file, in order.

        Raises:
            UserError: a file is missing or the runtime refuses it.
        """

    @abstractmethod
    def run(self, file: Path | str, inputs: "np.ndarray") -> "np.ndarray":
        """Return the outputs of an exported model, as this runtime computes them.

        Args:
            file: the exported model, with one float32 input.
            inputs: `[N, ...]` float32; fed in batches, N is not limited by memory of the runtime.

        Returns:
            `[N, ...]`, the model's first output.

        Raises:
            UserError: the file is missing, the runtime refuses it, or the shapes do not fit.
        """

    def export(self, module: "fx.GraphModule", example: "Tensor", path: Path) -> "Exported":
        """Write a traced network as a file that this target reads; ONNX unless a target says otherwise.

        Args:
            module: in evaluation mode, calibrated where it is quantized; not changed.
            example: one input [1, ...].
            path: file to write, replaced in one step.

        Raises:
            UserError: the network cannot be exported.
        """
        from amc.export import export_onnx  # imports torch, which the measuring process does without

        return export_onnx(module, example, path)

    def close(self) -> None:  # noqa: B027 - a target that holds no process has nothing to close
        """Release processes; the target starts them again if it is used again."""

    def __enter__(self) -> "Self":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def existing_file(file: Path | str) -> Path:
    """Return the absolute path of a model file; raises UserError if there is no such file."""
    path = Path(file).resolve()
    if not path.is_file():
        raise UserError(f"There is no model file {path}.")
    return path

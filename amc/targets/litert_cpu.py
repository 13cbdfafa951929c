"""LiteRT (TensorFlow Lite) on one CPU thread."""

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from amc.errors import UserError
from amc.targets.machine import installed_version
from amc.targets.process_target import ProcessTarget

if TYPE_CHECKING:
    import numpy as np
    from torch import Tensor, fx

    from amc.export import Exported


DISTRIBUTION = "ai-edge-litert"


def require_litert() -> str:
    """Return the version of the installed runtime; raises UserError if there is none."""
    version = installed_version(DISTRIBUTION)
    if version is None:
        raise UserError('LiteRT needs a package: pip install "amc-compress[litert]".')
    return version


class LiteRtTarget(ProcessTarget):
    """LiteRT's interpreter with XNNPACK, the kernels that Android phones use, one thread, batch 1.

    Its int8 kernels are exact on x86 CPUs without VNNI too, because there they multiply in 16 bits and add in
    32; hence they are no faster than its kernels for floats on such a CPU.
    """

    name = "litert"
    distribution = DISTRIBUTION
    engine = "amc.targets.litert_cpu:load"
    file_suffix = ".tflite"

    @property
    def runtime_version(self) -> str:
        """Version of the installed runtime; raises UserError if there is none."""
        return require_litert()

    def export(self, module: "fx.GraphModule", example: "Tensor", path: Path) -> "Exported":
        """Write a traced network as TFLite; see `Target.export`."""
        from amc.export.tflite import export_tflite  # imports torch, which the measuring process does without

        return export_tflite(module, example, path)


class LiteRtSession:
    """One .tflite file; see `amc.targets.engine.Session`.

    Tensors of rank 4 are [N, H, W, C] in the file; here they are [N, C, H, W], as everywhere else.
    """

    def __init__(self, interpreter: Any):
        interpreter.allocate_tensors()
        (source,) = interpreter.get_input_details()
        self._interpreter, self._input = interpreter, source["index"]
        self._outputs = [output["index"] for output in interpreter.get_output_details()]
        self._allocated = tuple(source["shape"])
        _, *sizes = (int(size) for size in source["shape"])
        channels_first = [sizes[-1], *sizes[:-1]] if len(sizes) == 3 else sizes
        self.shape: tuple[int | None, ...] = (None, *channels_first)

    def bind(self, inputs: "np.ndarray") -> "Callable[[], np.ndarray]":
        """Return a call that runs the model on `inputs` and returns its first output."""
        stored = inputs.transpose(0, 2, 3, 1) if inputs.ndim == 4 else inputs
        if stored.shape != self._allocated:
            self._interpreter.resize_tensor_input(self._input, stored.shape)
            self._interpreter.allocate_tensors()
            self._allocated = stored.shape
        self._interpreter.set_tensor(self._input, stored)
        return self._call

    def results(self) -> "list[np.ndarray]":
        """All outputs of the last call."""
        return [self._result(output) for output in self._outputs]

    def _call(self) -> "np.ndarray":
        self._interpreter.invoke()
        return self._result(self._outputs[0])

    def _result(self, output: int) -> "np.ndarray":
        result = self._interpreter.get_tensor(output)
        return result.transpose(0, 3, 1, 2) if result.ndim == 4 else result


def load(path: str, batch: int) -> LiteRtSession:
    """Load a file; the number of images is fixed when they are bound, so `batch` is not needed."""
    from ai_edge_litert.interpreter import Interpreter

    # Unless it is told otherwise, the interpreter runs on XNNPACK whatever XNNPACK can run.
    return LiteRtSession(Interpreter(path, num_threads=1))

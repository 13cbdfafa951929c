"""ONNX Runtime on one CPU thread."""

from collections.abc import Callable
from typing import TYPE_CHECKING

from amc.targets.process_target import ProcessTarget

if TYPE_CHECKING:
    import numpy as np


class OnnxRuntimeTarget(ProcessTarget):
    """ONNX Runtime's CPU provider, one thread, all graph optimizations, batch 1.

    Its int8 kernels saturate on x86 CPUs without VNNI, see `amc.targets.saturation`. The session option
    `session.x64quantprecision` would avoid that at 1.3 to 1.6 times the latency and is left off: weights on 7
    bits are exact at full speed.
    """

    name = "onnxruntime"
    distribution = "onnxruntime"
    engine = "amc.targets.onnxruntime_cpu:load"


class OnnxRuntimeSession:
    """One ONNX file; see `amc.targets.engine.Session`."""

    def __init__(self, path: str):
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = options.inter_op_num_threads = 1
        options.log_severity_level = 3
        onnxruntime.disable_telemetry_events()
        self._session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
        (self._input,) = self._session.get_inputs()
        self._outputs = [self._session.get_outputs()[0].name]
        self.shape = tuple(dim if isinstance(dim, int) else None for dim in self._input.shape)

    def bind(self, inputs: "np.ndarray") -> "Callable[[], np.ndarray]":
        """Return a call that runs the model on `inputs` and returns its first output."""
        feed = {self._input.name: inputs}
        return lambda: self._session.run(self._outputs, feed)[0]


def load(path: str, batch: int) -> OnnxRuntimeSession:
    """Load a file; ONNX Runtime takes a free batch dimension as it comes, so `batch` is not needed."""
    return OnnxRuntimeSession(path)

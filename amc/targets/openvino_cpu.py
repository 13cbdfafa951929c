"""OpenVINO on one CPU thread."""

import functools
import sys
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from amc.targets.process_target import ProcessTarget

if TYPE_CHECKING:
    import numpy as np

# f32: where the CPU can, OpenVINO computes in bf16 by default, and a figure called fp32 would not be one.
# Pinning is left to the measuring process, which has chosen its core.
CONFIG = {
    "INFERENCE_PRECISION_HINT": "f32",
    "INFERENCE_NUM_THREADS": 1,
    "NUM_STREAMS": 1,
    "PERFORMANCE_HINT": "LATENCY",
    "ENABLE_CPU_PINNING": False,
}


class OpenVinoTarget(ProcessTarget):
    """OpenVINO's CPU plugin, one thread, latency hint, float layers in f32, batch 1.

    Its int8 kernels saturate on x86 CPUs without VNNI, see `amc.targets.saturation`; it has no option that
    avoids it (U8 weights are exact because they fall back to fp32).
    """

    name = "openvino"
    distribution = "openvino"
    engine = "amc.targets.openvino_cpu:load"


class OpenVinoSession:
    """One compiled model; see `amc.targets.engine.Session`."""

    def __init__(self, path: str, batch: int):
        model = _core().read_model(path)
        (port,) = model.inputs
        shape = port.partial_shape
        if shape[0].is_dynamic:
            shape[0] = batch
            model.reshape({port: shape})
        self._request = _core().compile_model(model, "CPU", CONFIG).create_infer_request()
        self.shape = tuple(None if dim.is_dynamic else dim.get_length() for dim in shape)

    def bind(self, inputs: "np.ndarray") -> "Callable[[], np.ndarray]":
        """Return a call that runs the model on `inputs` and returns its first output."""
        import openvino

        request = self._request
        request.set_input_tensor(0, openvino.Tensor(inputs, shared_memory=True))

        def call() -> "np.ndarray":
            request.infer()
            return request.get_output_tensor(0).data

        return call


def load(path: str, batch: int) -> OpenVinoSession:
    """Load a file; a free batch dimension becomes `batch`, because free shapes cost time in OpenVINO."""
    return OpenVinoSession(path, batch)


@functools.cache
def _core() -> Any:
    """Return the one OpenVINO core of this process, with telemetry made impossible."""
    # OpenVINO replaces a telemetry package that cannot be imported by a stub that sends nothing.
    sys.modules.setdefault("openvino_telemetry", None)  # type: ignore[arg-type]
    import openvino

    return openvino.Core()

"""Does the exported file compute what the network computes? Run in its runtimes, compared with torch."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from amc.errors import UserError
from amc.tasks.classification import same_class

Outputs = list[np.ndarray]
Agree = Callable[[Tensor, Tensor], float]
"""Share of the decisions that two outputs have in common: `Task.agreement`."""


@dataclass(frozen=True)
class Agreement:
    """How far a runtime is from torch on the same images.

    Attributes:
        relative_error: largest difference of any output, divided by that output's largest magnitude.
        same_decisions: share, 0 to 1, of the decisions that the first outputs have in common.
    """

    relative_error: float
    same_decisions: float


def check_export(
    path: Path | str, module: nn.Module, images: Tensor, chunk: int = 100, agree: Agree = same_class
) -> dict[str, Agreement]:
    """Run a file in every runtime that reads it and compare it with the network.

    ONNX files run in ONNX Runtime and OpenVINO (in 32-bit floats), TFLite files in LiteRT.

    A float file is right when `relative_error` is at most 1e-4. An int8 file may differ by a code here and
    there, where a value lies on the border of two; `same_decisions` is its measure. A CPU without VNNI
    saturates products of 8-bit weights, which shows here as well, because it is what the user of that CPU
    will get.

    Args:
        path: the exported file.
        module: the network it was exported from, in eval mode.
        images: inputs [N, ...]; for a file of fixed batch size N must be a multiple of it.
        chunk: images that run at once, if the file leaves that open.
        agree: what the outputs decide, `Task.agreement`; by default the class of the largest logit.

    Returns:
        Figures by runtime: "onnxruntime" and "openvino", or "litert".

    Raises:
        UserError: the file has a fixed batch size that does not fit, or LiteRT is needed and not installed.
    """
    with torch.no_grad():
        expected = _arrays(module(images))
    runners = RUNNERS[Path(path).suffix]
    return {name: compare(run(Path(path), images, chunk), expected, agree) for name, run in runners.items()}


def compare(actual: Outputs, expected: Outputs, agree: Agree = same_class) -> Agreement:
    """Figures of one runtime's outputs against torch's."""
    errors = [
        np.abs(a - e).max() / max(np.abs(e).max(), 1e-30) for a, e in zip(actual, expected, strict=True)
    ]
    same = agree(torch.from_numpy(expected[0]), torch.from_numpy(actual[0]))
    return Agreement(float(max(errors)), same)


class InRuntime(nn.Module):
    """A file as a module, so that a task can score it.

    Args:
        path: the exported file.
        runtime: one of those in `RUNNERS` that read it.
    """

    def __init__(self, path: Path, runtime: str):
        super().__init__()
        self.path, self.run = path, RUNNERS[path.suffix][runtime]

    def forward(self, x: Tensor) -> Tensor:
        """The file's first output for images [N, ...].

        Raises:
            UserError: as `check_export`.
        """
        return torch.from_numpy(self.run(self.path, x, len(x))[0])


def run_onnxruntime(path: Path, images: Tensor, chunk: int = 100) -> Outputs:
    """Outputs of a file in ONNX Runtime on the CPU."""
    import onnxruntime

    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    source = session.get_inputs()[0]
    size = source.shape[0] if isinstance(source.shape[0], int) else chunk
    return _chunked(
        lambda batch: session.run(None, {source.name: batch}), images, size, source.shape[0] == size
    )


def run_openvino(path: Path, images: Tensor, chunk: int = 100) -> Outputs:
    """Outputs of a file in OpenVINO on the CPU; where it may it would use bf16, so the hint says f32."""
    import openvino

    compiled = openvino.Core().compile_model(str(path), "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    first = compiled.inputs[0].partial_shape[0]
    size = chunk if first.is_dynamic else first.get_length()
    return _chunked(lambda batch: list(compiled(batch).values()), images, size, not first.is_dynamic)


def run_litert(path: Path, images: Tensor, chunk: int = 100) -> Outputs:
    """Outputs of a file in LiteRT on the CPU; the file is for one image and is resized to `chunk`."""
    from amc.targets.litert_cpu import load, require_litert

    require_litert()
    session = load(str(path), chunk)

    def run(batch: np.ndarray) -> Outputs:
        session.bind(batch)()
        return session.results()

    return _chunked(run, images, chunk, False)


RUNNERS: dict[str, dict[str, Callable[[Path, Tensor, int], Outputs]]] = {
    ".onnx": {"onnxruntime": run_onnxruntime, "openvino": run_openvino},
    ".tflite": {"litert": run_litert},
}
"""The runtimes that read a file, by its suffix."""


def _chunked(run: Callable[[np.ndarray], Outputs], images: Tensor, size: int, fixed: bool) -> Outputs:
    if fixed and len(images) % size:
        raise UserError(f"The file takes {size} images at once, and {len(images)} is not a multiple of that.")
    batches = [[np.array(a) for a in run(batch.cpu().numpy())] for batch in images.split(size)]
    return [np.concatenate(parts) for parts in zip(*batches, strict=True)]


def _arrays(outputs: Tensor | tuple[Tensor, ...]) -> Outputs:
    return [t.cpu().numpy() for t in ((outputs,) if isinstance(outputs, Tensor) else outputs)]

"""`export_onnx`: a compressed network becomes a file that runtimes on phones read."""

import json
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from torch import Tensor, fx, nn

from amc.errors import UserError
from amc.export.fallback import export_with_torch
from amc.export.registry import Unsupported
from amc.export.writer import write_model
from amc.files import write_atomically
from amc.quantization.modules import QuantizedConv2d, QuantizedLinear
from amc.quantization.protocol import PointQuantizer

POLICY_KEY, QUANTIZATION_KEY, EXPORTER_KEY = "amc.policy", "amc.quantization", "amc.exporter"
"""Keys of the file's `metadata_props`."""


@dataclass(frozen=True)
class Exported:
    """What was written.

    Attributes:
        path: the file.
        exporter: "amc", or "torch" where an operator had to be left to `torch.onnx`; then an int8 file is
            quantized by ONNX Runtime's own tool, to 8 bits throughout, and may differ from the simulation.
        unsupported: the operator that caused it, or None.
        size: bytes of the file.
        quantization: how many layers and tensors have how many bits, as stored in the file's metadata.
    """

    path: Path
    exporter: Literal["amc", "torch"]
    unsupported: str | None
    size: int
    quantization: dict[str, dict[int, int]]

    @property
    def quantized(self) -> bool:
        """Whether anything in the network has fewer than 32 bits."""
        return any(self.quantization.values())


def export_onnx(
    module: fx.GraphModule,
    example: Tensor,
    path: Path | str,
    *,
    batch: int | None = None,
    policy_digest: str = "",
    calibration: Tensor | None = None,
) -> Exported:
    """Write a traced network as ONNX: plain floats, or QDQ where its quantizers are enabled.

    The file has one input `input` [N, ...] and outputs `output`, `output_1`, ... With a symbolic N ONNX
    Runtime is as fast as with a fixed one; OpenVINO loses 3 to 6 % on a ResNet-20 at batch 1 unless the
    model is reshaped after reading (`model.reshape([1, ...])`), which gives all of it back.

    Args:
        module: the network in eval mode, its quantizers calibrated. It is not changed.
        example: one or more inputs [N, ...].
        path: file to write, replaced in one step.
        batch: a fixed batch size, or None for a symbolic one.
        policy_digest: stored in the file's metadata.
        calibration: inputs [N, ...] for the fallback exporter's quantization; `example` if None.

    Raises:
        UserError: the network is in training mode, is not calibrated, does not take the example, or needs
            the fallback exporter, which is not installed or cannot write it either.
    """
    require_ready(module)
    quantization = summarize(module)
    metadata = {POLICY_KEY: policy_digest, QUANTIZATION_KEY: json.dumps(quantization)}
    unsupported = None
    try:
        model = write_model(module, example, batch, {**metadata, EXPORTER_KEY: "amc"})
    except Unsupported as reason:
        unsupported = str(reason)
        images = (example if calibration is None else calibration) if any(quantization.values()) else None
        model = export_with_torch(module, example, batch, images, unsupported)
        for key, value in {**metadata, EXPORTER_KEY: f"torch ({unsupported})"}.items():
            model.metadata_props.add(key=key, value=value)
    content = model.SerializeToString()
    write_atomically(Path(path), content)
    return Exported(Path(path), "torch" if unsupported else "amc", unsupported, len(content), quantization)


def summarize(module: nn.Module) -> dict[str, dict[int, int]]:
    """Bits to number of layers ("weights") and of tensors ("activations") that are quantized."""
    layers = [m.quantizer.bits for m in module.modules() if isinstance(m, QuantizedConv2d | QuantizedLinear)]
    points = [m.bits for m in module.modules() if isinstance(m, PointQuantizer) and m.enabled]
    return {
        "weights": dict(sorted(Counter(layers).items())),
        "activations": dict(sorted(Counter(points).items())),
    }


def require_ready(module: nn.Module) -> None:
    """Refuse a network in training mode or without scales; raises UserError."""
    noisy = (nn.BatchNorm1d, nn.BatchNorm2d, nn.Dropout, nn.Dropout2d)
    if any(m.training for m in module.modules() if isinstance(m, noisy)):
        raise UserError("The network is in training mode; call its eval() before exporting it.")
    if any(m.calibrating for m in module.modules() if isinstance(m, PointQuantizer) and m.enabled):
        raise UserError("A quantization point has no scale yet: run calibration images through the network.")

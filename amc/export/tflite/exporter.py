"""`export_tflite`: a compressed network becomes a file for LiteRT, the runtime of Android phones."""

import json
from pathlib import Path

from torch import Tensor, fx

from amc.errors import UserError
from amc.export.exporter import EXPORTER_KEY, POLICY_KEY, QUANTIZATION_KEY, Exported, require_ready, summarize
from amc.export.registry import Unsupported
from amc.export.tflite.writer import write_model
from amc.files import write_atomically


def export_tflite(
    module: fx.GraphModule, example: Tensor, path: Path | str, *, policy_digest: str = ""
) -> Exported:
    """Write a traced network as TFLite: in floats, in int8 where its quantizers are enabled, or mixed.

    The file reads one image in float32, [1, H, W, C] where the network reads [N, C, H, W], and gives floats;
    outputs of rank 4 are [1, H, W, C] as well. `resize_tensor_input` lets it run on several images.

    Args:
        module: the network in eval mode, its quantizers calibrated. It is not changed.
        example: one or more inputs [N, ...].
        path: file to write, replaced in one step.
        policy_digest: stored in the file's metadata.

    Raises:
        UserError: the network is in training mode, is not calibrated, does not take the example, or has an
            operation without exact translation; or ai-edge-litert is not installed.
    """
    require_ready(module)
    quantization = summarize(module)
    metadata = {POLICY_KEY: policy_digest, QUANTIZATION_KEY: json.dumps(quantization), EXPORTER_KEY: "amc"}
    try:
        content = write_model(module, example, metadata)
    except Unsupported as reason:
        raise UserError(f"TFLite export has no exact translation of {reason}.") from reason
    write_atomically(Path(path), content)
    return Exported(Path(path), "amc", None, len(content), quantization)

"""The slow way, for networks with an operator that our own writer lacks: `torch.onnx`, `quantize_static`."""

import importlib.util
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import onnx
import torch
from torch import Tensor, fx, nn
from torch.fx.experimental.optimization import fuse

from amc.errors import UserError
from amc.export.graph import INPUT
from amc.export.writer import OUTPUT
from amc.quantization.modules import ActivationQuantizer, QuantizedConv2d, QuantizedLinear

OPSET = 18
"""The oldest that `torch.onnx` writes without a conversion afterwards."""


def export_with_torch(
    module: fx.GraphModule, example: Tensor, batch: int | None, calibration: Tensor | None, operator: str
) -> onnx.ModelProto:
    """Export with `torch.onnx.export(dynamo=True)`.

    Args:
        module: the network in eval mode; its weights are written as simulated.
        example: one or more inputs [N, ...].
        batch: fixed batch size or None.
        calibration: inputs for `onnxruntime.quantization.quantize_static`, or None for a float file.
        operator: what our own writer lacks, for the messages.

    Raises:
        UserError: onnxscript is not installed, or torch cannot export the network either.
    """
    if importlib.util.find_spec("onnxscript") is None:
        raise UserError(
            f"Exporting {operator} needs torch's ONNX exporter; install it with "
            "`pip install 'amc-compress[fallback]'` (onnxscript)."
        )
    images = example[:1].repeat(batch or 2, *[1] * (example.dim() - 1))
    try:
        program = torch.onnx.export(
            float_network(module),
            (images,),
            dynamo=True,
            opset_version=OPSET,
            input_names=[INPUT],
            output_names=[OUTPUT],
            dynamic_shapes=None if batch else ({0: torch.export.Dim("N")},),
            verbose=False,
        )
    except Exception as error:
        reason = str(error).strip().split("\n")[0]
        raise UserError(
            f"Neither our exporter nor torch's can write this network ({operator}): {reason}"
        ) from error
    assert program is not None
    model = program.model_proto
    if calibration is None:
        return model
    return quantize_static(model, calibration, batch or 1, has_narrow_weights(module))


def float_network(module: fx.GraphModule) -> nn.Module:
    """The network without its quantization points, with the weights that its quantizers simulate.

    Batch norms are folded: `quantize_static` would leave them in floats between quantized convolutions.
    """
    graph = fx.Graph()
    graph.output(graph.graph_copy(module.graph, {}))
    members: dict[str, Any] = {}
    for node in list(graph.nodes):
        if node.op == "get_attr":
            members[str(node.target)] = _attribute(module, str(node.target))
        elif node.op == "call_module":
            called = module.get_submodule(str(node.target))
            if isinstance(called, ActivationQuantizer):
                node.replace_all_uses_with(node.all_input_nodes[0])
                graph.erase_node(node)
            else:
                members[str(node.target)] = _float_layer(called)
    return fuse(fx.GraphModule(members, graph).eval())


def _attribute(module: nn.Module, path: str) -> Any:
    owner, _, name = path.rpartition(".")
    return getattr(module.get_submodule(owner), name)


def _float_layer(layer: nn.Module) -> nn.Module:
    if not isinstance(layer, QuantizedConv2d | QuantizedLinear):
        return layer
    kind = nn.Conv2d if isinstance(layer, nn.Conv2d) else nn.Linear
    plain = kind.__new__(kind)
    plain.__dict__.update(layer.__dict__)
    weight = nn.Parameter(layer.quantizer(layer.weight).detach())
    plain._parameters = {**layer._parameters, "weight": weight}
    plain._modules = {}
    return plain


def has_narrow_weights(module: nn.Module) -> bool:
    """Whether all quantized weights have less than 8 bits, as a CPU that saturates needs it."""
    layers = [m for m in module.modules() if isinstance(m, QuantizedConv2d | QuantizedLinear)]
    return bool(layers) and all(layer.quantizer.bits < 8 for layer in layers)


def quantize_static(
    model: onnx.ModelProto, images: Tensor, batch: int, narrow_weights: bool
) -> onnx.ModelProto:
    """Quantize a float model to QDQ int8 (unsigned activations, signed weights per channel).

    Args:
        model: the float model.
        images: calibration inputs [N, ...].
        batch: images that run at once.
        narrow_weights: use 7 of the weights' 8 bits.
    """
    from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType
    from onnxruntime.quantization import quantize_static as quantize

    class Reader(CalibrationDataReader):
        def __init__(self) -> None:
            self.chunks: Iterator[Tensor] = iter(images.split(batch))

        def get_next(self) -> dict[str, Any] | None:
            chunk = next(self.chunks, None)
            return None if chunk is None or len(chunk) < batch else {INPUT: chunk.cpu().numpy()}

    with tempfile.TemporaryDirectory() as folder:
        quantized = Path(folder, "quantized.onnx")
        quantize(
            model,
            quantized,
            Reader(),
            quant_format=QuantFormat.QDQ,
            activation_type=QuantType.QUInt8,
            weight_type=QuantType.QInt8,
            per_channel=True,
            reduce_range=narrow_weights,
        )
        return onnx.load(quantized)

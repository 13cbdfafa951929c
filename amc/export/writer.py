"""The ONNX file of a traced network."""

from collections.abc import Mapping

import onnx
from onnx import TensorProto, helper
from torch import Tensor, fx

# Imported because they register their handlers.
from amc.export import activations, chains, channel_pad, layers, scattering, shapes  # noqa: F401
from amc.export.graph import IR_VERSION, OPSET, OnnxGraph
from amc.export.registry import handles
from amc.export.simplify import simplify
from amc.export.value import Value
from amc.export.walk import Plan, walk

OUTPUT = "output"
PRODUCER = "amc"


def write_model(
    module: fx.GraphModule, example: Tensor, batch: int | None, metadata: Mapping[str, str]
) -> onnx.ModelProto:
    """Translate a traced network in eval mode.

    Args:
        module: the network.
        example: one input [N, ...]; only its shape past the first axis matters.
        batch: fixed batch size of the file, or None for a symbolic one.
        metadata: stored in the file as it is.

    Raises:
        Unsupported: an operation has no translation.
        UserError: the network does not accept the example, or not in the wanted batch size.
    """
    g = OnnxGraph()
    outputs = walk(g, handles, module, Plan(*simplify(module)), example, batch)
    return _model(g, outputs, batch, metadata)


def output_names(count: int) -> list[str]:
    """What the outputs are called: `output`, `output_1`, ..."""
    return [OUTPUT if not index else f"{OUTPUT}_{index}" for index in range(count)]


def _model(
    g: OnnxGraph, outputs: list[Value], batch: int | None, metadata: Mapping[str, str]
) -> onnx.ModelProto:
    names = output_names(len(outputs))
    for value, name in zip(outputs, names, strict=True):
        g.nodes.append(helper.make_node("Identity", [value.name], [name]))
    graph = helper.make_graph(
        g.nodes,
        "network",
        [_described(value.name, value.shape, batch) for value in g.images],
        [_described(name, value.shape, batch) for name, value in zip(names, outputs, strict=True)],
        g.initializers,
    )
    opset = [helper.make_opsetid("", OPSET)]
    model = helper.make_model(graph, opset_imports=opset, ir_version=IR_VERSION, producer_name=PRODUCER)
    helper.set_model_props(model, dict(metadata))
    return model


def _described(name: str, shape: tuple[int, ...], batch: int | None) -> onnx.ValueInfoProto:
    return helper.make_tensor_value_info(
        name, TensorProto.FLOAT, ["N" if batch is None else batch, *shape[1:]]
    )

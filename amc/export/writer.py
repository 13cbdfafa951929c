"""The walk over the traced graph: each operation is handed to its handler."""

from collections.abc import Mapping
from dataclasses import replace
from operator import attrgetter
from typing import Any

import onnx
import torch
from onnx import TensorProto, helper
from torch import Tensor, fx, nn
from torch.fx.node import map_aggregate, map_arg

from amc.errors import UserError

# Imported because they register their handlers.
from amc.export import activations, channel_pad, layers, shapes  # noqa: F401
from amc.export.graph import IR_VERSION, OPSET, OnnxGraph, Value
from amc.export.registry import Call, handler_of, label_of
from amc.export.simplify import simplify

INPUT, OUTPUT = "input", "output"
PRODUCER = "amc"


class ShapeRecorder(fx.Interpreter):
    """Runs a graph once and keeps what each node gave; of tensors only the shape, as meta tensors."""

    def __init__(self, module: fx.GraphModule, graph: fx.Graph):
        super().__init__(module, graph=graph)
        self.results: dict[fx.Node, Any] = {}

    def run_node(self, n: fx.Node) -> Any:
        """Run one node and keep its result."""
        result = super().run_node(n)
        self.results[n] = map_aggregate(result, lambda r: r.to("meta") if isinstance(r, Tensor) else r)
        return result


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
    graph, norms = simplify(module)
    results = _record(module, graph, example, batch)
    g, values = OnnxGraph(), dict[fx.Node, Any]()
    for node in graph.nodes:
        g.scope = node.name
        if node.op == "placeholder":
            image = values[node] = Value(INPUT, tuple(results[node].shape))
        elif node.op == "output":
            outputs = [values[source] for source in node.all_input_nodes]
        else:
            values[node] = _value(g, module, node, values, results[node], norms.get(node))
    return _model(g, image, outputs, batch, metadata)


def _record(
    module: fx.GraphModule, graph: fx.Graph, example: Tensor, batch: int | None
) -> dict[fx.Node, Any]:
    # Two images, so that a batch axis cannot be mistaken for an axis of length 1.
    images = example[:1].repeat(batch or 2, *[1] * (example.dim() - 1))
    recorder = ShapeRecorder(module, graph)
    try:
        with torch.no_grad():
            recorder.run(images)
    except Exception as error:
        reason = str(error).strip().split("\n")[0]
        raise UserError(
            f"The network does not accept an input of shape {list(images.shape)}: {reason}"
        ) from error
    return recorder.results


def _value(
    g: OnnxGraph,
    module: fx.GraphModule,
    node: fx.Node,
    values: Mapping[fx.Node, Any],
    result: Any,
    norm: nn.Module | None,
) -> Any:
    """What a node stands for in ONNX: a value, several, or a plain number that the trace computed."""
    if node.op == "get_attr":
        return g.constant(attrgetter(str(node.target))(module).detach().cpu().numpy())
    tensors = [t for t in (result if isinstance(result, tuple | list) else [result]) if isinstance(t, Tensor)]
    if not tensors:
        return result
    call = Call(
        label_of(module, node),
        map_arg(node.args, values.__getitem__),
        map_arg(node.kwargs, values.__getitem__),
        module.get_submodule(str(node.target)) if node.op == "call_module" else None,
        tuple(tuple(t.shape) for t in tensors),
        norm,
    )
    written = handler_of(module, node)(g, call)
    if isinstance(written, Value):
        return replace(written, shape=call.shape)
    return tuple(replace(value, shape=shape) for value, shape in zip(written, call.shapes, strict=True))


def _model(
    g: OnnxGraph, image: Value, outputs: list[Value], batch: int | None, metadata: Mapping[str, str]
) -> onnx.ModelProto:
    """The finished model; the outputs are called `output`, `output_1`, ..."""
    names = [OUTPUT if not index else f"{OUTPUT}_{index}" for index in range(len(outputs))]
    for value, name in zip(outputs, names, strict=True):
        g.nodes.append(helper.make_node("Identity", [value.name], [name]))
    graph = helper.make_graph(
        g.nodes,
        "network",
        [_described(INPUT, image.shape, batch)],
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

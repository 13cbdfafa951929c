"""The walk over the traced graph: each operation is handed to its handler, whatever the file's format."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from operator import attrgetter
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor, fx, nn
from torch.fx.node import map_aggregate, map_arg

from amc.errors import UserError
from amc.export.registry import NO_ENDING, Call, Ending, Registry, label_of
from amc.export.value import Value


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


class FileGraph(Protocol):
    """What the walk asks of a graph under construction.

    Attributes:
        scope: the name of the operation being written.
    """

    scope: str

    def image(self, shape: tuple[int, ...]) -> Value:
        """The network's input, of this shape in the trace."""

    def constant(self, array: np.ndarray) -> Value:
        """A constant tensor."""


@dataclass(frozen=True)
class Plan:
    """The graph to write, and what its operations take in of what follows them.

    Attributes:
        graph: a simplified copy of the traced graph.
        norms: the batch norm behind a layer.
        endings: what else follows an operation.
    """

    graph: fx.Graph
    norms: Mapping[fx.Node, nn.Module]
    endings: Mapping[fx.Node, Ending] = field(default_factory=dict)


def walk(
    g: FileGraph, handlers: Registry, module: fx.GraphModule, plan: Plan, example: Tensor, batch: int | None
) -> list[Value]:
    """Write every operation of a network into `g` and return the network's outputs.

    Args:
        g: the graph under construction.
        handlers: those of its format.
        module: the network, in eval mode.
        plan: what to write.
        example: one input [N, ...]; only its shape past the first axis matters.
        batch: the batch size to trace shapes with, or None where the file leaves it open.

    Raises:
        Unsupported: an operation has no translation.
        UserError: the network does not accept the example, or not in the wanted batch size.
    """
    results, values = record(module, plan.graph, example, batch), dict[fx.Node, Any]()
    outputs: list[Value] = []
    for node in plan.graph.nodes:
        g.scope = node.name
        if node.op == "placeholder":
            values[node] = g.image(tuple(results[node].shape))
        elif node.op == "output":
            outputs = [values[source] for source in node.all_input_nodes]
        else:
            values[node] = _value(g, handlers, module, node, values, results[node], plan)
    return outputs


def record(module: fx.GraphModule, graph: fx.Graph, example: Tensor, batch: int | None) -> dict[fx.Node, Any]:
    """What every node gives, tensors as meta tensors; raises UserError if the example does not fit."""
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
    g: FileGraph,
    handlers: Registry,
    module: fx.GraphModule,
    node: fx.Node,
    values: Mapping[fx.Node, Any],
    result: Any,
    plan: Plan,
) -> Any:
    """What a node stands for in the file: a value, several, or a plain number that the trace computed."""
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
        plan.norms.get(node),
        plan.endings.get(node, NO_ENDING),
    )
    written = handlers.handler_of(module, node)(g, call)
    if isinstance(written, Value):
        return replace(written, shape=call.shape)
    return tuple(replace(value, shape=shape) for value, shape in zip(written, call.shapes, strict=True))

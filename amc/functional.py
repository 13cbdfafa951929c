"""Rewriting at tracing: layers that a forward pass calls as functions become modules.

Everything that compresses, quantizes or exports asks modules for their weights. Networks of libraries often
call `F.conv2d(x, self.weight, ...)` or `F.batch_norm` in classes of their own, and standardise a weight on
the way; what is computed from parameters alone is a constant in evaluation mode and is computed here, once.
"""

from collections.abc import Mapping
from operator import attrgetter
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.fx.node import map_arg
from torch.nn import functional as F

from amc.graph import propagate_shapes, shape_of

Given = Mapping[str, Any]

_CONV: dict[str, Any] = {"input": None, "weight": None, "bias": None, "stride": 1, "padding": 0}
_CONV |= {"dilation": 1, "groups": 1}
_LINEAR: dict[str, Any] = {"input": None, "weight": None, "bias": None}
_NORM: dict[str, Any] = {"input": None, "running_mean": None, "running_var": None, "weight": None}
_NORM |= {"bias": None, "training": False, "momentum": 0.1, "eps": 1e-5}
PARAMETERS = {F.conv2d: _CONV, F.linear: _LINEAR, F.batch_norm: _NORM}
"""Functions that become modules: the names of their arguments in order, and what is left out."""


def rewrite_functional_layers(graph: fx.GraphModule, example: Tensor) -> None:
    """Replace calls of `F.conv2d`, `F.linear` and `F.batch_norm` with known weights by modules, in place.

    A weight that several calls share becomes one module that is called as often.
    """
    modules: dict[tuple[Any, ...], str] = {}
    for node in list(graph.graph.nodes):
        if node.op == "call_function" and node.target in PARAMETERS:
            _rewrite(graph, node, modules)
    if not modules:
        return
    _erase_idle_parameters(graph)
    graph.recompile()
    propagate_shapes(graph, example)


def _rewrite(graph: fx.GraphModule, node: fx.Node, modules: dict[tuple[Any, ...], str]) -> None:
    given = _bound(node)
    sources = {name: value for name, value in given.items() if isinstance(value, fx.Node) and name != "input"}
    if not sources or not all(_is_constant(source) for source in sources.values()):
        return
    known = {**given, **{name: _value(graph, source) for name, source in sources.items()}}
    module = _module(node, known)
    if module is None:
        return
    key = (node.target, *sorted((name, str(value)) for name, value in given.items() if name != "input"))
    if key not in modules:
        modules[key] = _add(graph, module, next(iter(sources.values())))
    with graph.graph.inserting_before(node):
        replacement = graph.graph.call_module(modules[key], (given["input"],))
    replacement.meta = dict(node.meta)
    node.replace_all_uses_with(replacement)
    graph.graph.erase_node(node)


def _bound(node: fx.Node) -> dict[str, Any]:
    defaults = PARAMETERS[node.target]  # type: ignore[index]
    return {**defaults, **dict(zip(defaults, node.args, strict=False)), **node.kwargs}


def _is_constant(node: fx.Node) -> bool:
    """Whether a tensor is computed from parameters alone."""
    if node.op in ("placeholder", "call_module"):
        return False
    return node.op == "get_attr" or (
        bool(node.all_input_nodes) and all(_is_constant(source) for source in node.all_input_nodes)
    )


def _value(graph: fx.GraphModule, node: fx.Node) -> Any:
    if node.op == "get_attr":
        return attrgetter(str(node.target))(graph)
    args: Any = map_arg(node.args, lambda n: _value(graph, n))
    kwargs: Any = map_arg(node.kwargs, lambda n: _value(graph, n))
    with torch.no_grad():
        if node.op == "call_method":
            return getattr(args[0], str(node.target))(*args[1:], **kwargs)
        assert callable(node.target)
        return node.target(*args, **kwargs)


def _module(node: fx.Node, known: Given) -> nn.Module | None:
    """The module that computes what a call does; None where there is none."""
    if node.target is F.batch_norm:
        return _norm(known, len(shape_of(node)))
    weight, bias = known["weight"], known["bias"]
    if node.target is F.linear:
        return _with(nn.Linear(weight.shape[1], weight.shape[0], device="meta"), weight=weight, bias=bias)
    settings = {name: known[name] for name in ("stride", "padding", "dilation", "groups")}
    symbols: list[fx.Node] = []
    map_arg(settings, symbols.append)  # a padding may hold them in a tuple
    if weight.dim() != 4 or symbols:
        return None
    inputs = weight.shape[1] * known["groups"]
    conv = nn.Conv2d(inputs, len(weight), tuple(weight.shape[2:]), device="meta", **settings)
    return _with(conv, weight=weight, bias=bias)


def _norm(known: Given, rank: int) -> nn.Module | None:
    if known["running_mean"] is None or known["training"] is True:
        return None
    kind = nn.BatchNorm2d if rank == 4 else nn.BatchNorm1d
    norm = kind(len(known["running_mean"]), known["eps"], affine=False).eval()
    norm.running_mean, norm.running_var = known["running_mean"], known["running_var"]
    norm.affine = known["weight"] is not None
    return _with(norm, weight=known["weight"], bias=known["bias"])


def _with(module: nn.Module, **tensors: Tensor | None) -> nn.Module:
    for name, tensor in tensors.items():
        given = tensor if tensor is None or isinstance(tensor, nn.Parameter) else nn.Parameter(tensor)
        module._parameters[name] = given
    return module.eval()


def _add(graph: fx.GraphModule, module: nn.Module, source: fx.Node) -> str:
    """Put a module next to the first parameter that it took; returns its path."""
    while source.op != "get_attr":
        source = source.all_input_nodes[0]
    owner = str(source.target).rpartition(".")[0]
    kind = "norm" if isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d) else type(module).__name__.lower()
    taken = {name for name, _ in graph.named_modules()}
    base = f"{owner}.{kind}" if owner else kind
    name = (
        base if base not in taken else next(f"{base}_{n}" for n in range(1, 99) if f"{base}_{n}" not in taken)
    )
    graph.add_submodule(name, module)
    return name


def _erase_idle_parameters(graph: fx.GraphModule) -> None:
    """Take away parameters that only the replaced calls read, and the nodes that computed with them."""
    called = {str(node.target) for node in graph.graph.nodes if node.op == "call_module"}
    for node in reversed(list(graph.graph.nodes)):
        if node.users or not _is_constant(node):
            continue
        graph.graph.erase_node(node)
        target = str(node.target)
        if node.op == "get_attr" and not any(
            n.op == "get_attr" and n.target == target for n in graph.graph.nodes
        ):
            owner, _, name = target.rpartition(".")
            if not any(owner == module or owner.startswith(f"{module}.") for module in called):
                delattr(graph.get_submodule(owner), name)

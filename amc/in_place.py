"""In-place operations of a traced network: whoever reads a changed tensor later reads what changed it.

`torch.relu_(x)` or `x.add_(y)` as a statement leaves a node that nobody reads: while PyTorch runs, readers of
`x` see the change, and everything that follows the edges of the graph (groups, quantization, export) does
not. PyTorch counts the changes of every tensor, so one run on the example shows them all.
"""

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, fx

from amc.errors import UserError

Change = tuple[fx.Node, list[fx.Node]]
"""A node, and those whose values it changed."""


class _Watch(fx.Interpreter):
    """Notes which nodes change values that others hold."""

    def __init__(self, graph: fx.GraphModule):
        super().__init__(graph, garbage_collect_values=False)
        self.changes: list[Change] = []

    def run_node(self, n: fx.Node) -> Any:
        before = {node: _versions(value) for node, value in self.env.items()}
        result = super().run_node(n)
        changed = [node for node, versions in before.items() if _versions(self.env[node]) != versions]
        if changed:
            self.changes.append((n, changed))
        return result


def follow_changes(graph: fx.GraphModule, example: Tensor) -> None:
    """Let later readers of a tensor that is changed in place read the node that changed it.

    Args:
        graph: a traced network; its edges change.
        example: an input that it accepts; not changed.

    Raises:
        UserError: the input or a parameter is changed, or a tensor is read afterwards in another form than
            the one that was changed: as a view of it, say.
    """
    watch = _Watch(graph)
    with torch.no_grad():
        watch.run(example.clone())
    place = {node: number for number, node in enumerate(graph.graph.nodes)}
    for changer, changed in watch.changes:
        for node in changed:
            late = [user for user in node.users if place[user] > place[changer]]
            if node.op in ("placeholder", "get_attr"):
                # Images and parameters are used again: every pass would find them changed.
                raise UserError(_refusal(changer, node, "which outlasts the forward pass"))
            if late and not _same(watch.env[node], watch.env[changer]):
                why = f"which {late[0].name} reads afterwards in another form"
                raise UserError(_refusal(changer, node, why))
            for user in late:
                user.replace_input_with(node, changer)
    if watch.changes:
        graph.graph.lint()
        graph.recompile()


def _tensors(value: Any) -> Iterator[Tensor]:
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, Sequence) and not isinstance(value, str):
        for each in value:
            yield from _tensors(each)


def _versions(value: Any) -> list[int]:
    return [tensor._version for tensor in _tensors(value)]


def _same(value: Any, other: Any) -> bool:
    """Whether two values are the same elements in the same form."""
    if not isinstance(value, Tensor) or not isinstance(other, Tensor):
        return False
    form, other_form = ((each.data_ptr(), each.shape, each.stride(), each.dtype) for each in (value, other))
    return form == other_form


def _refusal(changer: fx.Node, changed: fx.Node, why: str) -> str:
    inside = [path for path, _ in changer.meta.get("nn_module_stack", {}).values() if path]
    where = f" in {inside[-1]}" if inside else ""
    return (
        f"{changer.name}{where} changes {changed.name} in place, {why}; the forward pass must do without "
        "that in-place operation."
    )

"""Tracing where a forward pass asks for sizes: its control flow is that of the example input.

`if x.shape[-1] < 7` or `math.ceil(width / stride)` has no answer while only symbols flow. What depends on
shapes alone is answered from a run on the example, so that the traced network is the one for inputs of that
size. It runs without values, once with one image and once with two, so that neither what the pixels are nor
how many images come together can be an answer.
"""

import operator
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch._subclasses.fake_tensor import (
    DataDependentOutputException,
    DynamicOutputShapeException,
    FakeTensorMode,
)
from torch.fx import _symbolic_trace as symbolic
from torch.fx.node import map_arg

VALUES = "the values of a tensor cannot be used as inputs to control flow"
VALUES_NEEDED = (DataDependentOutputException, DynamicOutputShapeException)


@contextmanager
def _modules_compute() -> Iterator[None]:
    """Calls of modules run them again; while a network is traced, they only leave a node."""
    patched = nn.Module.__call__, nn.Module.__getattr__
    nn.Module.__call__ = symbolic._orig_module_call  # type: ignore[method-assign]
    nn.Module.__getattr__ = symbolic._orig_module_getattr  # type: ignore[method-assign]
    try:
        yield
    finally:
        nn.Module.__call__, nn.Module.__getattr__ = patched  # type: ignore[method-assign]


class _SizedProxy(fx.Proxy):
    """A symbol that becomes a number where Python needs one."""

    tracer: "SizedTracer"

    def __index__(self) -> int:
        return operator.index(self.tracer.known(self.node))

    def __int__(self) -> int:
        return int(self.tracer.known(self.node))

    def __float__(self) -> float:
        return float(self.tracer.known(self.node))

    def __len__(self) -> int:
        return int(self.tracer.known(self.node, length=True))


class SizedTracer(fx.Tracer):
    """A tracer that knows the shapes of one example.

    Args:
        example: an input [N, ...], or None where nothing is known: out of a file comes a tracer without one.
    """

    def __init__(self, example: Tensor | None = None):
        super().__init__()
        self.example = example
        self._fake = FakeTensorMode(allow_non_fake_inputs=True)
        self._results: dict[fx.Node, tuple[Any, Any]] = {}

    def proxy(self, node: fx.Node) -> fx.Proxy:
        """A symbol for the result of a node."""
        return _SizedProxy(node, self)

    def to_bool(self, obj: fx.Proxy) -> bool:
        """The branch that the example takes."""
        return bool(self.known(obj.node))

    def known(self, node: fx.Node, length: bool = False) -> Any:
        """What a node gives for the example.

        Args:
            node: of the graph in the making.
            length: whether only how long it is, which may be asked of tensors, too.

        Raises:
            TraceError: it is a tensor, depends on values or on the number of images, or there is no example.
        """
        if self.example is None:
            raise fx.proxy.TraceError(
                "symbolically traced variables cannot be used as inputs to control flow"
            )
        try:
            with torch.no_grad(), _modules_compute(), self._fake:
                for earlier in self._needed(node):
                    self._results[earlier] = self._run(earlier, 0), self._run(earlier, 1)
        except VALUES_NEEDED as error:
            raise fx.proxy.TraceError(VALUES) from error
        one, two = self._results[node]
        if length:
            one, two = len(one), len(two)
        if isinstance(one, Tensor):
            raise fx.proxy.TraceError(VALUES)
        if one != two:
            raise fx.proxy.TraceError("the number of images cannot be used as inputs to control flow")
        return one

    def _needed(self, node: fx.Node) -> list[fx.Node]:
        """The nodes that have to run for this one, in execution order."""
        needed, waiting = set[fx.Node](), [node]
        while waiting:
            current = waiting.pop()
            if current not in needed and current not in self._results:
                needed.add(current)
                waiting.extend(current.all_input_nodes)
        return [node for node in node.graph.nodes if node in needed]

    def _run(self, node: fx.Node, images: int) -> Any:
        args: Any = map_arg(node.args, lambda n: self._results[n][images])
        kwargs: Any = map_arg(node.kwargs, lambda n: self._results[n][images])
        if node.op == "placeholder":
            assert self.example is not None
            return self.example.new_empty((images + 1, *self.example.shape[1:]))
        if node.op == "get_attr":
            return operator.attrgetter(str(node.target))(self.root)
        if node.op == "call_method":
            return getattr(args[0], str(node.target))(*args[1:], **kwargs)
        called: Any = node.target
        if node.op == "call_module":
            assert isinstance(self.root, nn.Module)
            called = self.root.get_submodule(str(node.target))
        return called(*args, **kwargs)

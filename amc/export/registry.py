"""Which function writes which operation: from a module type, function or method name, for each format."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from torch import fx, nn

from amc.export.grid import Grid
from amc.export.value import Value
from amc.graph import target_of


class Unsupported(Exception):
    """The exporter has no exact translation of an operation; the message is the operation's name."""


@dataclass(frozen=True)
class Ending:
    """What follows an operation and becomes part of it.

    Attributes:
        clip: the upper end of a function that clips the result to [0, clip], or None.
        grid: the grid that everything which reads the result quantizes it to, or None.
    """

    clip: float | None = None
    grid: Grid | None = None


NO_ENDING = Ending()


@dataclass(frozen=True)
class Call:
    """One operation of the traced network, its tensors replaced by values of the file.

    Attributes:
        label: what the operation is, for messages.
        args, kwargs: as in the trace; tensors are `Value`s.
        module: the module called, or None for a function or method.
        shapes: shapes of the results, batch first; most operations have one.
        batch_norm: the batch norm that follows and is folded into this layer.
        ending: what else follows and is taken in, for formats whose operators do that.
    """

    label: str
    args: tuple[Any, ...]
    kwargs: Mapping[str, Any] = field(default_factory=dict)
    module: nn.Module | None = None
    shapes: tuple[tuple[int, ...], ...] = ()
    batch_norm: nn.Module | None = None
    ending: Ending = NO_ENDING

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of the only result."""
        return self.shapes[0]

    @property
    def x(self) -> Value:
        """The first tensor argument."""
        first = self.args[0] if self.args else next(iter(self.kwargs.values()))
        if not isinstance(first, Value):
            raise Unsupported(f"{self.label} of a {type(first).__name__}")
        return first

    def get(self, name: str, position: int, default: Any = None) -> Any:
        """A setting, by name from the module or the keywords, by position from the arguments."""
        if self.module is not None:
            return getattr(self.module, name, default)
        return self.args[position] if position < len(self.args) else self.kwargs.get(name, default)

    def pair(self, name: str, position: int, default: Any = None) -> tuple[int, int]:
        """A setting that may be one number for both spatial axes."""
        value = self.get(name, position, default)
        if value is None:
            value = default
        return (value, value) if isinstance(value, int) else (int(value[0]), int(value[1]))

    def require(self, condition: bool, what: str) -> None:
        """Refuse a variant that has no exact translation here.

        Raises:
            Unsupported: the condition does not hold.
        """
        if not condition:
            raise Unsupported(f"{self.label} {what}")


Handler = Callable[[Any, Call], Value | tuple[Value, ...]]
"""Writes one operation into the graph under construction and returns its result."""


class Registry:
    """The handlers of one file format; calling it gives the decorator that registers one."""

    def __init__(self) -> None:
        self._handlers: dict[Any, Handler] = {}

    def __call__(self, *targets: Any) -> Callable[[Handler], Handler]:
        """Register a function for module types, functions, or method names of a tensor."""

        def register(handler: Handler) -> Handler:
            self._handlers.update(dict.fromkeys(targets, handler))
            return handler

        return register

    def of_module(self, part: nn.Module) -> Handler:
        """The function that writes a module which is part of another one; raises Unsupported."""
        handler = self._handlers.get(type(part))
        if handler is None:
            raise Unsupported(type(part).__name__)
        return handler

    def handler_of(self, module: fx.GraphModule, node: fx.Node) -> Handler:
        """The function that writes a node.

        Raises:
            Unsupported: there is none. Subclasses do not count: they may compute something else.
        """
        handler = self._handlers.get(target_of(module, node))
        if handler is None:
            raise Unsupported(label_of(module, node))
        return handler


handles = Registry()
"""The handlers of the ONNX writer."""


def label_of(module: fx.GraphModule, node: fx.Node) -> str:
    """What a person calls the operation, such as `GELU`, `roll` or `Tensor.roll`."""
    target = target_of(module, node)
    if isinstance(target, str):
        return f"Tensor.{target}"
    return str(getattr(target, "__name__", target))

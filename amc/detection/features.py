"""The feature map on which a detector's last layer works."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from torch import Tensor, fx, nn

from amc.errors import UserError


def last_convolution(model: nn.Module) -> nn.Module:
    """The convolution that writes a detector's raw maps, or what replaces it in a compressed network.

    Raises:
        UserError: the model has no convolution.
    """
    layers = [module for module in _parts(model) if any(isinstance(m, nn.Conv2d) for m in module.modules())]
    if not layers:
        raise UserError(f"A {type(model).__name__} has no convolution, so it has no feature map.")
    return layers[-1]


def _parts(model: nn.Module) -> list[nn.Module]:
    """The parts of a model: in the order of its calls where that is known, else single convolutions."""
    if not isinstance(model, fx.GraphModule):
        return [module for module in model.modules() if isinstance(module, nn.Conv2d)]
    called = [str(node.target) for node in model.graph.nodes if node.op == "call_module"]
    return [model.get_submodule(name) for name in called]


def maps_and_features(model: nn.Module, x: Tensor) -> tuple[Tensor, Tensor]:
    """Run a detector once; its raw maps, and the features [B, C, h, w] that enter its last convolution."""
    seen: list[Tensor] = []
    handle = last_convolution(model).register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    try:
        maps = model(x)
    finally:
        handle.remove()
    return maps, seen[-1]


@contextmanager
def changed_features(model: nn.Module, change: Callable[[Tensor], Tensor]) -> Iterator[None]:
    """Let a detector's last convolution see changed features."""
    handle = last_convolution(model).register_forward_pre_hook(lambda _, inputs: (change(inputs[0]),))
    try:
        yield
    finally:
        handle.remove()

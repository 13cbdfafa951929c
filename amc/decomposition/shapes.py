"""What operators put in the place of layers, with weights of noise: enough to measure how long it takes."""

import torch
from torch import fx, nn

from amc.compress import Phase
from amc.decomposition.operator import AMOUNT, Operator
from amc.decomposition.registry import get_operator
from amc.network import Network
from amc.policy import CompressionPolicy
from amc.space import Knob

SEED = 0


class OperatorShapes:
    """Replaces layers as `OperatorReplacement` does, without fitting anything.

    A layer whose operator has no parts stays what it is, because its own convolution is what runs.
    """

    phase = Phase.OPERATOR
    knobs: tuple[Knob, ...] = ()
    replaces = True

    def apply(self, model: fx.GraphModule, network: Network, policy: CompressionPolicy) -> None:
        """Put a module of the right shapes in the place of every layer that an operator replaces."""
        for layer in network.layers:
            decision = policy[layer.name]
            if decision.replaced and (operator := get_operator(decision.operator)).quantizes:
                conv = model.get_submodule(layer.name)
                assert isinstance(conv, nn.Conv2d)
                model.set_submodule(layer.name, shaped(operator, conv, decision.values[AMOUNT]))


def shaped(operator: Operator, conv: nn.Conv2d, amount: int) -> nn.Module:
    """The module for a convolution, as `Operator.fit` gives it but for the values of its weights.

    An operator that needs values to find its shapes fits them.
    """
    try:
        # On the meta device tensors have shapes only, and no decomposition takes any time.
        with torch.device("meta"):
            empty = operator.fit(_without_values(conv), amount)
    except (NotImplementedError, RuntimeError, TypeError):
        return operator.fit(conv, amount)
    if any(True for _ in empty.buffers()):
        return operator.fit(conv, amount)  # noise is a weight, and need not be an index or a mask
    module = empty.to_empty(device="cpu")
    noise = torch.Generator().manual_seed(SEED)
    for parameter in module.parameters():
        nn.init.normal_(parameter, std=parameter[0].numel() ** -0.5, generator=noise)
    return module


def _without_values(conv: nn.Conv2d) -> nn.Conv2d:
    assert not isinstance(conv.padding, str)
    return nn.Conv2d(
        conv.in_channels,
        conv.out_channels,
        conv.kernel_size,  # type: ignore[arg-type]
        conv.stride,  # type: ignore[arg-type]
        conv.padding,  # type: ignore[arg-type]
        conv.dilation,  # type: ignore[arg-type]
        conv.groups,
        conv.bias is not None,
    )

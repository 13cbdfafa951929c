"""What every operator declares, and the compressor that puts operators in the place of layers.

An operator replaces a convolution by a module that computes nearly the same. How far it goes is one whole
number, its *amount* (a group size, a rank, a count of centroids), written down relative to the original
layer; channels are removed before, so the convolution that is replaced may be narrower by then.
"""

import hashlib
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Protocol

from torch import Tensor, fx, nn

from amc.compress import Phase
from amc.decomposition.responses import Responses
from amc.network import Layer, Network
from amc.policy import CompressionPolicy
from amc.pruning.reconstruction import InputMoments
from amc.slicing import clone_module, kept_positions
from amc.space import Knob

AMOUNT = "amount"
"""Key of a decision's values that holds the operator's number."""

FLOAT_BYTES = 4


@dataclass(frozen=True)
class OperatorCost:
    """What the module costs that replaces a layer.

    Attributes:
        macs: multiply-accumulates for one input.
        params: elements of its parameters, the bias included.
        size: bytes in a file, packed, the bias in 32 bits.
    """

    macs: int
    params: int
    size: int


class Operator(Protocol):
    """One way to replace a convolution.

    Attributes:
        name: what a `LayerDecision` calls it.
        lowers: costs that it can lower; under any other budget it has nothing to offer.
    """

    name: str
    lowers: frozenset[str]

    def obstacle(self, module: nn.Module) -> str | None:
        """Why it cannot replace this module, or None."""

    def amounts(self, conv: nn.Conv2d) -> tuple[int, ...]:
        """Legal amounts for a layer in order of cost, all cheaper than the layer itself."""

    def cost(self, layer: Layer, amount: int, inputs: int, outputs: int) -> OperatorCost:
        """Cost for a layer that has `inputs` and `outputs` channels left."""

    def fit(self, conv: nn.Conv2d, amount: int, responses: Responses | None = None) -> nn.Module:
        """The module for a convolution, from its weights and, where they are known, its responses."""


def convolution_obstacle(module: nn.Module) -> str | None:
    """What keeps every operator from a module: there is no kernel to simplify."""
    if not isinstance(module, nn.Conv2d):
        return f"a {type(module).__name__} has no kernel"
    if module.groups > 1:
        return "it is a convolution in groups already"
    if module.kernel_size == (1, 1):
        return "its kernel is a single element"
    if module.padding_mode != "zeros" or isinstance(module.padding, str):
        return "only zero padding by numbers is supported"
    return None


def legal_amounts(operator: Operator, module: nn.Module) -> tuple[int, ...]:
    """Legal amounts of an operator for any module; none where it does not apply."""
    if operator.obstacle(module) is not None:
        return ()
    assert isinstance(module, nn.Conv2d)
    return operator.amounts(module)


class OperatorReplacement:
    """Replaces layers as the policy's operators and amounts say.

    Fits are kept by layer, operator, amount, kept channels and weight; what a search decides again is copied.

    Args:
        operators: those that policies may name.
        kept: the channels that a policy keeps (`ChannelPruning.kept`).
        moments: input moments of the original (`reconstruction.input_moments`), for fits on responses;
            layers without any are fitted on weights.
    """

    phase = Phase.OPERATOR
    knobs: tuple[Knob, ...] = ()

    def __init__(
        self,
        operators: Iterable[Operator],
        kept: Callable[[Network, CompressionPolicy], Mapping[str, Tensor]],
        moments: Mapping[str, InputMoments] | None = None,
    ):
        self.operators = {operator.name: operator for operator in operators}
        self.kept, self.moments = kept, dict(moments or {})
        self._fits: dict[tuple[str, str, int, bytes, bytes, bytes], nn.Module] = {}

    def apply(self, model: fx.GraphModule, network: Network, policy: CompressionPolicy) -> None:
        """Put the fitted module in the place of every layer whose decision names an operator."""
        positions = kept_positions(network.groups, self.kept(network, policy), network.sizes)
        for layer in network.layers:
            decision = policy[layer.name]
            if decision.operator in self.operators:
                amount = decision.values[AMOUNT]
                fitted = self._fitted(model, network, layer.name, decision.operator, amount, positions)
                model.set_submodule(layer.name, clone_module(fitted))

    def _fitted(
        self,
        model: fx.GraphModule,
        network: Network,
        name: str,
        operator: str,
        amount: int,
        positions: Mapping[tuple[str, str], Tensor],
    ) -> nn.Module:
        inputs, outputs = positions.get((name, "in")), positions.get((name, "out"))
        conv = model.get_submodule(name)
        assert isinstance(conv, nn.Conv2d)
        # The weight too: a reconstruction that sees compressed inputs changes it with the layers in front.
        key = (name, operator, amount, _bytes(inputs), _bytes(outputs), _digest(conv.weight))
        if key not in self._fits:
            responses = None
            if name in self.moments:
                original = network.module.get_submodule(name).get_parameter("weight")
                responses = Responses.of(original, self.moments[name], inputs, outputs)
            self._fits[key] = self.operators[operator].fit(conv, amount, responses)
        return self._fits[key]


def _bytes(positions: Tensor | None) -> bytes:
    return b"" if positions is None else positions.numpy().tobytes()


def _digest(weight: Tensor) -> bytes:
    return hashlib.sha256(weight.detach().contiguous().numpy().tobytes()).digest()

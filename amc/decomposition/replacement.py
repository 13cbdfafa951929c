"""The compressor that puts operators in the place of layers."""

import hashlib
from collections.abc import Callable, Mapping
from typing import Any, cast

from torch import Tensor, fx, nn

from amc.compress import Phase, in_course
from amc.decomposition.kept_fits import KeptFits
from amc.decomposition.operator import AMOUNT
from amc.decomposition.registry import get_operator
from amc.decomposition.responses import Replace, Responses
from amc.network import Network
from amc.policy import CompressionPolicy
from amc.pruning.reconstruction import InputMoments
from amc.slicing import clone_module, kept_positions
from amc.space import Knob

KEPT_BYTES = 256 << 20
"""Of fits that nothing but the layer itself decides, in every process that evaluates. Where all channels
stay, a search meets the same ones again and again: those of all filter groups and codebooks are 211 MiB for
VGG-16-BN and 12 MiB for ResNet-56. Where channels go, nearly every policy has fits of its own, up to 60 MB
for VGG-16-BN."""


class OperatorReplacement:
    """Replaces layers as the policy's operators and amounts say.

    The asymmetric reconstruction does so in its course (`ways`), where every fit is a new one. Otherwise fits
    are kept by layer, operator, amount, kept channels and weight, up to `KEPT_BYTES`; what a search decides
    again is copied. In both cases what the fits of a layer have in common is kept.

    Args:
        kept: the channels that a policy keeps (`ChannelPruning.kept`).
        moments: input moments of the original (`reconstruction.input_moments`), for fits on responses;
            layers without any are fitted on weights.
    """

    phase = Phase.OPERATOR
    knobs: tuple[Knob, ...] = ()
    replaces = True

    def __init__(
        self,
        kept: Callable[[Network, CompressionPolicy], Mapping[str, Tensor]],
        moments: Mapping[str, InputMoments] | None = None,
    ):
        self.kept, self.moments = kept, dict(moments or {})
        self._starts: dict[tuple[str, str, int], Any] = {}
        self._fits = KeptFits(KEPT_BYTES)

    def apply(self, model: fx.GraphModule, network: Network, policy: CompressionPolicy) -> None:
        """Put the fitted module in the place of every layer whose decision names an operator."""
        if in_course(self, model):
            return
        positions = kept_positions(network.groups, self.kept(network, policy), network.sizes)
        for layer in network.layers:
            decision = policy[layer.name]
            if decision.replaced:
                amount = decision.values[AMOUNT]
                fitted = self._fitted(model, network, layer.name, decision.operator, amount, positions)
                model.set_submodule(layer.name, clone_module(fitted))

    def begin(self, model: fx.GraphModule, network: Network, policy: CompressionPolicy) -> None:
        """Every layer has its turn."""

    def ways(self, network: Network, policy: CompressionPolicy) -> dict[str, Replace]:
        """What makes the replacements in the course of a reconstruction; nothing of it is kept."""

        def way(name: str, operator: str, amount: int) -> Replace:
            start = self._start(network, name, operator, amount)

            def replace(layer: nn.Module, responses: Responses | None) -> nn.Module:
                fitting, conv = get_operator(operator), cast(nn.Conv2d, layer)
                wanted = responses if fitting.uses_responses else None
                known = None if wanted is None else wanted.of_inputs(conv.weight.shape[1])
                return fitting.fit(conv, amount, known, start)

            return replace

        chosen = ((layer.name, policy[layer.name]) for layer in network.layers)
        return {
            name: way(name, decision.operator, decision.values[AMOUNT])
            for name, decision in chosen
            if decision.replaced
        }

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
        assert isinstance(conv, nn.Conv2d | nn.Linear)
        # The weight too: a reconstruction that sees compressed inputs changes it with the layers in front.
        key = (name, operator, amount, _bytes(inputs), _bytes(outputs), _digest(conv.weight))

        def fit() -> nn.Module:
            fitting, responses = get_operator(operator), None
            if fitting.uses_responses and name in self.moments:
                original = network.module.get_submodule(name).get_parameter("weight")
                responses = Responses.of(original, self.moments[name], inputs, outputs, conv.weight)
            start = self._start(network, name, operator, amount)
            return fitting.fit(cast(nn.Conv2d, conv), amount, responses, start)

        return self._fits.of(key, fit)

    def _start(self, network: Network, name: str, operator: str, amount: int) -> Any:
        """What the fits of a layer have in common, whichever of its channels are left."""
        if (name, operator, amount) not in self._starts:
            whole = network.module.get_submodule(name)
            fitting = get_operator(operator)
            self._starts[name, operator, amount] = fitting.prepare(cast(nn.Conv2d, whole), amount)
        return self._starts[name, operator, amount]


def _bytes(positions: Tensor | None) -> bytes:
    return b"" if positions is None else positions.numpy().tobytes()


def _digest(weight: Tensor) -> bytes:
    return hashlib.sha256(weight.detach().contiguous().numpy().tobytes()).digest()

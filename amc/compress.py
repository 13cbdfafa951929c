"""`apply`: from a network and a policy to a really smaller module; one function for search and export."""

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from enum import IntEnum
from functools import partial
from typing import Protocol

from torch import Tensor, fx, nn

from amc.decomposition.chain import Chain
from amc.decomposition.responses import REPLACED, Replace, Responses
from amc.errors import UserError
from amc.knobs import BitsKnob, WidthKnob
from amc.network import Network
from amc.policy import CompressionPolicy
from amc.policy_check import check_policy
from amc.pruning.importance import kept_channels
from amc.pruning.reconstruction import Reconstruction
from amc.quantization.modules import ActivationQuantizer, with_quantized_weight
from amc.quantization.points import point_bits
from amc.quantization.registry import UNIFORM, activation_quantizer, weight_quantizer
from amc.quantization.uniform import NOT_QUANTIZED
from amc.slicing import apply_slices, kept_positions
from amc.space import Knob

RENORMALIZED = "amc_renormalized"
"""Key of a module's `meta`: whether the reconstruction has given the batch norms their statistics."""
IN_COURSE = "amc_in_course"
"""Key of a module's `meta`: the compressors whose work the reconstruction has done in its course."""


class Phase(IntEnum):
    """The order in which compressors run, at search, fine-tuning and export alike."""

    STRUCTURE = 0
    OPERATOR = 1
    WEIGHTS = 2
    ACTIVATIONS = 3


COPY_AND_SLICE = "copy and slice"
PARTS = {
    Phase.STRUCTURE: COPY_AND_SLICE,
    Phase.OPERATOR: "operator fits",
    Phase.WEIGHTS: "quantization",
    Phase.ACTIVATIONS: "quantization",
}
"""What those who watch an evaluation call the work of each phase."""
Watch = Callable[[str], AbstractContextManager[None]]
"""Hears the name of a part of an evaluation when it begins; its context lasts as long as the part does."""


def in_course(compressor: "Layerwise", model: fx.GraphModule) -> bool:
    """Whether a reconstruction has done a compressor's work in its course."""
    return any(done is compressor for done in model.meta.get(IN_COURSE, ()))


def unwatched(part: str) -> AbstractContextManager[None]:
    """Nobody wants to know."""
    return nullcontext()


class Layerwise(Protocol):
    """A compressor that can also treat one layer after the other, in the course of a reconstruction.

    It then has nothing left to do when its own phase comes: see `in_course`.
    """

    def begin(self, model: fx.GraphModule, network: Network, policy: CompressionPolicy) -> None:
        """Do what has to be done before the first layer's turn, in place."""

    def ways(self, network: Network, policy: CompressionPolicy) -> Mapping[str, Replace]:
        """Layer to what makes its replacement, for those that the policy has something for."""


class Compressor(Protocol):
    """One way to compress layers.

    Attributes:
        phase: when it runs.
        knobs: the knobs that it adds to the action.
    """

    phase: Phase
    knobs: tuple[Knob, ...]

    def apply(self, model: fx.GraphModule, network: Network, policy: CompressionPolicy) -> None:
        """Carry out the policy's decisions in `model`, a copy of the network, in place.

        The network lacks the residual blocks that the policy leaves out.
        """


def apply(
    policy: CompressionPolicy,
    network: Network,
    compressors: Sequence[Compressor],
    watch: Watch = unwatched,
) -> fx.GraphModule:
    """Compress a copy of the network as the policy says.

    Batch-norm statistics and activation ranges are not fitted yet: see `amc.recovery.calibrate`.

    Args:
        policy: the decisions.
        network: the original; not changed.
        compressors: what carries them out, in the order of their phases.
        watch: hears which phase is at work.

    Raises:
        UserError: the policy does not belong to this network.
    """
    check_policy(policy, network)
    replaced = [decision.point for decision in policy.decisions if decision.replaced]
    if replaced and not any(getattr(compressor, "replaces", False) for compressor in compressors):
        raise UserError(f"The policy replaces {replaced[0]}, and nothing here carries that out.")
    if policy.values("code") and not any(knob.name == "code" for one in compressors for knob in one.knobs):
        raise UserError("The policy chooses the length of a code, and nothing here carries that out.")
    with watch(COPY_AND_SLICE):
        network = network.without(policy.removed)
        model = network.copy()
    for compressor in sorted(compressors, key=lambda compressor: compressor.phase):
        with watch(PARTS[compressor.phase]):
            compressor.apply(model, network, policy)
    return model


class ChannelPruning:
    """Removes the least important channels of every group.

    Args:
        ranking: group name to its channels, most important first (`importance.rank_channels`).
        knob: legal widths.
        reconstruction: refits the layers that lose inputs; None leaves their weights as they are.
        layerwise: what replaces or quantizes layers, for reconstructions that have it done in their course,
            in its order.
    """

    phase = Phase.STRUCTURE

    def __init__(
        self,
        ranking: Mapping[str, Tensor],
        knob: WidthKnob | None = None,
        reconstruction: Reconstruction | None = None,
        layerwise: Sequence[Layerwise] = (),
    ):
        self.ranking = dict(ranking)
        self.reconstruction, self.layerwise = reconstruction, tuple(layerwise)
        self.knob = knob or WidthKnob()
        self.knobs: tuple[Knob, ...] = (self.knob,)

    def refitting(self, reconstruction: Reconstruction | None) -> "ChannelPruning":
        """The same channels, refitted in another way."""
        return ChannelPruning(self.ranking, self.knob, reconstruction, self.layerwise)

    def along_with(self, *layerwise: Layerwise) -> "ChannelPruning":
        """The same channels, with these compressors for the reconstruction."""
        return ChannelPruning(self.ranking, self.knob, self.reconstruction, layerwise)

    def kept(self, network: Network, policy: CompressionPolicy) -> dict[str, Tensor]:
        """Group name to the sorted indices of the channels that the policy keeps."""
        widths = {name: policy[name].values.get("width", len(order)) for name, order in self.ranking.items()}
        return kept_channels(self.ranking, widths)

    def apply(self, model: fx.GraphModule, network: Network, policy: CompressionPolicy) -> None:
        """Slice every module that a pruned group reaches, and refit what lost inputs."""
        positions = kept_positions(network.groups, self.kept(network, policy), network.sizes)
        apply_slices(model, positions)
        if self.reconstruction is not None:
            for compressor in self.layerwise:
                compressor.begin(model, network, policy)
            final, ways = bool(self.layerwise) or policy.only_prunes, self._ways(network, policy)
            renormalized = self.reconstruction(model, network, positions, ways, final)
            if REPLACED in model.meta:
                model.meta[IN_COURSE] = self.layerwise
            # Where something else comes later, statistics are not yet those of the finished network.
            model.meta[RENORMALIZED] = renormalized and final

    def _ways(self, network: Network, policy: CompressionPolicy) -> dict[str, Replace]:
        """Layer to all that is to become of it, one after the other."""
        found: dict[str, Replace] = {}
        for compressor in self.layerwise:
            for name, way in compressor.ways(network, policy).items():
                found[name] = partial(_both, found[name], way) if name in found else way
        return found


def _both(first: Replace, second: Replace, layer: nn.Module, responses: Responses | None) -> nn.Module:
    return second(first(layer, responses), None)


class WeightQuantization:
    """Quantized weights.

    Args:
        knob: legal bits.
        quantizer: name of a weight quantizer (`amc.quantization.registry`).
    """

    phase = Phase.WEIGHTS

    def __init__(self, knob: BitsKnob, quantizer: str = UNIFORM):
        self.knobs: tuple[Knob, ...] = (knob,)
        self.quantizer = weight_quantizer(quantizer)

    def apply(self, model: fx.GraphModule, network: Network, policy: CompressionPolicy) -> None:
        """Put a fitted quantizer in front of the weight of every quantized layer."""
        if in_course(self, model):
            return
        for name, way in self.ways(network, policy).items():
            model.set_submodule(name, way(model.get_submodule(name), None))

    def begin(self, model: fx.GraphModule, network: Network, policy: CompressionPolicy) -> None:
        """Every weight has its turn."""

    def ways(self, network: Network, policy: CompressionPolicy) -> dict[str, Replace]:
        """What quantizes the layers that the policy gives bits to."""
        bits = policy.values("weight_bits")
        chosen = ((layer, bits.get(layer.name, NOT_QUANTIZED)) for layer in network.layers)
        return {
            layer.name: partial(self._quantized, own, layer.norm is not None)
            for layer, own in chosen
            if own != NOT_QUANTIZED
        }

    def _quantized(
        self, bits: int, normed: bool, module: nn.Module, responses: Responses | None
    ) -> nn.Module:
        """A layer, or what replaces it, with quantized weights where that pays; a norm is behind the last."""
        paths = [name for name, part in module.named_modules() if isinstance(part, nn.Conv2d | nn.Linear)]
        for path in paths:
            layer = module.get_submodule(path)
            assert isinstance(layer, nn.Conv2d | nn.Linear)
            if not self.quantizer.pays(layer.weight, bits, normed and path == paths[-1]):
                continue
            quantized = with_quantized_weight(layer, self.quantizer.fitted(layer.weight, bits)).eval()
            if not path:
                return quantized
            module.set_submodule(path, quantized)
        return module


class ActivationQuantization:
    """Quantized inputs of layers.

    What sums and pools read is stored in the 8-bit codes of runtimes whatever the quantizer of the layers.

    Args:
        knob: legal bits.
        quantizer: name of an activation quantizer (`amc.quantization.registry`).
    """

    phase = Phase.ACTIVATIONS

    def __init__(self, knob: BitsKnob, quantizer: str = UNIFORM):
        self.knobs: tuple[Knob, ...] = (knob,)
        self.quantizer = activation_quantizer(quantizer)

    def apply(self, model: fx.GraphModule, network: Network, policy: CompressionPolicy) -> None:
        """Switch on the quantization points; the next forward pass fits their ranges."""
        if in_course(self, model):
            return
        self.begin(model, network, policy)
        for name, way in self.ways(network, policy).items():
            way(model.get_submodule(name), None)

    def begin(self, model: fx.GraphModule, network: Network, policy: CompressionPolicy) -> None:
        """Switch on the points in front of layers, so that these make up for what that costs."""
        bits = point_bits(network.points, policy.values("activation_bits"))
        for point in network.points:
            stored = point.role == "storage" and not self.quantizer.integer_codes
            kind = ActivationQuantizer if stored else self.quantizer
            model.set_submodule(point.name, kind(bits[point.name]).eval())

    def ways(self, network: Network, policy: CompressionPolicy) -> dict[str, Replace]:
        """What quantizes the values inside of layers that are replaced by several."""
        bits = policy.values("activation_bits")
        return {
            layer.name: partial(self._between, bits[layer.name])
            for layer in network.layers
            if bits.get(layer.name, NOT_QUANTIZED) != NOT_QUANTIZED and policy[layer.name].replaced
        }

    def _between(self, bits: int, module: nn.Module, responses: Responses | None) -> nn.Module:
        if isinstance(module, Chain):
            module.quantize_between(partial(self.quantizer, bits))
        return module.eval()

"""`apply`: from a network and a policy to a really smaller module; one function for search and export."""

from collections.abc import Mapping, Sequence
from enum import IntEnum
from typing import Protocol

from torch import Tensor, fx, nn

from amc.knobs import BitsKnob, WidthKnob
from amc.network import Network
from amc.policy import CompressionPolicy
from amc.pruning.importance import kept_channels
from amc.pruning.reconstruction import InputMoments, reconstruct
from amc.quantization.modules import ActivationQuantizer, UniformWeightQuantizer, with_quantized_weight
from amc.quantization.points import point_bits
from amc.quantization.uniform import NOT_QUANTIZED
from amc.slicing import apply_slices, kept_positions
from amc.space import Knob, check_policy


class Phase(IntEnum):
    """The order in which compressors run, at search, fine-tuning and export alike."""

    STRUCTURE = 0
    OPERATOR = 1
    WEIGHTS = 2
    ACTIVATIONS = 3


class Compressor(Protocol):
    """One way to compress layers.

    Attributes:
        phase: when it runs.
        knobs: the knobs that it adds to the action.
    """

    phase: Phase
    knobs: tuple[Knob, ...]

    def apply(self, model: fx.GraphModule, network: Network, policy: CompressionPolicy) -> None:
        """Carry out the policy's decisions in `model`, a copy of the network, in place."""


def apply(policy: CompressionPolicy, network: Network, compressors: Sequence[Compressor]) -> fx.GraphModule:
    """Compress a copy of the network as the policy says.

    Batch-norm statistics and activation ranges are not fitted yet: see `amc.recovery.calibrate`.

    Raises:
        UserError: the policy does not belong to this network.
    """
    check_policy(policy, network)
    model = network.copy()
    for compressor in sorted(compressors, key=lambda compressor: compressor.phase):
        compressor.apply(model, network, policy)
    return model


class ChannelPruning:
    """Removes the least important channels of every group.

    Args:
        ranking: group name to its channels, most important first (`importance.rank_channels`).
        knob: legal widths.
        moments: input moments of the original (`reconstruction.input_moments`), for least-squares
            reconstruction of the layers that lose inputs; None leaves their weights as they are.
    """

    phase = Phase.STRUCTURE

    def __init__(
        self,
        ranking: Mapping[str, Tensor],
        knob: WidthKnob | None = None,
        moments: Mapping[str, InputMoments] | None = None,
    ):
        self.ranking = dict(ranking)
        self.moments = moments
        self.knobs: tuple[Knob, ...] = (knob or WidthKnob(),)

    def kept(self, network: Network, policy: CompressionPolicy) -> dict[str, Tensor]:
        """Group name to the sorted indices of the channels that the policy keeps."""
        widths = {name: policy[name].values.get("width", len(order)) for name, order in self.ranking.items()}
        return kept_channels(self.ranking, widths)

    def apply(self, model: fx.GraphModule, network: Network, policy: CompressionPolicy) -> None:
        """Slice every module that a pruned group reaches, and refit what lost inputs."""
        positions = kept_positions(network.groups, self.kept(network, policy), network.sizes)
        apply_slices(model, positions)
        if self.moments is not None:
            reconstruct(model, network, self.moments, positions)


class UniformWeights:
    """Uniform symmetric weight codes, one scale a channel (`amc.quantization.uniform`)."""

    phase = Phase.WEIGHTS

    def __init__(self, knob: BitsKnob):
        self.knobs: tuple[Knob, ...] = (knob,)

    def apply(self, model: fx.GraphModule, network: Network, policy: CompressionPolicy) -> None:
        """Put a fitted quantizer in front of the weight of every quantized layer."""
        for name, bits in policy.values("weight_bits").items():
            layer = model.get_submodule(name)
            if bits == NOT_QUANTIZED or not isinstance(layer, nn.Conv2d | nn.Linear):
                continue
            quantizer = UniformWeightQuantizer(bits, layer.weight.shape[0])
            quantizer.fit(layer.weight)
            model.set_submodule(name, with_quantized_weight(layer, quantizer))


class UniformActivations:
    """Unsigned activation codes, one scale and zero point a tensor."""

    phase = Phase.ACTIVATIONS

    def __init__(self, knob: BitsKnob):
        self.knobs: tuple[Knob, ...] = (knob,)

    def apply(self, model: fx.GraphModule, network: Network, policy: CompressionPolicy) -> None:
        """Switch on the quantization points; the next forward pass fits their ranges."""
        for name, bits in point_bits(network.points, policy.values("activation_bits")).items():
            model.set_submodule(name, ActivationQuantizer(bits))

"""Rounds nest: a network that was compressed already, compressed again, and both told as one.

Every round is told as what it leaves of the *original*: widths, bits and the indices of kept channels. The
next round traces what is left as a network of its own and prunes that. Layers keep their names, so widths,
which are counts, need no translation; the indices of kept channels are composed.
"""

import copy
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import safetensors
import torch
from torch import Tensor, fx

from amc.compress import ActivationQuantization, ChannelPruning, WeightQuantization, apply
from amc.errors import UserError
from amc.knobs import BITS, BitsKnob
from amc.models.weights import load_state, save_weights
from amc.network import Network
from amc.plugins import one_line
from amc.policy import ORIGINAL_OPERATOR, CompressionPolicy, LayerDecision
from amc.quantization.points import QuantizationPoint
from amc.quantization.protocol import PointQuantizer
from amc.quantization.registry import QuantizerNames

FORMAT, VERSION = "amc-round", 1
Kept = Mapping[str, Tensor]


@dataclass(frozen=True)
class Nested:
    """What is left of an original network after some rounds.

    Attributes:
        module: the network, in evaluation mode on the CPU; its batch norms stand by themselves.
        policy: its decisions, relative to the original.
        kept: the original's group names to the channels that are left, sorted int64.
    """

    module: fx.GraphModule
    policy: CompressionPolicy
    kept: Kept


def save_nested(path: Path, nested: Nested) -> None:
    """Write a network with all that further training and pruning need, unlike a package; replaced whole.

    Raises:
        UserError: the file cannot be written.
    """
    kept = {name: left.tolist() for name, left in nested.kept.items()}
    told = {"policy": nested.policy.to_json(), "kept": kept}
    metadata = {"amc": FORMAT, "version": str(VERSION), "round": json.dumps(told)}
    save_weights(nested.module, path, metadata=metadata)


def is_nested(path: Path) -> bool:
    """Whether a file of weights is the network that a round has left, and not the weights alone."""
    if path.suffix != ".safetensors" or not path.is_file():
        return False
    try:
        return _metadata(path).get("amc") == FORMAT
    except Exception:  # foreign bytes can fail in any way; whoever reads the weights says what is wrong
        return False


def load_nested(path: Path, original: Network, quantizers: QuantizerNames) -> Nested:
    """Read what `save_nested` wrote.

    Args:
        path: the file.
        original: the original network; its weights do not matter.
        quantizers: of the round.

    Raises:
        UserError: the file is damaged, or of another network.
    """
    try:
        told = json.loads(_metadata(path)["round"])
        policy = CompressionPolicy.from_json(told["policy"], f"the policy in {path}")
        kept = {str(name): torch.tensor(left) for name, left in told["kept"].items()}
        with safetensors.safe_open(path, "pt") as file:
            tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 (it is no dict)
    except UserError:
        raise
    except Exception as error:  # foreign bytes can fail in any way
        raise UserError(f"{path} cannot be read as a round's network: {one_line(error)}.") from error
    module = _compressed(policy, kept, original, quantizers)
    load_state(module, tensors, path)
    return Nested(module, policy, kept)


def _metadata(path: Path) -> dict[str, str]:
    with safetensors.safe_open(path, "pt") as file:
        return file.metadata() or {}


def restart(nested: Nested) -> fx.GraphModule:
    """The network as a module to be traced and compressed anew; shares its parameters.

    Raises:
        UserError: it is quantized, and codes of codes would only lose more.
    """
    module = nested.module
    if nested.policy != in_floats(nested.policy):
        raise UserError("A quantized network cannot be compressed again: start from one in floats.")
    graph = copy.deepcopy(module.graph)  # the original network has the same one: see `clone_module`
    for node in list(graph.nodes):
        if node.op == "call_module" and isinstance(module.get_submodule(str(node.target)), PointQuantizer):
            node.replace_all_uses_with(node.all_input_nodes[0])
            graph.erase_node(node)
    return fx.GraphModule(module, graph, type(module).__name__).eval()


def in_floats(policy: CompressionPolicy) -> CompressionPolicy:
    """The policy's widths alone: what nests.

    Bits are decided anew in every round. A round under a size budget would otherwise lose channels for bytes
    that bits save later on, and what is rounded twice only loses more; nor are codes what the fine-tuning
    between rounds should train.
    """
    return CompressionPolicy(policy.network, tuple(map(_width_alone, policy.decisions)))


def _width_alone(decision: LayerDecision) -> LayerDecision:
    values = {name: value for name, value in decision.values.items() if name == "width"}
    return LayerDecision(decision.point, values, ORIGINAL_OPERATOR)


def nested_policy(policy: CompressionPolicy, original: Network) -> CompressionPolicy:
    """A round's policy, told of the original network; its values are the executed integers already."""
    return CompressionPolicy(original.fingerprint, policy.decisions)


def nested_kept(original: Network, before: Kept | None, network: Network, kept: Kept) -> dict[str, Tensor]:
    """The channels of the original that are left after another round.

    Args:
        original: the original network.
        before: its group names to the channels that the earlier rounds have left, sorted int64; None where
            there was none.
        network: what the round was given; its groups hold those channels.
        kept: its group names to the channels that the round leaves, sorted int64.

    Returns:
        Group names of the original to sorted int64.
    """
    found = {}
    for group in original.groups:
        if group.frozen:
            continue
        left = torch.arange(group.channels) if before is None else before[group.name]
        now = network.group_of.get(group.name)
        found[group.name] = left[kept[now.name]] if now is not None and now.name in kept else left
    return found


def in_original(
    module: fx.GraphModule,
    points: tuple[QuantizationPoint, ...],
    policy: CompressionPolicy,
    kept: Kept,
    original: Network,
    quantizers: QuantizerNames,
) -> Nested:
    """A round's network as the original's policy makes it: the same numbers under the original's names.

    Args:
        module: the round's network, compressed and calibrated, on the CPU.
        points: the quantization points of the network that the round was given.
        policy: as `nested_policy` tells it.
        kept: as `nested_kept` tells it.
        original: the original network; its weights do not matter.
        quantizers: of the round.
    """
    told = _compressed(policy, kept, original, quantizers)
    # Points are named after nodes of the graph, which another tracing may number differently.
    names = {old.name: new.name for old, new in zip(points, original.points, strict=True)}
    told.load_state_dict({_renamed(key, names): value for key, value in module.state_dict().items()})
    return Nested(told, policy, kept)


def _renamed(key: str, names: Mapping[str, str]) -> str:
    first, dot, rest = key.partition(".")
    return names.get(first, first) + dot + rest


def _compressed(
    policy: CompressionPolicy, kept: Kept, original: Network, quantizers: QuantizerNames
) -> fx.GraphModule:
    """What a policy makes of the original, with numbers that do not matter yet."""
    weights = WeightQuantization(BitsKnob("weight_bits", original, BITS), quantizers.weights)
    activations = ActivationQuantization(BitsKnob("activation_bits", original, BITS), quantizers.activations)
    module = apply(policy, original, (ChannelPruning(kept), weights, activations))
    for part in module.modules():
        if isinstance(part, PointQuantizer):
            part.calibrating = False
    return module.eval()

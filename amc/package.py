"""The package of a compressed network: one safetensors file that rebuilds it, and its policy beside it.

The numbers are those of the folded network (`amc.package_form`); their names and shapes follow from the
original architecture, the policy and the kept channels. So each kind of number is one flat tensor, all bytes
together are the cost `size`, and the header stays small. docs/package.md has the layout in full:

| tensor | holds: quantized layers first, then clustered and additive ones, then all else; in tree order |
|---|---|
| `codes` | uint8: codes, then kernels' indices and additive codes, lowest bit first; a layer begins a byte |
| `float32` | scales, bases, codebooks and steps; centroids; biases, plain weights, what is left of norms |
| `float16` | large values of value-aware weights; scales of clustered kernels; additive codebooks, scales |

The header's metadata are texts (`amc.package_header`):

| entry | holds |
|---|---|
| `amc`, `version` | what the file is |
| `package` | JSON: architecture and fingerprint of the original, names of the quantizers |
| `decisions` | what is decided for every layer |
| `kept` | one bit for every channel of all groups |
| `ranges` | scale and zero point (or basis, or limit) of all quantized activations |

The fixed 0/1 weights of channel pads follow from the kept channels, and nothing else is left out but what
only training asks for. A package gives back the very logits of `packed_form`, bit for bit. Those of the
network that was searched or trained differ by float noise, as its batch norms stood by themselves, and by the
few activations that this noise moves to another code. Folding saves 4 bytes a channel all the same.
"""

import json
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

import safetensors
import torch
from torch import Tensor, fx

from amc.compress import ActivationQuantization, ChannelPruning, Compressor, WeightQuantization, apply
from amc.decomposition.replacement import OperatorReplacement
from amc.errors import UserError
from amc.knobs import BITS, BitsKnob
from amc.models import build_model
from amc.models.weights import write_tensors
from amc.network import Network, trace
from amc.package_form import packed_form
from amc.package_header import (
    pack_decisions,
    pack_kept,
    pack_ranges,
    unpack_decisions,
    unpack_kept,
    unpack_ranges,
)
from amc.package_tensors import fill, flat_tensors
from amc.plugins import one_line
from amc.policy import CompressionPolicy
from amc.policy_check import check_policy
from amc.quantization.protocol import PointQuantizer
from amc.quantization.registry import NO_QUANTIZER, QuantizerNames, quantizers_of
from amc.retrieval.code_length import CodeLength, code_of_kept

MODEL_FILE, POLICY_FILE = "model.safetensors", "policy.json"
FORMAT, VERSION = "amc-package", 2


@dataclass(frozen=True)
class Architecture:
    """How the original network is built anew; its weights are not needed.

    Attributes:
        model: registered name or `package.module:factory`.
        classes: outputs.
        shape: channels, height and width of an image.
        width: multiplier of all channel counts.
        small_input: whether it was built for small images.
    """

    model: str
    classes: int
    shape: tuple[int, int, int]
    width: float = 1.0
    small_input: bool = True

    def network(self) -> Network:
        """Build and trace it.

        Raises:
            UserError: there is no such network, or it cannot be traced.
        """
        model = build_model(self.model, self.classes, self.shape[0], self.width, self.small_input)
        return trace(model, torch.zeros(1, *self.shape))


@dataclass(frozen=True)
class Package:
    """A compressed network and what made it.

    Attributes:
        module: the compressed network in evaluation mode; what comes back is its `packed_form`.
        policy: its decisions.
        kept: group name to the sorted indices of the channels that are left, int64.
        architecture: how the original is built.
    """

    module: fx.GraphModule
    policy: CompressionPolicy
    kept: Mapping[str, Tensor]
    architecture: Architecture


def kept_by(
    compressors: Iterable[Compressor], network: Network, policy: CompressionPolicy
) -> dict[str, Tensor]:
    """The channels that a policy leaves of every prunable group, as the compressors choose them."""
    choosing = [one for one in compressors if isinstance(one, ChannelPruning | CodeLength)]
    whole = {group.name: torch.arange(group.channels) for group in network.groups if not group.frozen}
    return {**whole, **{name: left for one in choosing for name, left in one.kept(network, policy).items()}}


def save_package(folder: Path, package: Package, network: Network) -> Path:
    """Write a package; each of its two files is replaced whole.

    Args:
        folder: is made if it does not exist.
        package: what to write.
        network: the original.

    Returns:
        The file with the numbers; the policy lies beside it.

    Raises:
        UserError: the network is not calibrated yet, or the folder cannot be written to.
    """
    points = [m for m in package.module.modules() if isinstance(m, PointQuantizer) and m.enabled]
    if any(point.calibrating for point in points):
        raise UserError("A quantization point has no scale yet: run calibration images through the network.")
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"The folder {folder} cannot be made: {error.strerror}.") from error
    packed = packed_form(package.module, network)
    said = {
        "network": network.fingerprint,
        "architecture": asdict(package.architecture),
        "quantizers": asdict(quantizers_of(package.module)),
    }
    text = {
        "amc": FORMAT,
        "version": str(VERSION),
        "package": json.dumps(said, separators=(",", ":")),
        "decisions": pack_decisions(package.policy),
        "kept": pack_kept(package.kept, network),
        "ranges": pack_ranges(packed, network),
    }
    path = folder / MODEL_FILE
    write_tensors(flat_tensors(packed), path, text)
    package.policy.save(folder / POLICY_FILE)
    return path


def file_bytes(path: Path) -> tuple[int, int]:
    """Bytes of a package's header, with its length in front, and of its numbers: the cost `size`."""
    with path.open("rb") as file:
        header = 8 + int.from_bytes(file.read(8), "little")
    return header, path.stat().st_size - header


def load_package(path: Path, network: Network | None = None) -> Package:
    """Rebuild a compressed network; its logits are those of `packed_form` of the saved one, bit for bit.

    Args:
        path: the folder of a package or its safetensors file.
        network: the original, traced; built from what the file says by default. Its weights do not matter.

    Raises:
        UserError: the file is missing, damaged, no package, or of another network.
    """
    path = path / MODEL_FILE if path.is_dir() else path
    text, tensors = _read(path)
    architecture, fingerprint, quantizers = _described(text, path)
    network = network or architecture.network()
    if network.fingerprint != fingerprint:
        raise UserError(
            f"{path} was made from another network (fingerprint {fingerprint}, this one is "
            f"{network.fingerprint})."
        )
    policy, kept = unpack_decisions(text.get("decisions"), network, path), {}
    check_policy(policy, network)
    prunable = {group.name for group in network.groups if not group.frozen}
    for name, left in unpack_kept(text.get("kept"), network, path).items():
        kept[name] = left
        if name in prunable and len(left) != policy[name].values.get("width", len(left)):
            raise UserError(f"{path} is damaged: its channels of {name} are not as many as its policy keeps.")
    module = packed_form(_rebuild(policy, kept, network, quantizers), network)
    fill(module, tensors, path)
    unpack_ranges(text.get("ranges"), module, network, path)
    return Package(module, policy, kept, architecture)


def _described(text: Mapping[str, str], path: Path) -> tuple[Architecture, str, QuantizerNames]:
    """Architecture and fingerprint of the original, and the quantizers.

    Raises:
        UserError: the header is damaged.
    """
    try:
        said = json.loads(text["package"])
        shape = tuple(said["architecture"]["shape"])
        architecture = Architecture(**{**said["architecture"], "shape": shape})
        return architecture, str(said["network"]), QuantizerNames(**said["quantizers"])
    except (KeyError, TypeError, ValueError) as error:
        raise UserError(f"{path} is damaged: {one_line(error)} in its header.") from error


def _rebuild(
    policy: CompressionPolicy, kept: Mapping[str, Tensor], network: Network, quantizers: QuantizerNames
) -> fx.GraphModule:
    """The compressed network with numbers that do not matter yet.

    A ranking that names the kept channels and no others leaves exactly these.
    """
    pruning = ChannelPruning({group.name: kept[group.name] for group in network.groups if not group.frozen})
    code = code_of_kept(network, policy, kept)
    activations = BitsKnob("activation_bits", network, BITS)
    compressors: list[Compressor] = [
        pruning,
        *([code] if code else []),
        OperatorReplacement(pruning.kept),
        ActivationQuantization(activations, quantizers.activations),
    ]
    if quantizers.weights != NO_QUANTIZER:
        bits = BitsKnob("weight_bits", network, BITS)
        compressors.append(WeightQuantization(bits, quantizers.weights))
    module = apply(policy, network, compressors)
    for point in module.modules():
        if isinstance(point, PointQuantizer):
            point.calibrating = False
    return module.eval()


def _read(path: Path) -> tuple[dict[str, str], dict[str, Tensor]]:
    """Metadata and tensors of a file.

    Raises:
        UserError: it is missing, unreadable, or no package of this release.
    """
    if not path.is_file():
        raise UserError(f"There is no package {path}.")
    try:
        with safetensors.safe_open(path, "pt") as file:
            text = file.metadata() or {}
            tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 (it is no dict)
    except Exception as error:  # foreign bytes can fail in any way
        raise UserError(f"{path} cannot be read as a safetensors file ({type(error).__name__}).") from error
    if text.get("amc") != FORMAT:
        raise UserError(f"{path} is no package of a compressed network, only a safetensors file.")
    if text.get("version") != str(VERSION):
        raise UserError(f"{path} has package version {text.get('version')}; this release reads {VERSION}.")
    return text, tensors

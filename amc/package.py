"""The package of a compressed network: one safetensors file that rebuilds it, and its policy beside it.

The file holds the numbers; their names and shapes follow from the original architecture, the policy and the
kept channels. So each kind of number is one flat tensor, and the header stays small:

| tensor | holds |
|---|---|
| `float32`, `int32`, ... | all entries of that type of the state dict, in its order |
| `kept` | uint8: one bit a channel of every prunable group, in the network's order, 1 where it is kept |

Not stored are the counters of batch norms, which nothing but training asks for, and the fixed 0/1 weights of
channel pads, which the kept channels give.
"""

import json
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

import safetensors
import torch
from torch import Tensor, fx

from amc.compress import ActivationQuantization, ChannelPruning, Compressor, WeightQuantization, apply
from amc.errors import UserError
from amc.knobs import BITS, BitsKnob
from amc.models import build_model
from amc.models.weights import write_tensors
from amc.network import Network, trace
from amc.package_tensors import fill, flat_parts, pack_kept, unpack_kept
from amc.plugins import one_line
from amc.policy import CompressionPolicy
from amc.quantization.protocol import PointQuantizer
from amc.quantization.registry import QuantizerNames, quantizers_of
from amc.space import check_policy

MODEL_FILE, POLICY_FILE = "model.safetensors", "policy.json"
FORMAT, VERSION = "amc-package", 1
KEPT = "kept"


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
        module: the compressed network in evaluation mode.
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
    pruning = [compressor for compressor in compressors if isinstance(compressor, ChannelPruning)]
    chosen = {name: kept for one in pruning for name, kept in one.kept(network, policy).items()}
    prunable = [group for group in network.groups if not group.frozen]
    return {group.name: chosen.get(group.name, torch.arange(group.channels)) for group in prunable}


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
    tensors = {
        name: torch.cat([t.reshape(-1) for t in part]) for name, part in flat_parts(package.module).items()
    }
    tensors[KEPT] = pack_kept(package.kept, network)
    header = {
        "network": network.fingerprint,
        "architecture": asdict(package.architecture),
        "groups": [name for name in package.kept],
        "quantizers": asdict(quantizers_of(package.module)),
        "policy": package.policy.to_json(),
    }
    text = {"amc": FORMAT, "version": str(VERSION), "package": json.dumps(header, separators=(",", ":"))}
    path = folder / MODEL_FILE
    write_tensors(tensors, path, text)
    package.policy.save(folder / POLICY_FILE)
    return path


def load_package(path: Path, network: Network | None = None) -> Package:
    """Rebuild a compressed network; its logits are those of the saved one, bit for bit.

    Args:
        path: the folder of a package or its safetensors file.
        network: the original, traced; built from what the file says by default. Its weights do not matter.

    Raises:
        UserError: the file is missing, damaged, no package, or of another network.
    """
    path = path / MODEL_FILE if path.is_dir() else path
    header, tensors = _read(path)
    try:
        said = header["architecture"]
        architecture = Architecture(**{**said, "shape": tuple(said["shape"])})
        groups, fingerprint = [str(name) for name in header["groups"]], header["network"]
        quantizers = QuantizerNames(**header.get("quantizers", {}))  # uniform before there were others
    except (KeyError, TypeError) as error:
        raise UserError(f"{path} is damaged: {one_line(error)} in its header.") from error
    policy = CompressionPolicy.from_json(header.get("policy"), f"the policy in {path}")
    network = network or architecture.network()
    if network.fingerprint != fingerprint:
        raise UserError(
            f"{path} was made from another network (fingerprint {fingerprint}, this one is "
            f"{network.fingerprint})."
        )
    kept = unpack_kept(tensors.pop(KEPT, None), groups, network, path)
    check_policy(policy, network)
    wrong = [name for name, left in kept.items() if len(left) != policy[name].values.get("width", len(left))]
    if wrong:
        raise UserError(f"{path} is damaged: its channels of {wrong[0]} are not as many as its policy keeps.")
    module = _rebuild(policy, kept, network, quantizers)
    package = Package(module, policy, kept, architecture)
    fill(module, tensors, path)
    return package


def _rebuild(
    policy: CompressionPolicy, kept: Mapping[str, Tensor], network: Network, quantizers: QuantizerNames
) -> fx.GraphModule:
    """The compressed network with numbers that do not matter yet.

    A ranking that names the kept channels and no others leaves exactly these.
    """
    module = apply(
        policy,
        network,
        (
            ChannelPruning(kept),
            WeightQuantization(BitsKnob("weight_bits", network, BITS), quantizers.weights),
            ActivationQuantization(BitsKnob("activation_bits", network, BITS), quantizers.activations),
        ),
    )
    for point in module.modules():
        if isinstance(point, PointQuantizer):
            point.calibrating = False
    return module.eval()


def _read(path: Path) -> tuple[dict, dict[str, Tensor]]:
    """Header and tensors of a file.

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
    try:
        header = json.loads(text["package"])
    except (KeyError, ValueError) as error:
        raise UserError(f"{path} is damaged: its header is not JSON.") from error
    if not isinstance(header, dict):
        raise UserError(f"{path} is damaged: its header is not an object.")
    return header, tensors

"""Packages: the same network back, bit for bit, and one sentence for every file that is none."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import safetensors
import torch
from safetensors.torch import save_file
from torch import Tensor

from amc.compress import ActivationQuantization, ChannelPruning, WeightQuantization, apply
from amc.errors import UserError
from amc.knobs import BitsKnob, WidthKnob
from amc.models.weights import write_tensors
from amc.network import Network
from amc.package import MODEL_FILE, POLICY_FILE, Architecture, Package, kept_by, load_package, save_package
from amc.policy import CompressionPolicy
from amc.pruning.importance import rank_channels
from amc.recovery.calibrate import calibrate
from amc.slicing import clone_module
from amc.space import Space

BITS_OF = {"digitsnet": (4, 4), "resnet20": (7, 8), "mobilenet_v2": (3, 8), "concatnet": (32, 32)}
"""Weight and activation bits: sums and projections, channel pads, depthwise and concat; one in floats."""


def packaged(network: Network, name: str, weight_bits: int, activation_bits: int) -> Package:
    """A network with about half of its channels, quantized and calibrated on noise."""
    knobs = (
        WidthKnob(),
        BitsKnob("weight_bits", network, (weight_bits,)),
        BitsKnob("activation_bits", network, (activation_bits,)),
    )
    compressors = (
        ChannelPruning(rank_channels(network), knobs[0]),
        WeightQuantization(knobs[1]),
        ActivationQuantization(knobs[2]),
    )
    space = Space(network, knobs)
    policy = space.policy(space.at_fraction((0.5, 1.0, 1.0)))
    module = apply(policy, network, compressors)
    calibrate(module, [noise(network, 16)])
    shape = tuple(network.example.shape[1:])
    return Package(module, policy, kept_by(compressors, network, policy), Architecture(name, 10, shape))


def noise(network: Network, count: int = 4) -> Tensor:
    generator = torch.Generator().manual_seed(3)
    return torch.randn(count, *network.example.shape[1:], generator=generator)


def other_weights(network: Network) -> Network:
    """The same architecture, every number in it another."""
    module = clone_module(network.module)
    for tensor in (*module.parameters(), *module.buffers()):
        if tensor.is_floating_point() and tensor.requires_grad == tensor.is_leaf:
            tensor.data.uniform_(0.5, 1.5)
    return replace(network, module=module)


@pytest.mark.parametrize("name", BITS_OF)
def test_a_package_gives_the_same_logits_bit_for_bit(name: str, traced: Callable, tmp_path: Path) -> None:
    network = traced(name)
    package = packaged(network, name, *BITS_OF[name])
    expected = package.module(noise(network))
    path = save_package(tmp_path / "new", package, network)
    back = load_package(path, other_weights(network))
    assert torch.equal(back.module(noise(network)), expected)
    assert back.policy == package.policy and back.architecture == package.architecture
    assert all(torch.equal(back.kept[group], kept) for group, kept in package.kept.items())
    assert any(len(kept) < network.group_of[group].channels for group, kept in back.kept.items())
    assert CompressionPolicy.load(path.with_name(POLICY_FILE)) == package.policy
    assert not back.module.training


def test_the_architecture_is_built_from_what_the_file_says(traced: Callable, tmp_path: Path) -> None:
    network = traced("digitsnet")
    package = packaged(network, "digitsnet", 4, 4)
    package = replace(package, architecture=replace(package.architecture, width=0.5))
    save_package(tmp_path, package, network)
    back = load_package(tmp_path)
    assert torch.equal(back.module(noise(network)), package.module(noise(network)))


def test_the_loaded_network_can_be_trained_and_packed_again(traced: Callable, tmp_path: Path) -> None:
    network = traced("digitsnet")
    save_package(tmp_path / "one", packaged(network, "digitsnet", 4, 8), network)
    back = load_package(tmp_path / "one", network)
    back.module.train()(noise(network)).sum().backward()
    assert all(p.grad is not None for p in back.module.parameters() if p.requires_grad)
    back.module.eval()
    save_package(tmp_path / "two", back, network)
    again = load_package(tmp_path / "two", network)
    assert torch.equal(again.module(noise(network)), back.module(noise(network)))


def test_the_file_holds_flat_numbers_and_little_else(traced: Callable, tmp_path: Path) -> None:
    network = traced("resnet20")
    package = packaged(network, "resnet20", 7, 8)
    path = save_package(tmp_path, package, network)
    with safetensors.safe_open(path, "pt") as file:
        names, sizes = set(file.keys()), {name: file.get_tensor(name).numel() for name in file.keys()}  # noqa: SIM118
    assert names == {"float32", "int32", "kept"}
    floats = [p.numel() for p in package.module.parameters() if p.requires_grad]
    floats += [b.numel() for b in package.module.buffers() if b.dtype == torch.float32]
    assert sizes["float32"] == sum(floats)
    assert sizes["kept"] == -(-sum(g.channels for g in network.groups if not g.frozen) // 8)


# ---- what is no package -------------------------------------------------------------------------------


@pytest.fixture
def saved(traced: Callable, tmp_path: Path) -> tuple[Path, Network]:
    network = traced("digitsnet")
    return save_package(tmp_path, packaged(network, "digitsnet", 4, 8), network), network


def rewrite(path: Path, change: Callable[[dict, dict[str, Tensor]], None], **text: str) -> None:
    """Read a package's header and tensors, change them, and write them back."""
    with safetensors.safe_open(path, "pt") as file:
        metadata = dict(file.metadata())
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    header = json.loads(metadata["package"])
    change(header, tensors)
    write_tensors(tensors, path, {**metadata, "package": json.dumps(header), **text})


def flip(header: dict, tensors: dict[str, Tensor]) -> None:
    tensors["kept"] = 255 - tensors["kept"]
    tensors["kept"][0] = 255


def drop_width(header: dict, tensors: dict[str, Tensor]) -> None:
    header["policy"]["decisions"][0]["values"]["width"] -= 1


def not_a_number(header: dict, tensors: dict[str, Tensor]) -> None:
    tensors["float32"][5] = float("nan")


DAMAGE = {
    "kept": (flip, "not as many as its policy keeps"),
    "width": (drop_width, "must be equal different values|not as many"),
    "nan": (not_a_number, "NaN"),
    "short": (lambda h, t: t.update(float32=t["float32"][:-1].clone()), "where its policy needs"),
    "type": (lambda h, t: t.update(float32=t["float32"].double()), "missing or foreign"),
    "foreign": (lambda h, t: t.update(extra=torch.zeros(0)), "missing or foreign"),
    "missing": (lambda h, t: t.pop("int32"), "missing or foreign"),
    "no_kept": (lambda h, t: t.pop("kept"), "list of kept channels"),
    "group": (lambda h, t: h["groups"].append("nose"), "nose, which is no channel group"),
    "header": (lambda h, t: h.pop("groups"), "damaged.*groups"),
    "architecture": (lambda h, t: h["architecture"].update(eyes=2), "damaged.*eyes"),
    "policy": (lambda h, t: h.update(policy=[]), "not a compression policy"),
    "network": (lambda h, t: h.update(network="0"), "another network"),
}


@pytest.mark.parametrize("kind", DAMAGE)
def test_a_damaged_package_is_refused(kind: str, saved: tuple[Path, Network]) -> None:
    (path, network), (change, said) = saved, DAMAGE[kind]
    rewrite(path, change)
    with pytest.raises(UserError, match=said):
        load_package(path, network)


def test_foreign_files_are_refused(saved: tuple[Path, Network], tmp_path: Path) -> None:
    path, network = saved
    rewrite(path, lambda h, t: None, version="9")
    with pytest.raises(UserError, match="version 9; this release reads 1"):
        load_package(path, network)
    save_file({"x": torch.zeros(1)}, path)
    with pytest.raises(UserError, match="no package of a compressed network"):
        load_package(path, network)
    path.write_bytes(b"\x00" * 100)
    with pytest.raises(UserError, match="cannot be read as a safetensors file"):
        load_package(tmp_path, network)
    with pytest.raises(UserError, match="There is no package"):
        load_package(tmp_path / "nowhere", network)


def test_another_network_is_refused(saved: tuple[Path, Network], traced: Callable) -> None:
    with pytest.raises(UserError, match="made from another network"):
        load_package(saved[0], traced("concatnet"))


def test_a_network_that_is_not_calibrated_is_not_packed(traced: Callable, tmp_path: Path) -> None:
    network = traced("digitsnet")
    package = packaged(network, "digitsnet", 4, 8)
    next(
        m for m in package.module.modules() if getattr(m, "calibrating", None) is False and m.enabled
    ).calibrating = True
    with pytest.raises(UserError, match="no scale yet"):
        save_package(tmp_path / "out", package, network)
    assert not (tmp_path / "out" / MODEL_FILE).exists()

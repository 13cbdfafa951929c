"""Packages: the same network back, bit for bit, and one sentence for every file that is none."""

import base64
import json
import zlib
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import safetensors
import torch
from safetensors.torch import save_file
from torch import Tensor

from amc.compress import ActivationQuantization, ChannelPruning, WeightQuantization, apply
from amc.costs.symbolic import symbolic_costs
from amc.errors import UserError
from amc.knobs import BITS, BitsKnob, BlockKnob, WidthKnob
from amc.models import build_model
from amc.models.weights import write_tensors
from amc.network import Network, trace
from amc.package import (
    MODEL_FILE,
    POLICY_FILE,
    Architecture,
    Package,
    file_bytes,
    kept_by,
    load_package,
    save_package,
)
from amc.package_form import packed_form
from amc.policy import CompressionPolicy, LayerDecision
from amc.pruning.importance import rank_channels
from amc.quantization.registry import WEIGHT_QUANTIZERS, QuantizerNames
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
    expected, before = packed_form(package.module, network)(noise(network)), package.module(noise(network))
    path = save_package(tmp_path / "new", package, network)
    # Float noise moves a few activations to other codes.
    assert (expected - before).norm() <= (0.02 if BITS_OF[name][1] < 32 else 1e-5) * before.norm()
    assert torch.equal(package.module(noise(network)), before)
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
    expected = packed_form(package.module, network)(noise(network))
    assert torch.equal(back.module(noise(network)), expected)


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
        sizes = {name: file.get_tensor(name).numel() for name in file.keys()}  # noqa: SIM118
    weights = [layer.weight for layer in package.module.modules() if hasattr(layer, "quantizer")]
    assert sizes["codes"] == sum(-(-7 * weight.numel() // 8) for weight in weights)
    assert sizes["float32"] == 2 * sum(len(weight) for weight in weights)  # a scale and a bias a channel
    assert sizes.keys() == {"codes", "float32"}


MIXED = [
    ("mobilenet_v2", "uniform"),
    ("resnet20", "kmeans"),
    *(("concatnet", quantizer) for quantizer in WEIGHT_QUANTIZERS),
]


def mixed_package(network: Network, name: str, quantizer: str, seed: int) -> tuple[Package, float]:
    """Random widths, blocks, bits from 2 up and floats; and what the cost says of the policy."""
    bits = [BitsKnob(f"{what}_bits", network, BITS) for what in ("weight", "activation")]
    knobs = (*([BlockKnob(network)] if network.blocks else []), WidthKnob(), *bits)
    space, rng, names = Space(network, knobs), np.random.default_rng(seed), QuantizerNames(quantizer)
    partial = space.empty()
    for row, column in np.ndindex(partial.values.shape):
        if not partial.decided[row, column]:
            value = int(rng.choice(space.legal(row, column, partial)))
            partial = space.decide(partial, row, column, value)
    policy = space.policy(partial.values)
    pruning = ChannelPruning(rank_channels(network), knobs[-3])
    module = apply(
        policy, network, [pruning, WeightQuantization(bits[0], quantizer), ActivationQuantization(bits[1])]
    )
    calibrate(module, [noise(network, 16)])
    shape = tuple(network.example.shape[1:])
    package = Package(module, policy, kept_by([pruning], network, policy), Architecture(name, 10, shape))
    return package, symbolic_costs(space, names)["size"].of(space.table(policy))


@pytest.mark.parametrize(("name", "quantizer"), MIXED)
def test_the_numbers_of_a_file_take_the_bytes_that_a_budget_is_charged(
    name: str, quantizer: str, traced: Callable, tmp_path: Path
) -> None:
    network = traced(name)
    package, size = mixed_package(network, name, quantizer, len(name))
    path = save_package(tmp_path, package, network)
    header, numbers = file_bytes(path)
    assert numbers == size
    assert header < 2048
    expected = packed_form(package.module, network)(noise(network))
    assert torch.equal(load_package(path, network).module(noise(network)), expected)


@pytest.mark.parametrize("bits", BITS)
@pytest.mark.parametrize("quantizer", WEIGHT_QUANTIZERS)
def test_the_numbers_of_a_file_take_the_bytes_of_the_cost_at_all_bits(
    quantizer: str, bits: int, traced: Callable, tmp_path: Path
) -> None:
    network = traced("digitsnet")
    knobs = (WidthKnob(), BitsKnob("weight_bits", network, (bits,)))
    space = Space(network, knobs)
    policy = space.policy(space.at_fraction((0.6, 1.0)))
    pruning = ChannelPruning(rank_channels(network), knobs[0])
    module = apply(policy, network, [pruning, WeightQuantization(knobs[1], quantizer)])
    package = Package(
        module, policy, kept_by([pruning], network, policy), Architecture("digitsnet", 10, (1, 32, 32), 0.5)
    )
    path = save_package(tmp_path, package, network)
    cost = symbolic_costs(
        Space(network, (*knobs, BitsKnob("activation_bits", network, (32,)))), QuantizerNames(quantizer)
    )["size"]
    assert file_bytes(path)[1] == cost.of(cost.space.table(policy))
    expected = packed_form(module, network)(noise(network))
    assert torch.equal(load_package(path, network).module(noise(network)), expected)


@pytest.mark.parametrize("quantizer", WEIGHT_QUANTIZERS)
def test_layers_too_small_for_a_quantizer_come_back_as_floats(quantizer: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Conv2d(1, 2, 1), torch.nn.Flatten(), torch.nn.Linear(2, 2))
    network = trace(model.eval(), torch.zeros(1, 1, 1, 1))
    knob = BitsKnob("weight_bits", network, BITS)
    decisions = (LayerDecision(layer.name, {"weight_bits": 4}) for layer in network.layers)
    policy = CompressionPolicy(network.fingerprint, tuple(decisions))
    module = apply(policy, network, [WeightQuantization(knob, quantizer)]).eval()
    path = save_package(tmp_path, Package(module, policy, {}, Architecture("tiny", 2, (1, 1, 1))), network)
    back = load_package(path, network)
    assert back.policy == policy
    assert torch.equal(back.module(noise(network)), packed_form(module, network)(noise(network)))


def test_the_header_of_a_deep_network_is_short(tmp_path: Path) -> None:
    """Every layer with other bits and widths, every activation quantized."""
    torch.manual_seed(0)
    network = trace(build_model("resnet56", 10, 3), torch.zeros(1, 3, 32, 32))
    package, size = mixed_package(network, "resnet56", "uniform", 1)
    header, numbers = file_bytes(save_package(tmp_path, package, network))
    assert header < 2048 and numbers == size


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
    header = {**metadata, "package": json.loads(metadata["package"])}
    change(header, tensors)
    write_tensors(tensors, path, {**header, "package": json.dumps(header["package"]), **text})


def change_text(name: str, change: Callable[[bytearray], object]) -> Callable[[dict, dict], None]:
    """Change the bytes behind a compressed text."""

    def changed(header: dict, tensors: dict[str, Tensor]) -> None:
        data = bytearray(zlib.decompress(base64.b85decode(header[name])))
        change(data)
        header[name] = base64.b85encode(zlib.compress(bytes(data))).decode()

    return changed


def flip(bits: bytearray) -> None:
    bits[0] ^= 1


def not_a_number(header: dict, tensors: dict[str, Tensor]) -> None:
    tensors["float32"][5] = float("nan")


def nonsense(header: dict, tensors: dict[str, Tensor]) -> None:
    tensors["codes"].fill_(255)


def infinite(data: bytearray) -> None:
    points = len(data) // 5  # a scale of four bytes and a zero point of one
    for plane, byte in enumerate(np.float32(np.inf).tobytes()):
        data[plane * points] = byte


DAMAGE = {
    "kept": (change_text("kept", flip), "not as many as its policy keeps"),
    "short_kept": (change_text("kept", bytearray.pop), "kept channels do not fit"),
    "nan": (not_a_number, "NaN"),
    "codes": (nonsense, "codes that mean nothing"),
    "short": (lambda h, t: t.update(float32=t["float32"][:-1].clone()), "where its policy needs"),
    "type": (lambda h, t: t.update(float32=t["float32"].double()), "missing or foreign"),
    "foreign": (lambda h, t: t.update(extra=torch.zeros(0)), "missing or foreign"),
    "missing": (lambda h, t: t.pop("codes"), "missing or foreign"),
    "no_kept": (lambda h, t: h.pop("kept"), "kept channels cannot be read"),
    "base85": (lambda h, t: h.update(ranges='"'), "ranges cannot be read"),
    "ranges": (change_text("ranges", bytearray.pop), "ranges of activations do not fit"),
    "infinite": (change_text("ranges", infinite), "NaN or infinite"),
    "header": (lambda h, t: h["package"].pop("network"), "damaged.*network"),
    "architecture": (lambda h, t: h["package"]["architecture"].update(eyes=2), "damaged.*eyes"),
    "decisions": (change_text("decisions", bytearray.clear), "decisions do not fit"),
    "network": (lambda h, t: h["package"].update(network="0"), "another network"),
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
    with pytest.raises(UserError, match="version 9; this release reads 2"):
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

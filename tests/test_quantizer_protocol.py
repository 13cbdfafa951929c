"""What all quantizers share: values, stored bytes, gradients, costs, the command line, packages and files."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from amc.compress import ActivationQuantization, WeightQuantization, apply
from amc.costs.symbolic import symbolic_costs
from amc.data import load_data
from amc.errors import UserError
from amc.export.model import on_grids
from amc.knobs import BITS, BitsKnob, WidthKnob
from amc.models import build_model
from amc.network import Network, trace
from amc.package import Architecture, Package, kept_by, load_package, save_package
from amc.package_form import packed_form
from amc.policy import CompressionPolicy, LayerDecision
from amc.quantization.bit_packing import pack, unpack
from amc.quantization.modules import ActivationQuantizer, with_quantized_weight
from amc.quantization.protocol import PointQuantizer, Quantizer
from amc.quantization.registry import (
    ACTIVATION_QUANTIZERS,
    WEIGHT_QUANTIZERS,
    QuantizerNames,
    quantizers_of,
    weight_quantizer,
)
from amc.recovery.calibrate import calibrate
from amc.recovery.fine_tune import fine_tune
from amc.space import Space
from amc.tasks import ClassificationTask
from amc.training import Recipe
from envs.bits import make_knobs
from envs.problem_config import ProblemConfig

WEIGHTS, ACTIVATIONS = sorted(WEIGHT_QUANTIZERS), sorted(ACTIVATION_QUANTIZERS)
FOREIGN = sorted(name for name, kind in WEIGHT_QUANTIZERS.items() if not kind.integer_codes)


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def weight(*shape: int) -> Tensor:
    """Heavier in the tails than a Gaussian, and another spread in every channel."""
    spread = torch.linspace(0.05, 0.5, shape[0]).reshape(-1, *[1] * (len(shape) - 1))
    return torch.randn(shape, generator=generator()) ** 3 * spread


def activation(signed: bool) -> Tensor:
    x = torch.randn(4, 8, 9, 9, generator=generator(1))
    return x if signed else x.relu()


@pytest.mark.parametrize("bits", [2, 3, 5, 8])
@pytest.mark.parametrize("shape", [(6, 5, 3, 3), (7, 3), (4, 1, 3, 3)])
@pytest.mark.parametrize("name", WEIGHTS)
def test_stored_weights_give_the_values_and_take_the_bytes_that_the_budget_is_charged(name, shape, bits):
    kind, w = WEIGHT_QUANTIZERS[name], weight(*shape)
    quantizer = kind.fitted(w, bits).eval()
    coded = quantizer.quantize(w)
    assert coded.codes.dtype == torch.uint8 and int(coded.codes.max()) < 2**bits
    assert torch.equal(quantizer.dequantize(coded), quantizer(w))
    charged = kind.stored_bytes(np.array([w.numel()]), np.array([shape[0]]), np.array([bits]))
    assert charged[0] == coded.bytes
    assert kind.bits_per_element(w.numel(), shape[0], bits) == 8 * coded.bytes / w.numel()


@pytest.mark.parametrize("name", WEIGHTS)
def test_a_layer_that_is_left_out_stores_nothing(name):
    nothing = np.array([0.0])
    assert WEIGHT_QUANTIZERS[name].stored_bytes(nothing, nothing, np.array([4]))[0] == 0


@pytest.mark.parametrize("normed", [False, True])
@pytest.mark.parametrize("name", WEIGHTS)
def test_the_charge_never_falls_with_bits_or_weights(name, normed):
    """Otherwise a policy could end above the budget that bounded it step by step."""
    channels, inputs = np.meshgrid(np.arange(1.0, 40), np.arange(2.0, 60))
    bits = np.array([2, 3, 4, 5, 6, 7, 8, 32]).reshape(-1, 1, 1)
    charged = WEIGHT_QUANTIZERS[name].charged_bytes(channels * inputs, channels, bits, normed)
    for axis in range(3):
        assert (np.diff(charged, axis=axis) >= 0).all()


def test_a_layer_whose_tables_outweigh_its_codes_stays_in_floats(traced):
    network = traced("mobilenet_v1")
    model = apply(policy_of(network, 8, 32), network, compressors(network, QuantizerNames("lq")))
    depthwise = next(layer for layer in network.layers if layer.kind == "depthwise")
    kind, out = WEIGHT_QUANTIZERS["lq"], depthwise.out_channels
    assert kind.stored_bytes(*np.array([[9.0 * out], [out], [8]]))[0] == 41 * out > 36 * out
    assert kind.charged_bytes(*np.array([[9.0 * out], [out], [8]]))[0] == 36 * out
    assert type(model.get_submodule(depthwise.name)) is nn.Conv2d


@pytest.mark.parametrize("signed", [True, False])
@pytest.mark.parametrize("bits", [2, 4, 8])
@pytest.mark.parametrize("name", ACTIVATIONS)
def test_stored_activations_give_the_values(name, bits, signed):
    x = activation(signed)
    point = ACTIVATION_QUANTIZERS[name](bits).eval()
    values = point(x)
    coded = point.quantize(x)
    assert not point.calibrating and int(coded.codes.max()) < 2**bits
    torch.testing.assert_close(point.dequantize(coded), values, rtol=0, atol=1e-6)
    assert float((values - x).square().mean()) < {2: 0.5, 4: 0.02, 8: 2e-4}[bits] * float(x.square().mean())


@pytest.mark.parametrize("name", WEIGHTS)
def test_more_bits_mean_a_smaller_error_of_weights(name):
    w = weight(8, 8, 3, 3)
    errors = [float((WEIGHT_QUANTIZERS[name].fitted(w, b)(w) - w).square().sum()) for b in (2, 3, 4)]
    assert errors[0] > errors[1] > errors[2]


@pytest.mark.parametrize("name", WEIGHTS)
def test_weights_receive_gradients_and_a_pause_leaves_them_alone(name):
    layer = nn.Linear(30, 4)
    layer.weight.data = weight(4, 30)
    quantized = with_quantized_weight(layer, WEIGHT_QUANTIZERS[name].fitted(layer.weight, 3))
    quantized(torch.ones(1, 30)).sum().backward()
    assert (layer.weight.grad != 0).float().mean() > 0.8
    quantized.quantizer.paused = True
    assert quantized.quantizer(layer.weight) is layer.weight


@pytest.mark.parametrize("name", ACTIVATIONS)
def test_points_pass_gradients_inside_their_range_and_are_the_identity_without_bits(name):
    x = activation(False).requires_grad_()
    point = ACTIVATION_QUANTIZERS[name](3).eval()
    point(x).sum().backward()
    assert 0.9 < float(x.grad[x > 0].mean()) <= 1.0
    assert ACTIVATION_QUANTIZERS[name]()(x) is x


@pytest.mark.parametrize("name", WEIGHTS)
def test_zero_weights_stay_zero(name):
    w = torch.zeros(3, 4, 3, 3)
    assert WEIGHT_QUANTIZERS[name].fitted(w, 3)(w).abs().max() < 1e-9


@pytest.mark.parametrize("bits", [*range(1, 9), 11])
def test_packed_codes_come_back(bits):
    codes = torch.randint(0, 2**bits, (7, 11), generator=generator()).to(
        torch.uint8 if bits <= 8 else torch.int32
    )
    packed = pack(codes, bits)
    assert len(packed) == -(-77 * bits // 8)
    assert torch.equal(unpack(packed, bits, 77).reshape(7, 11), codes)


def test_packing_by_hand():
    assert pack(torch.tensor([1, 2, 3, 4], dtype=torch.uint8), 3).tolist() == [0b11010001, 0b1000]


def policy_of(network: Network, weight_bits: int, activation_bits: int) -> CompressionPolicy:
    values = {"weight_bits": weight_bits, "activation_bits": activation_bits}
    decisions = tuple(LayerDecision(layer.name, values) for layer in network.layers)
    return CompressionPolicy(network.fingerprint, decisions)


def compressors(network: Network, names: QuantizerNames) -> list:
    weights, activations = (BitsKnob(f"{kind}_bits", network, BITS) for kind in ("weight", "activation"))
    return [
        WeightQuantization(weights, names.weights),
        ActivationQuantization(activations, names.activations),
    ]


@pytest.mark.parametrize(("weights", "activations"), [("lq", "lq"), ("kmeans", "label-free")])
def test_sums_stay_uniform_unless_a_runtime_knows_the_codes(weights, activations, traced):
    network, names = traced("resnet20"), QuantizerNames(weights, activations)
    model = apply(policy_of(network, 2, 4), network, compressors(network, names))
    kinds = {p.role: type(model.get_submodule(p.name)) for p in network.points}
    assert kinds["input"] is kinds["narrow"] is ACTIVATION_QUANTIZERS[activations]
    assert kinds["storage"] is (ActivationQuantizer if activations == "lq" else kinds["input"])
    assert quantizers_of(model) == names


@pytest.mark.parametrize("name", WEIGHTS)
def test_size_is_what_the_layers_store(name, traced):
    network = traced("digitsnet")
    knobs = (WidthKnob(), *(BitsKnob(f"{kind}_bits", network, BITS) for kind in ("weight", "activation")))
    space, policy = Space(network, knobs), policy_of(network, 3, 8)
    costs = symbolic_costs(space, QuantizerNames(name))
    model = apply(policy, network, compressors(network, QuantizerNames(name)))
    layers = [part for part in model.modules() if isinstance(getattr(part, "quantizer", None), Quantizer)]
    stored = sum(layer.quantizer.quantize(layer.weight).bytes for layer in layers)
    folded_biases = sum(layer.weight.shape[0] for layer in layers)
    normed = sum(layer.out_channels for layer in network.layers if layer.norm)
    factors = 0 if WEIGHT_QUANTIZERS[name].absorbs else normed  # no codebook takes in a factor a channel
    assert costs["size"].of(space.table(policy)) == stored + 4 * (folded_biases + factors)


def test_bit_operations_count_operands_as_they_are_multiplied(traced):
    network = traced("digitsnet")
    knobs = (WidthKnob(), *(BitsKnob(f"{kind}_bits", network, BITS) for kind in ("weight", "activation")))
    space = Space(network, knobs)
    table, macs = space.table(policy_of(network, 2, 4)), network.macs
    bops = {
        name: symbolic_costs(space, QuantizerNames(name))["bops"].of(table) / macs
        for name in ("uniform", "kmeans", "value-aware")
    }
    assert bops == pytest.approx({"uniform": 8.0, "kmeans": 128.0, "value-aware": 4 * (0.98 * 2 + 0.02 * 16)})


@pytest.mark.parametrize("name", ["uniform", "lq"])
def test_ends_stay_in_full_precision_where_the_paper_has_it_so(name, traced):
    network = traced("resnet20")
    config = ProblemConfig(budget=("bops=0.02",), weight_quantizer=name, weight_bits=(2, 3))
    knobs, notes = make_knobs(config, network, None if name == "lq" else _Exact())
    legal = Space(network, knobs)
    first, last = legal.row(network.layers[0].name), legal.row("linear")
    for row in (first, last):
        assert (legal.legal(row, 1) == legal.legal(row, 2) == (32,)) == (name == "lq")
    assert legal.legal(first + 1, 1) == (2, 3)
    assert any("full precision" in note for note in notes) == (name == "lq")


class _Exact:
    weight_bits_exact = 8
    name = "test"


def test_latency_and_foreign_codes_do_not_go_together():
    with pytest.raises(UserError, match="latency is that of floats"):
        ProblemConfig(budget=("latency=0.5",), weight_quantizer="lq")
    ProblemConfig(budget=("latency=0.5",), weight_quantizer="label-free")


def test_unknown_quantizers_are_answered_with_the_list():
    with pytest.raises(UserError, match=r"'nf4'.*uniform.*lq.*kmeans"):
        weight_quantizer("nf4")
    with pytest.raises(UserError, match="activation quantizer 'kmeans'"):
        ProblemConfig(activation_quantizer="kmeans")


@pytest.mark.parametrize("names", [QuantizerNames("lq", "lq"), QuantizerNames("kmeans", "value-aware")])
def test_a_package_gives_the_same_logits(names, tmp_path, traced):
    network = traced("digitsnet")
    policy, images = policy_of(network, 3, 3), torch.rand(8, 1, 32, 32, generator=generator())
    model = apply(policy, network, compressors(network, names))
    calibrate(model, [images])
    architecture = Architecture("digitsnet", 10, (1, 32, 32), 0.5)
    kept = kept_by([], network, policy)
    path = save_package(tmp_path, Package(model, policy, kept, architecture), network)
    loaded = load_package(path, network).module
    assert quantizers_of(loaded) == names
    assert torch.equal(loaded(images), packed_form(model, network)(images))


@pytest.mark.parametrize("name", FOREIGN)
def test_files_hold_the_values_of_foreign_codes_as_floats(name, traced):
    network = traced("digitsnet")
    images = torch.rand(8, 1, 32, 32, generator=generator())
    model = apply(policy_of(network, 3, 8), network, compressors(network, QuantizerNames(name)))
    calibrate(model, [images])
    written = on_grids(model, [images])
    assert not any(isinstance(part, Quantizer) and not part.integer_codes for part in written.modules())
    torch.testing.assert_close(written(images), model(images), rtol=1e-5, atol=1e-5)
    assert isinstance(model.get_submodule("conv1").quantizer, WEIGHT_QUANTIZERS[name])


def test_files_do_not_quantize_at_foreign_points(traced):
    network = traced("digitsnet")
    images = torch.rand(8, 1, 32, 32, generator=generator())
    model = apply(policy_of(network, 8, 4), network, compressors(network, QuantizerNames("uniform", "lq")))
    calibrate(model, [images])
    written = on_grids(model, [images])
    assert {p.bits for p in written.modules() if isinstance(p, PointQuantizer)} <= {8, 32}
    assert written.get_submodule("conv1").quantizer.bits == 8
    uniform = apply(policy_of(network, 8, 8), network, compressors(network, QuantizerNames()))
    assert on_grids(uniform, [images]) is uniform


class Interrupted(Exception):
    pass


@pytest.mark.parametrize(
    ("names", "float_epochs"),
    [
        (QuantizerNames("lq", "lq"), 0),
        (QuantizerNames("lq", "lq"), 1),
        (QuantizerNames("kmeans", "value-aware"), 0),
    ],
)
def test_fine_tuning_learns_and_an_interrupted_one_goes_on_exactly(names, float_epochs):
    data = load_data("digits", side=8)
    task = ClassificationTask(replace(data, train=data.train.take(torch.arange(300)), _normalised={}))
    torch.manual_seed(0)
    network = trace(build_model("digitsnet", 10, 1, 0.25), task.example_input())
    batches = task.calibration(100)

    def quantized() -> nn.Module:
        model = apply(policy_of(network, 3, 3), network, compressors(network, names))
        calibrate(model, batches)
        return model

    def tune(model: nn.Module, **settings) -> list:
        floats = {"float_epochs": float_epochs, "calibration": batches}
        return fine_tune(model, network.copy(), task, Recipe(2, 32, 0.05), **floats, **settings)

    whole, parts, kept = quantized(), quantized(), []
    losses = [epoch.loss for epoch in tune(whole)]
    assert losses[1] < losses[0] and not any(p.paused for p in whole.modules() if isinstance(p, Quantizer))

    def interrupt(epoch) -> None:
        kept.append(epoch)
        raise Interrupted

    with pytest.raises(Interrupted):
        tune(parts, on_epoch=interrupt)
    again = quantized()
    again.load_state_dict(parts.state_dict())
    tune(again, start_epoch=1, momentum=kept[0].momentum)
    state = whole.state_dict()
    assert all(torch.equal(value, state[key]) for key, value in again.state_dict().items())

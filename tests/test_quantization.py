"""Grids, quantization points, and what calibration and bias correction repair."""

import os
from itertools import pairwise
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from amc.compress import ChannelPruning, UniformActivations, UniformWeights, apply
from amc.costs.symbolic import symbolic_costs
from amc.data import load_data
from amc.evaluate import Evaluator
from amc.knobs import BitsKnob, WidthKnob
from amc.models import build_model, load_weights
from amc.network import Network, trace
from amc.pruning.importance import rank_channels
from amc.quantization.modules import ActivationQuantizer, UniformWeightQuantizer, with_quantized_weight
from amc.quantization.points import QuantizationPoint, point_bits
from amc.quantization.uniform import (
    activation_grid,
    dequantize_weight,
    fake_quantize,
    fit_activation_grid,
    fit_weight_scale,
    quantize_weight,
    weight_levels,
)
from amc.recovery.bias import correct_biases, output_means
from amc.recovery.calibrate import calibrate
from amc.space import Space
from amc.tasks import ClassificationTask

BITS = range(2, 9)


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def weight_error(weight: Tensor, scale: Tensor, bits: int) -> Tensor:
    codes = quantize_weight(weight, scale, bits)
    return (weight - dequantize_weight(codes, scale)).square().flatten(1).sum(1)


# ---- weights --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("bits", BITS)
def test_weight_scale_is_never_worse_than_max_abs_and_close_to_the_best_of_all(bits):
    weight = torch.randn(16, 16, 3, 3, generator=generator())
    weight[0, 0, 0, 0] = 9.0  # an outlier
    error = weight_error(weight, fit_weight_scale(weight, bits), bits)
    largest = weight.abs().amax((1, 2, 3)) / weight_levels(bits)
    fractions = torch.linspace(0.05, 1.0, 1000).tolist()
    best = torch.stack([weight_error(weight, largest * f, bits) for f in fractions]).amin(0)
    assert (error <= weight_error(weight, largest, bits)).all()
    assert (error <= 1.05 * best).all()
    assert error[0] < 0.9 * weight_error(weight, largest, bits)[0] or bits > 4


@pytest.mark.parametrize("bits", BITS)
def test_weight_scale_is_the_least_squares_one_of_its_codes(bits):
    weight = torch.randn(6, 40, generator=generator(1))
    scale = fit_weight_scale(weight, bits)
    codes = quantize_weight(weight, scale, bits).float()
    torch.testing.assert_close(scale, (weight * codes).sum(1) / codes.square().sum(1), rtol=1e-5, atol=0)


@pytest.mark.parametrize("bits", BITS)
def test_codes_stay_in_range_and_reach_it(bits):
    weight = 3.0 * torch.randn(4, 500, generator=generator())
    levels = 2 ** (bits - 1) - 1
    codes = quantize_weight(weight, torch.full((4,), 2.0 / levels), bits)
    assert codes.dtype == torch.int8
    assert int(codes.min()) == -levels and int(codes.max()) == levels
    if bits == 2:
        assert codes.unique().tolist() == [-1, 0, 1]


@pytest.mark.parametrize("bits", BITS)
def test_weight_on_a_grid_is_kept_exactly(bits):
    levels = weight_levels(bits)
    codes = torch.randint(-levels, levels + 1, (3, 64), generator=generator())
    codes[:, 0] = levels
    weight = codes * torch.tensor([0.5, 0.125, 2.0])[:, None]
    quantizer = UniformWeightQuantizer(bits, 3)
    quantizer.fit(weight)
    torch.testing.assert_close(quantizer(weight), weight, rtol=1e-6, atol=0)
    assert torch.equal(quantizer.codes(weight), codes.to(torch.int8))


def test_zero_channel_stays_zero():
    weight = torch.zeros(2, 4)
    weight[1] = torch.tensor([1.0, -1.0, 0.5, 0.0])
    quantizer = UniformWeightQuantizer(4, 2)
    quantizer.fit(weight)
    assert (quantizer.scale > 0).all()
    assert quantizer(weight)[0].tolist() == [0.0] * 4


def test_error_falls_with_every_bit():
    weight = torch.randn(4, 300, generator=generator())
    errors = [float(weight_error(weight, fit_weight_scale(weight, b), b).sum()) for b in BITS]
    assert all(after < 0.5 * before for before, after in pairwise(errors))


@pytest.mark.parametrize("layer", [nn.Conv2d(3, 4, 3), nn.Linear(3, 4)])
def test_quantized_layer_computes_with_the_codes_it_would_export(layer):
    quantizer = UniformWeightQuantizer(3, 4)
    quantizer.fit(layer.weight)
    quantized = with_quantized_weight(layer, quantizer)
    x = torch.randn(2, 3, 5, 5) if isinstance(layer, nn.Conv2d) else torch.randn(2, 3)
    layer_of_codes = type(layer)(3, 4, *([3] if isinstance(layer, nn.Conv2d) else []))
    codes = quantizer.codes(layer.weight)
    layer_of_codes.load_state_dict({"weight": dequantize_weight(codes, quantizer.scale), "bias": layer.bias})
    assert torch.equal(quantized(x), layer_of_codes(x))
    assert quantized.weight is layer.weight


# ---- the straight-through gradient ----------------------------------------------------------------------


def test_gradient_passes_inside_the_range_only():
    x = torch.tensor([-3.0, -1.4, 0.3, 1.4, 3.0], requires_grad=True)
    y = fake_quantize(x, torch.tensor(1.0), -1, 2)
    assert y.tolist() == [-1.0, -1.0, 0.0, 1.0, 2.0]
    y.backward(torch.tensor([10.0, 20.0, 30.0, 40.0, 50.0]))
    assert x.grad.tolist() == [0.0, 20.0, 30.0, 40.0, 0.0]


@pytest.mark.parametrize("scale", [torch.tensor(0.07), torch.tensor([0.1, 0.03]).reshape(2, 1)])
def test_values_are_the_same_with_and_without_gradients_and_leave_the_input_alone(scale):
    x = torch.randn(2, 1000, generator=generator())
    before = x.clone()
    plain = fake_quantize(x, scale, -3, 12)
    assert torch.equal(fake_quantize(x.clone().requires_grad_(), scale, -3, 12), plain)
    assert torch.equal(x, before)


def test_values_and_gradients_are_those_of_torch():
    x = torch.randn(4000, generator=generator(), requires_grad=True)
    ours = fake_quantize(x, torch.tensor(0.05), -20, 43)
    theirs = torch.fake_quantize_per_tensor_affine(x, 0.05, 20, 0, 63)
    torch.testing.assert_close(ours, theirs)
    ours_grad, theirs_grad = (torch.autograd.grad(y.square().sum(), x)[0] for y in (ours, theirs))
    torch.testing.assert_close(ours_grad, theirs_grad)


def test_weight_behind_a_quantizer_receives_a_gradient():
    layer = nn.Linear(5, 3)
    quantizer = UniformWeightQuantizer(4, 3)
    quantizer.fit(layer.weight)
    with_quantized_weight(layer, quantizer)(torch.ones(1, 5)).sum().backward()
    assert layer.weight.grad.abs().sum() > 0


# ---- activations ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("bits", BITS)
@pytest.mark.parametrize(("low", "high"), [(-1.3, 2.9), (-5.0, 0.1), (0.4, 3.0), (-3.0, -1.0), (0.0, 0.0)])
def test_zero_is_on_the_grid(bits, low, high):
    scale, zero = activation_grid(low, high, bits)
    assert scale > 0 and 0 <= zero <= 2**bits - 1
    assert float(fake_quantize(torch.zeros(1), torch.tensor(scale), -zero, 2**bits - 1 - zero)) == 0.0


def test_grid_by_hand():
    assert activation_grid(0.0, 3.0, 2) == (1.0, 0)
    assert activation_grid(0.5, 3.0, 2) == (1.0, 0)
    assert activation_grid(-1.0, 2.0, 2) == (1.0, 1)
    assert activation_grid(-3.0, -1.0, 2) == (1.0, 3)


@pytest.mark.parametrize("bits", BITS)
def test_data_without_negative_values_gets_zero_point_0(bits):
    values = torch.randn(50, 16, 8, 8, generator=generator()).relu()
    assert fit_activation_grid(values, bits)[1] == 0


@pytest.mark.parametrize("signed", [True, False])
def test_activation_error_falls_with_every_bit(signed):
    values = torch.randn(100_000, generator=generator())
    values = values if signed else values.relu()
    errors = []
    for bits in BITS:
        scale, zero = fit_activation_grid(values, bits)
        quantized = fake_quantize(values, torch.tensor(scale), -zero, 2**bits - 1 - zero)
        errors.append(float((quantized - values).square().mean()))
    assert all(after < 0.5 * before for before, after in pairwise(errors))


def test_few_bits_clip_the_tail():
    values = torch.cat([torch.rand(10_000, generator=generator()), torch.tensor([10.0])])
    scale, _ = fit_activation_grid(values, 4)
    # Squared error of a range r: 10,000 (r / 15)^2 / 12 + (10 - r)^2, least at 2.1.
    assert 1.8 < 15 * scale < 2.5


def test_sample_meets_every_column_of_an_image():
    """A stride of 200, what 200 images of 16 x 32 x 32 would give, only meets every eighth column."""
    values = torch.zeros(200, 16, 32, 32)
    values[..., 1] = torch.rand(200, 16, 32, generator=generator())
    assert 0.8 < 3 * fit_activation_grid(values, 2)[0] <= 1.0


def test_point_is_the_identity_until_it_has_bits():
    x = torch.randn(10)
    assert ActivationQuantizer()(x) is x


def test_point_fits_on_the_first_batch_only():
    point = ActivationQuantizer(2)
    assert point(torch.tensor([0.0, 1.0, 2.0, 3.0])).tolist() == [0.0, 1.0, 2.0, 3.0]
    assert (float(point.scale), int(point.zero_point), point.calibrating) == (1.0, 0, False)
    assert point(torch.tensor([-5.0, 0.6, 99.0])).tolist() == [0.0, 1.0, 3.0]


# ---- quantization points --------------------------------------------------------------------------------


class Residual(nn.Module):
    """stem -> [conv1 -> conv2] + stem -> max pool -> cat(left, right) -> pool -> linear."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.conv1, self.conv2 = nn.Conv2d(3, 4, 1), nn.Conv2d(4, 6, 1), nn.Conv2d(6, 4, 1)
        self.left, self.right, self.linear = nn.Conv2d(4, 2, 1), nn.Conv2d(4, 3, 1), nn.Linear(5, 2)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.stem(x))
        x = F.relu(self.conv2(F.relu(self.conv1(x))) + x)
        x = F.max_pool2d(x, 2)
        x = torch.cat([self.left(x), self.right(x)], 1)
        return self.linear(F.adaptive_avg_pool2d(x, 1).flatten(1))


def residual() -> Network:
    return trace(Residual(), torch.zeros(1, 3, 4, 4))


def read_by(points: tuple[QuantizationPoint, ...], role: str) -> set[tuple[str, ...]]:
    return {point.layers for point in points if point.role == role}


def test_points_of_a_residual_network():
    points = residual().points
    # The pooled sum lies before the max pool, and both branches read it; the stem's output is also summed.
    assert read_by(points, "input") == {("stem",), ("conv2",), ("left", "right"), ("linear",)}
    assert read_by(points, "narrow") == {("conv1",)}
    # The stem's output, conv2's output in front of the sum, both branches, the concatenation.
    assert sorted(p.layers for p in points if p.role == "storage") == [(), (), (), (), ("conv1",)]


def bits_by_role(layer_bits: dict[str, int]) -> dict[tuple[str, tuple[str, ...]], list[int]]:
    points = residual().points
    bits, result = point_bits(points, layer_bits), {}
    for point in points:
        result.setdefault((point.role, point.layers), []).append(bits[point.name])
    return result


EVERY = ("stem", "conv1", "conv2", "left", "right", "linear")


def test_bits_of_points_follow_the_layers_that_read_them():
    bits = bits_by_role({**dict.fromkeys(EVERY, 8), "conv1": 3, "conv2": 5, "linear": 4})
    assert bits["input", ("conv2",)] == [5]
    assert bits["input", ("left", "right")] == [8]
    assert bits["input", ("linear",)] == [4]
    assert bits["storage", ("conv1",)] == [8] and bits["narrow", ("conv1",)] == [3]
    assert bits["storage", ()] == [8] * 4


def test_eight_bits_need_no_narrow_point():
    assert bits_by_role(dict.fromkeys(EVERY, 8))["narrow", ("conv1",)] == [32]


def test_nothing_quantized_switches_every_point_off():
    assert {b for found in bits_by_role(dict.fromkeys(EVERY, 32)).values() for b in found} == {32}


def test_sums_and_concatenations_are_stored_in_8_bits_only_where_a_layer_below_is_quantized():
    bits = bits_by_role({**dict.fromkeys(EVERY, 32), "linear": 6})
    # Branches and concatenation end in the linear layer; conv2's output does in nothing that is quantized.
    assert sorted(bits["storage", ()]) == [8, 8, 8, 32]
    assert bits["storage", ("conv1",)] == [32]


class SqueezeExcite(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv, self.down, self.up = nn.Conv2d(3, 4, 1), nn.Conv2d(4, 2, 1), nn.Conv2d(2, 4, 1)
        self.last = nn.Conv2d(4, 3, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.conv(x))
        gate = torch.sigmoid(self.up(F.relu(self.down(F.adaptive_avg_pool2d(x, 1)))))
        return self.last(x * gate)


def test_points_of_a_gated_network():
    network = trace(SqueezeExcite(), torch.zeros(1, 3, 4, 4))
    assert read_by(network.points, "input") == {("conv",), ("down",), ("up",), ("last",)}
    assert read_by(network.points, "storage") == {()}  # what the pool reads
    assert [g.name for g in network.groups if not g.frozen] == ["conv", "down"]


# ---- calibration ----------------------------------------------------------------------------------------


def conv_bn(inputs: int, outputs: int) -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(inputs, outputs, 3, bias=False), nn.BatchNorm2d(outputs), nn.ReLU())


def small_net() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(conv_bn(3, 8), conv_bn(8, 8), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 4))


def batches(count: int = 3, size: int = 20) -> list[Tensor]:
    return [seed + torch.randn(size, 3, 8, 8, generator=generator(seed)) for seed in range(count)]


def test_pooled_statistics_are_those_of_the_batches_put_together():
    norm = nn.BatchNorm2d(3)
    parts = batches()
    calibrate(nn.Sequential(norm), parts)
    whole = torch.cat(parts).transpose(0, 1).flatten(1)
    within = 20 * 64  # each batch's variance is the unbiased one
    correction = torch.stack([p.transpose(0, 1).flatten(1).var(1) for p in parts]).mean(0) / within
    torch.testing.assert_close(norm.running_mean, whole.mean(1))
    torch.testing.assert_close(norm.running_var, whole.var(1, unbiased=False) + correction)


@pytest.mark.parametrize("momentum", [0.1, None])
def test_calibration_restores_mode_and_momentum(momentum):
    model = small_net().train()
    model[0][1].momentum = momentum
    calibrate(model, batches())
    assert not any(module.training for module in model.modules())
    assert (model[0][1].momentum, model[1][1].momentum) == (momentum, 0.1)


def test_calibration_is_the_identity_on_a_network_that_was_calibrated():
    """Nothing is compressed, so the second pass finds what the first one left."""
    model = small_net()
    calibrate(model, batches())
    before, x = model(batches()[0]), batches()[0]
    calibrate(model, batches())
    torch.testing.assert_close(model(x), before)


def test_calibration_repairs_the_statistics_of_a_network_whose_weights_have_shrunk():
    model, x = small_net(), batches()[0]
    calibrate(model, batches())
    expected = model(x)
    model[0][0].weight.data *= 0.25
    broken = (model(x) - expected).abs().max()
    calibrate(model, batches())
    assert (model(x) - expected).abs().max() < 0.01 * broken


def test_calibration_without_images_or_norms_changes_nothing():
    model = small_net()
    before = model[0][1].running_mean.clone()
    calibrate(model, [])
    assert torch.equal(model[0][1].running_mean, before)
    calibrate(nn.Sequential(nn.Conv2d(3, 2, 1)), batches())


# ---- bias correction ------------------------------------------------------------------------------------


def plain_net() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(
        *(nn.Conv2d(3, 6, 3), nn.ReLU(), nn.Conv2d(6, 5, 3), nn.ReLU(), nn.Flatten(), nn.Linear(80, 4))
    )


def test_output_means_by_hand():
    model = nn.Sequential(nn.Conv2d(1, 2, 1), nn.Flatten(2), nn.Linear(4, 3))
    nn.init.constant_(model[0].weight, 2.0)
    nn.init.zeros_(model[0].bias)
    nn.init.zeros_(model[2].weight)
    model[2].bias.data = torch.tensor([1.0, 2.0, 3.0])
    means = output_means(model, [torch.ones(2, 1, 2, 2), 3 * torch.ones(2, 1, 2, 2)])
    assert means["0"].tolist() == [4.0, 4.0]
    assert means["2"].tolist() == [1.0, 2.0, 3.0]  # a Linear's channels are the last dimension


def test_bias_correction_restores_the_mean_outputs():
    model, data = plain_net(), batches(1)
    wanted = output_means(model, data)
    with torch.no_grad():
        for layer in (model[0], model[2], model[5]):
            layer.weight.mul_(0.7).add_(0.05)
    assert (output_means(model, data)["5"] - wanted["5"]).abs().max() > 0.1
    correct_biases(model, wanted, data)
    for name, mean in output_means(model, data).items():
        torch.testing.assert_close(mean, wanted[name], atol=1e-5, rtol=1e-4)


class NoTask:
    """Labels do not exist: whatever asks for them fails."""

    def score(self, model: nn.Module, split: str) -> float:
        return 0.0


def evaluator(model: nn.Module, data: list[Tensor]) -> Evaluator:
    network = trace(model, data[0])
    knobs = (WidthKnob(), BitsKnob("weight_bits", network, [4, 8]), BitsKnob("activation_bits", network, [8]))
    pruning = ChannelPruning(rank_channels(network), knobs[0])
    compressors = [pruning, UniformWeights(knobs[1]), UniformActivations(knobs[2])]
    return Evaluator(network, Space(network, knobs), NoTask(), compressors, {}, data)


def test_compressed_network_without_batch_norm_keeps_the_mean_outputs_of_its_channels():
    data = batches(1)
    judge = evaluator(plain_net(), data)
    table = judge.space.smallest.copy()
    table[:, 0] = [4, 3, 4]
    compressed = judge.compressed(judge.space.policy(table))
    kept = judge.compressors[0].kept(judge.network, judge.space.policy(table))
    wanted = output_means(judge.network.copy(), data)
    for name, mean in output_means(compressed, data).items():
        expected = wanted[name][kept[name]] if name in kept else wanted[name]
        torch.testing.assert_close(mean, expected, atol=1e-4, rtol=1e-3)


def test_bias_is_corrected_only_where_there_is_no_batch_norm():
    judge = evaluator(small_net(), batches())
    compressed = judge.compressed(judge.space.policy(judge.space.largest))
    assert torch.equal(compressed.get_submodule("4").bias, judge.network.module.get_submodule("4").bias)


def test_quantized_network_is_close_to_the_original_and_closer_with_more_bits():
    data = list(torch.randn(3, 20, 3, 8, 8, generator=generator()))
    model = small_net()
    calibrate(model, data)
    judge = evaluator(model, data)
    with torch.no_grad():
        expected = judge.network.module(data[0])
        errors = [
            float((judge.compressed(judge.space.policy(table))(data[0]) - expected).norm() / expected.norm())
            for table in (judge.space.largest, _with_weight_bits(judge.space, 4))
        ]
    assert errors[0] < 0.02 < errors[1] < 0.5


def _with_weight_bits(space: Space, bits: int):
    table = space.largest.copy()
    table[:, space.column("weight_bits")] = bits
    return table


def test_an_executed_policy_is_evaluated_once():
    judge = evaluator(small_net(), batches(1))
    first, second = judge([judge.space.policy(judge.space.largest)] * 2)
    assert (first.cached, second.cached, second.seconds) == (False, True, 0.0)
    assert first.policy is second.policy


def test_weights_shared_with_the_network_are_not_fine_tuned_by_accident():
    judge = evaluator(small_net(), batches(1))
    compressed = apply(judge.space.policy(judge.space.smallest), judge.network, judge.compressors)
    pointers = {p.data_ptr() for p in judge.network.module.parameters()}
    assert not pointers & {p.data_ptr() for p in compressed.parameters()}


# ---- real data ------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_resnet20_on_cifar10_survives_calibration_and_eight_bits():
    """Test accuracy on 2,000 images: standard error 0.6 points."""
    root, weights = os.environ.get("AMC_DATA_ROOT"), os.environ.get("AMC_WEIGHTS")
    if not root or not weights:
        pytest.skip("AMC_DATA_ROOT and AMC_WEIGHTS name no CIFAR-10 and no folder of standard weights")
    torch.set_num_threads(2)
    task = ClassificationTask(load_data("cifar10", root))
    model = build_model("resnet20")
    load_weights(model, Path(weights) / "resnet20-12fca82f.th")
    images, labels = task.data.normalised("test")[:2000], task.data.split("test").labels[:2000]

    def accuracy(net: nn.Module) -> float:
        with torch.inference_mode():
            return float((torch.cat([net(x).argmax(1) for x in images.split(100)]) == labels).float().mean())

    network = trace(model, task.example_input())
    knobs = [BitsKnob(f"{kind}_bits", network, (8, 32)) for kind in ("weight", "activation")]
    space = Space(network, (WidthKnob(), *knobs))
    compressors = [UniformWeights(knobs[0]), UniformActivations(knobs[1])]
    judge = Evaluator(network, space, task, compressors, symbolic_costs(space), task.calibration())
    original = accuracy(network.module)
    assert original > 0.90
    eight = space.largest.copy()
    eight[:, 1:] = 8
    for table in (space.largest, eight):
        assert accuracy(judge.compressed(space.policy(table))) > original - 0.01

"""Grids, quantization points, and what calibration and bias correction repair."""

from itertools import pairwise

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from amc.network import Network, trace
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

BITS = range(2, 9)


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def weight_error(weight: Tensor, scale: Tensor, bits: int) -> Tensor:
    codes = quantize_weight(weight, scale, bits)
    return (weight - dequantize_weight(codes, scale)).square().flatten(1).sum(1)


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

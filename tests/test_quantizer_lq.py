"""LQ-Nets: the descent, known distributions, recovery of bases, the running basis, gradients."""

import copy
import math

import pytest
import torch
from torch import Tensor, nn

from amc.quantization.lq import (
    LqActivationQuantizer,
    LqWeightQuantizer,
    basis_step,
    cells_of,
    digits,
    error_of,
    first_basis,
    fit_basis,
    in_memory_order,
    looked_up,
    ranks,
    sorted_levels,
)
from amc.quantization.modules import QuantizedConv2d, with_quantized_weight
from amc.quantization.protocol import even_sample
from amc.quantization.sorted_rows import SortedRows, midpoints
from amc.recovery.fine_tune import refit_weight_scales


def gaussian(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def normal_quantiles(count: int = 100_001) -> Tensor:
    """Numbers that are distributed as N(0, 1), without any chance."""
    places = (torch.arange(count, dtype=torch.float64) + 0.5) / count
    return math.sqrt(2) * torch.erfinv(2 * places - 1)


def mean_error(rows: SortedRows, basis: Tensor, signed: bool) -> float:
    levels, _ = sorted_levels(basis, signed)
    return float(rows.error(levels, *rows.cells(midpoints(levels)))) / rows.values.shape[1]


@pytest.mark.parametrize("signed", [True, False])
@pytest.mark.parametrize("bits", [1, 2, 3, 4])
def test_no_half_step_raises_the_error(bits, signed):
    x = gaussian(4, 500) ** 3
    rows = SortedRows(x if signed else x.relu())
    basis = 3 * first_basis(rows, bits, signed) + 0.1
    errors = []
    for _ in range(20):
        levels, _ = sorted_levels(basis, signed)
        counts, sums = rows.cells(midpoints(levels))
        errors.append(rows.error(levels, counts, sums))
        order = sorted_levels(basis, signed)[1]
        basis = basis_step(basis, signed, counts, sums)
        moved = (basis @ digits(bits, signed, basis).T).gather(1, order)
        errors.append(rows.error(moved, counts, sums))
    assert (torch.stack(errors).diff(dim=0) <= 1e-9 * errors[0]).all()
    assert (errors[-1] < errors[0]).all()


@pytest.mark.parametrize("signed", [True, False])
@pytest.mark.parametrize("bits", [1, 2, 3, 4])
def test_a_fit_never_raises_the_error_and_ends_where_it_settles(bits, signed):
    x = gaussian(4, 500) ** 3
    rows = SortedRows(x if signed else x.relu())
    start = 3 * first_basis(rows, bits, signed) + 0.1
    fits = [fit_basis(rows, start, signed, sweeps) for sweeps in range(20)]
    errors = torch.stack([error_of(rows, basis, signed) for basis in fits])
    assert torch.equal(fits[0], start.double())
    assert (errors.diff(dim=0) <= 1e-9 * errors[0]).all() and (errors[-1] < errors[0]).all()
    # One more sweep than it takes to settle changes nothing.
    assert torch.equal(*(fit_basis(rows, start, signed, sweeps) for sweeps in (2000, 4000)))


@pytest.mark.parametrize(("bits", "wanted"), [(1, 0.3634), (2, 0.1177), (3, 0.0369), (4, 0.0115)])
def test_error_on_gaussian_weights(bits, wanted):
    """1 - 2 / pi for one bit; 0.1175 is the least error of any four levels (Lloyd and Max)."""
    rows = SortedRows(normal_quantiles()[None])
    found = mean_error(rows, fit_basis(rows, first_basis(rows, bits, True), True, sweeps=400), True)
    assert found == pytest.approx(wanted, rel=0.01)
    assert bits != 2 or found >= 0.1174


@pytest.mark.parametrize(("bits", "wanted"), [(1, 0.0953), (2, 0.02348), (3, 0.00644)])
def test_error_on_rectified_gaussians(bits, wanted):
    rows = SortedRows(normal_quantiles().relu()[None])
    found = mean_error(rows, fit_basis(rows, first_basis(rows, bits, False), False, sweeps=400), False)
    assert found == pytest.approx(wanted, rel=0.01)


def test_one_bit_is_the_mean_magnitude():
    weight = gaussian(3, 80)
    quantizer = LqWeightQuantizer.fitted(weight, 1)
    torch.testing.assert_close(quantizer.basis.abs()[:, 0], weight.abs().mean(1), rtol=1e-4, atol=0)


@pytest.mark.parametrize("basis", [[0.4, 1.0], [0.1, 0.25, 0.6], [0.05, 0.12, 0.31, 0.7]])
@pytest.mark.parametrize("signed", [True, False])
def test_the_basis_of_data_that_were_made_by_one_is_found(basis, signed):
    true = torch.tensor([basis], dtype=torch.float64)
    codes = torch.randint(0, 2 ** len(basis), (4000,), generator=torch.Generator().manual_seed(0))
    x = (digits(len(basis), signed, true) @ true[0])[codes]
    rows = SortedRows(x[None])
    start = true * torch.linspace(0.99, 1.01, len(basis)).double()
    found = fit_basis(rows, start, signed)
    torch.testing.assert_close(found, true, rtol=1e-6, atol=0)


def test_bases_are_found_from_a_cold_start():
    true = torch.tensor([[0.3, 0.8]])
    codes = torch.randint(0, 4, (1, 1000), generator=torch.Generator().manual_seed(0))
    weight = (true @ digits(2, True, true).T).gather(1, codes)
    quantizer = LqWeightQuantizer.fitted(weight, 2)
    torch.testing.assert_close(quantizer.basis.abs().sort().values, true, rtol=1e-4, atol=0)
    torch.testing.assert_close(quantizer(weight), weight, rtol=1e-4, atol=1e-4)


def test_scaled_weights_give_scaled_bases():
    weight = gaussian(4, 200)
    small, large = (LqWeightQuantizer.fitted(factor * weight, 3).basis for factor in (1.0, 7.0))
    torch.testing.assert_close(7 * small, large, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("bits", [2, 3, 4, 6])
def test_codes_are_nearest_levels_and_ties_go_down(bits):
    levels = gaussian(3, 2**bits).sort(dim=1).values
    x = torch.cat([gaussian(3, 200, seed=1), midpoints(levels)], dim=1)
    found = ranks(x, levels)
    nearest = (x[:, :, None] - levels[:, None]).abs()
    chosen = nearest.gather(2, found[:, :, None])[..., 0]
    assert (chosen <= nearest.amin(2) + 1e-6).all()
    assert torch.equal(found[:, 200:], torch.arange(2**bits - 1).expand(3, -1))
    counts, sums = cells_of(x, found, 2**bits)
    assert counts.sum() == x.numel() and torch.allclose(sums.sum(1), x.double().sum(1))


def test_a_dot_product_is_a_sum_of_digit_counts():
    weight, x = gaussian(1, 64), gaussian(64).relu()
    weights, point = LqWeightQuantizer.fitted(weight, 2), LqActivationQuantizer(3)
    dot = float(weights.eval()(weight)[0] @ point.eval()(x))
    coded_weight, coded_x = weights.quantize(weight), point.quantize(x)
    b_w = digits(2, True, weight)[coded_weight.codes[0].long()]
    b_a = digits(3, False, x)[coded_x.codes.long()]
    assert float(weights.basis[0] @ (b_w.T @ b_a) @ point.basis[0]) == pytest.approx(dot, rel=1e-4)


def test_the_first_batch_of_training_forgets_the_basis_before_it():
    """Bias-corrected as in the authors' program; the plain average would still be at 90 % of the start."""
    weight = gaussian(2, 400)
    quantizer = LqWeightQuantizer(2, 2)
    quantizer.basis.copy_(torch.tensor([[0.2, 0.9], [0.1, 2.0]]))
    old = quantizer.basis.clone().double()
    levels, _ = sorted_levels(quantizer.basis, True)
    wanted = basis_step(old, True, *cells_of(weight, ranks(weight, levels), 4))
    first = quantizer.train()(weight)
    assert torch.equal(first, levels.gather(1, ranks(weight, levels)))  # quantized before it learned
    torch.testing.assert_close(quantizer.basis, wanted.float())


def test_the_running_basis_is_the_bias_corrected_average():
    quantizer = LqActivationQuantizer(1)
    quantizer.calibrating = False
    quantizer.basis.fill_(5.0)
    average = 0.0
    for batch in range(4):
        x = gaussian(500, seed=batch).abs() + batch
        levels, _ = sorted_levels(quantizer.basis, False)
        step = basis_step(quantizer.basis.double(), False, *cells_of(x[None], ranks(x[None], levels), 2))
        quantizer.train()(x)
        average = 0.9 * average + 0.1 * float(step)
        assert float(quantizer.basis) == pytest.approx(average / (1 - 0.9 ** (batch + 1)), rel=1e-5)
    assert int(quantizer.updates) == 4


def test_evaluation_learns_nothing():
    weight, x = gaussian(3, 50), gaussian(400).relu()
    weights, point = LqWeightQuantizer.fitted(weight, 2).eval(), LqActivationQuantizer(2).eval()
    point(x)
    state = copy.deepcopy((weights.basis, point.basis))
    weights(2 * weight), point(3 * x)
    assert torch.equal(weights.basis, state[0]) and torch.equal(point.basis, state[1])
    assert torch.equal(point(x[:7]), point(x)[:7])


def test_gradients_stop_above_the_largest_level_only():
    point = LqActivationQuantizer(2).eval()
    point(gaussian(4000).relu())
    top = float(point.basis.sum())
    x = torch.tensor([0.0, 0.01, 0.9 * top, 1.1 * top], requires_grad=True)
    point(x).sum().backward()
    assert x.grad.tolist() == [1.0, 1.0, 1.0, 0.0]
    weight = (5 * gaussian(1, 100)).requires_grad_()
    LqWeightQuantizer.fitted(weight, 2)(weight).sum().backward()
    assert (weight.grad == 1).all()


@pytest.mark.parametrize("signed", [True, False])
def test_a_dead_layer_does_not_break_the_basis(signed):
    point = LqActivationQuantizer(3)
    point(torch.zeros(1000))
    point.signed.fill_(int(signed))
    for batch in (torch.zeros(1000), torch.ones(1000), torch.zeros(1000)):
        assert torch.isfinite(point.train()(batch)).all()
    assert torch.isfinite(point.basis).all()


def test_training_follows_the_weights_and_the_regular_refit_leaves_it_to_them():
    conv = nn.Conv2d(3, 4, 3)
    layer = with_quantized_weight(conv, LqWeightQuantizer.fitted(conv.weight, 2))
    assert isinstance(layer, QuantizedConv2d)
    optimizer = torch.optim.SGD(layer.parameters(), lr=0.05)
    before = layer.quantizer.basis.clone()
    for _ in range(20):
        optimizer.zero_grad()
        layer(gaussian(2, 3, 6, 6)).square().sum().backward()
        optimizer.step()
    assert not torch.equal(layer.quantizer.basis, before)
    learned = layer.quantizer.basis.clone()
    refit_weight_scales(layer)
    assert torch.equal(layer.quantizer.basis, learned) and int(layer.quantizer.updates) == 20


@pytest.mark.parametrize("shape", [(64, 13, 32, 32), (64, 3, 32, 32), (128, 6, 16, 16), (64, 8, 56, 56)])
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_an_even_sample_meets_every_column_and_channel(shape, layout):
    for axis in range(1, 4):
        view = [-1 if dim == axis else 1 for dim in range(4)]
        places = torch.arange(shape[axis], dtype=torch.float32).reshape(view)
        stored, _ = in_memory_order(places.expand(shape).contiguous(memory_format=layout))
        counts = torch.bincount(even_sample(stored, 16384).long(), minlength=shape[axis]).double()
        assert len(counts) == shape[axis] and counts.max() < 1.3 * counts.min()


@pytest.mark.parametrize("bits", [3, 4])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_activations_learn_and_are_quantized_alike_in_both_layouts(bits, dtype):
    """An odd number of channels of very different sizes, and more values than a basis learns from."""
    sizes = torch.linspace(0.05, 3, 13)[None, :, None, None]
    x = (gaussian(64, 13 * 16 * 16).reshape(64, 13, 16, 16).relu() * sizes).to(dtype)
    found = []
    for layout in (torch.contiguous_format, torch.channels_last):
        quantizer = LqActivationQuantizer(bits)
        quantizer.fit(x.float())
        before = mean_error(SortedRows(x.float().reshape(1, -1)), quantizer.basis, False)
        quantizer.train()
        given = x.contiguous(memory_format=layout)
        values = quantizer.quantized(given)
        assert values.stride() == given.stride() and values.dtype == dtype
        after = mean_error(SortedRows(x.float().reshape(1, -1)), quantizer.basis, False)
        assert after < 1.05 * before
        found.append((values, quantizer.basis))
    assert torch.equal(found[0][0], found[1][0])
    torch.testing.assert_close(found[0][1], found[1][1], rtol=0.05, atol=0)


@pytest.mark.parametrize("bits", [3, 4])
def test_looked_up_levels_are_the_nearest_ones(bits):
    every = torch.arange(-(2**15), 2**15, dtype=torch.int16).view(torch.bfloat16)[None]
    basis = torch.linspace(0.2, 1.7, bits)[None]
    for signed in (False, True):
        levels, _ = sorted_levels(basis, signed)
        wanted = levels[0][ranks(every.float(), levels).long()].bfloat16()
        assert torch.equal(looked_up(every, levels), wanted)

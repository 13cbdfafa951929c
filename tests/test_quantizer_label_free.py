"""Alternating minimisation and its baseline, max-abs scaling."""

import pytest
import torch
from torch import Tensor

from amc.quantization.label_free import (
    LabelFreeActivationQuantizer,
    LabelFreeWeightQuantizer,
    PowerWeightQuantizer,
    best_scale,
    fit_activations,
    fit_weights,
    integer_codes,
    nearest,
    power_codes,
)
from amc.quantization.max_abs import MaxAbsWeightQuantizer
from amc.quantization.protocol import WeightQuantizer
from amc.quantization.sorted_rows import SortedRows, midpoints
from amc.recovery.calibrate import calibrate

BITS = [2, 3, 4, 8]


def gaussian(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def error(quantizer: WeightQuantizer, weight: Tensor) -> Tensor:
    return (quantizer(weight) - weight).square().flatten(1).sum(1)


def test_cells_are_counted_and_summed_and_a_tie_goes_down():
    rows = SortedRows(torch.tensor([[3.0, 1.0, 2.0, 2.0], [0.0, -1.0, 5.0, 4.0]]))
    counts, sums = rows.cells(torch.tensor([[2.0, 2.5], [0.0, 4.5]]))
    assert counts.tolist() == [[3, 0, 1], [2, 1, 1]]
    assert sums.tolist() == [[5.0, 0.0, 3.0], [-1.0, 4.0, 5.0]]
    assert midpoints(torch.tensor([0.0, 1.0, 4.0])).tolist() == [0.5, 2.5]


@pytest.mark.parametrize("code_set", [integer_codes, power_codes])
@pytest.mark.parametrize("bits", BITS)
def test_no_half_step_raises_the_error(bits, code_set):
    rows, codes = SortedRows(gaussian(5, 300) ** 3), code_set(bits)
    scale = torch.full((5,), 0.3, dtype=torch.float64)
    errors = []
    for _ in range(15):
        counts, sums = nearest(rows, scale, codes)
        errors.append(rows.error(scale[:, None] * codes, counts, sums))
        scale = best_scale(counts, sums, scale, codes)
        errors.append(rows.error(scale[:, None] * codes, counts, sums))
    falls = torch.stack(errors).diff(dim=0)
    assert (falls <= 1e-9 * errors[0]).all()
    assert (errors[-1] < errors[0]).all()


@pytest.mark.parametrize("kind", [LabelFreeWeightQuantizer, PowerWeightQuantizer])
@pytest.mark.parametrize("bits", BITS)
def test_what_is_lost_is_orthogonal_to_the_codes(kind, bits):
    weight = gaussian(6, 90)
    values = kind.fitted(weight, bits)(weight)
    inner = ((weight - values) * values).sum(1)
    assert (inner.abs() < 1e-5 * values.square().sum(1)).all()


@pytest.mark.parametrize("bits", BITS)
def test_it_is_no_worse_than_max_abs_scaling(bits):
    weight = gaussian(8, 400)
    ours, theirs = (
        error(kind.fitted(weight, bits), weight) for kind in (LabelFreeWeightQuantizer, MaxAbsWeightQuantizer)
    )
    assert (ours <= theirs).all()
    assert bits > 2 or ours.sum() < 0.4 * theirs.sum()


def test_scale_of_two_values_is_the_mean_magnitude():
    """With codes -1, 0, 1 and all weights near +-1 nothing is 0, as in binary networks."""
    weight = torch.tensor([[1.0, -1.2, 0.8, -1.1]])
    assert float(fit_weights(weight, integer_codes(2))) == pytest.approx(float(weight.abs().mean()))


def test_powers_of_two_by_hand():
    assert power_codes(4).tolist() == [-64, -32, -16, -8, -4, -2, -1, 0, 1, 2, 4, 8, 16, 32, 64]
    quantizer = PowerWeightQuantizer(4, 1)
    quantizer.scale.fill_(0.5)
    weight = torch.tensor([[0.24, 0.26, 0.74, 0.76, 1.49, 1.51, 40.0, -3.1]])
    assert quantizer(weight)[0].tolist() == [0.0, 0.5, 0.5, 1.0, 1.0, 2.0, 32.0, -4.0]


def test_max_abs_scaling_reaches_the_largest_weight():
    weight = torch.tensor([[0.3, -0.6], [7.0, 3.4]])
    quantizer = MaxAbsWeightQuantizer.fitted(weight, 3)
    assert quantizer.scale.tolist() == pytest.approx([0.2, 7 / 3])
    assert quantizer(weight).abs().amax(1).tolist() == pytest.approx([0.6, 7.0])


@pytest.mark.parametrize("bits", BITS)
def test_activations_that_lie_on_a_grid_are_kept(bits):
    codes = torch.randint(0, 2**bits, (2000,), generator=torch.Generator().manual_seed(0))
    codes[0] = 2**bits - 1
    scale, zero_point = fit_activations(0.37 * codes, bits)
    assert (scale, zero_point) == (pytest.approx(0.37), 0)


def test_activations_with_negative_values_share_the_codes():
    point = LabelFreeActivationQuantizer(4)
    x = gaussian(5000)
    assert (point(x) - x).square().mean() < 0.02
    assert int(point.zero_point) == 8


def test_the_scale_does_not_matter_in_front_of_a_renormalized_batch_norm():
    net = torch.nn.Sequential(torch.nn.Conv2d(3, 8, 3, bias=False), torch.nn.BatchNorm2d(8, eps=1e-12)).eval()
    images = gaussian(16, 3, 8, 8)
    calibrate(net, [images])
    before = net(images)
    net[0].weight.data *= torch.linspace(0.5, 3.0, 8).reshape(-1, 1, 1, 1)
    assert (net(images) - before).abs().max() > 1
    calibrate(net, [images])
    torch.testing.assert_close(net(images), before, rtol=1e-4, atol=1e-4)

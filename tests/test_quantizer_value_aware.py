"""Value-aware quantization of weights and activations, and of what the backward pass keeps."""

import math
import weakref

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from amc.errors import UserError
from amc.quantization.max_abs import MaxAbsWeightQuantizer
from amc.quantization.modules import UniformWeightQuantizer
from amc.quantization.registry import activation_quantizer, weight_quantizer
from amc.quantization.saved_activations import ValueAwareStorage, store, store_relu, stored_bytes
from amc.quantization.saved_bytes import SavedBytes
from amc.quantization.value_aware import (
    SHARE,
    ValueAwareActivationQuantizer,
    ValueAwareWeightQuantizer,
    large_count,
    largest,
    quantized_weight,
)


def gaussian(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def laplace(count: int) -> Tensor:
    """Numbers that are distributed as Laplace(0, 1), without any chance, in both signs."""
    places = (torch.arange(count // 2, dtype=torch.float64) + 0.5) / (count // 2)
    positive = -torch.log1p(-places)
    return torch.cat([positive, -positive]).float()


def sqnr(x: Tensor, values: Tensor) -> float:
    """Signal-to-quantization-noise ratio in dB."""
    return 10 * math.log10(float(x.square().sum() / (values - x).square().sum()))


@pytest.mark.parametrize(("share", "wanted"), [(0.001, 7.2), (0.01, 10.4), (0.02, 11.8), (0.03, 12.8)])
def test_sqnr_of_laplace_data_at_3_bits(share, wanted):
    """The sheet's figures: 2.8 dB without large values, 11.8 dB with 2 %."""
    x = laplace(1_000_000)
    assert sqnr(x, quantized_weight(x, 3, share)) == pytest.approx(wanted, abs=0.1)


def test_clipping_recovers_most_of_what_the_largest_value_spoils_but_not_all():
    x = laplace(1_000_000)
    spoilt, best = sqnr(x, quantized_weight(x, 3, 0.0)), sqnr(x, quantized_weight(x, 3, 0.02))
    clipped = sqnr(x, UniformWeightQuantizer.fitted(x[None], 3)(x[None])[0])
    assert spoilt == pytest.approx(2.8, abs=0.4)
    assert spoilt + 7 < clipped < best - 0.5


@pytest.mark.parametrize("bits", [2, 3, 4, 8])
def test_without_large_values_it_is_max_abs_scaling(bits):
    weight = gaussian(1, 500)
    assert torch.equal(
        quantized_weight(weight, bits, 0.0), MaxAbsWeightQuantizer.fitted(weight, bits)(weight)
    )


def test_with_large_values_alone_it_is_the_cast():
    weight = gaussian(7, 50)
    assert torch.equal(quantized_weight(weight, 2, 1.0), weight.half().float())


@pytest.mark.parametrize("shape", [(40, 7), (16, 16, 3, 3), (1, 1)])
def test_exactly_the_top_share_is_kept(shape):
    weight = gaussian(*shape)
    values = quantized_weight(weight, 2)
    kept = largest(weight, large_count(weight.numel()))
    assert int(kept.sum()) == math.ceil(SHARE * weight.numel())
    assert torch.equal(values[kept], weight[kept].half().float())
    rest = weight.abs()[~kept]
    assert rest.numel() == 0 or rest.max() <= weight.abs()[kept].min()
    assert len(values[~kept].unique()) <= 3


def test_equal_values_do_not_make_it_more():
    assert int(largest(torch.ones(100), 2).sum()) == 2


def test_error_falls_with_the_share_and_with_the_bits():
    weight = gaussian(30, 90) ** 3
    error = {
        (bits, share): float((quantized_weight(weight, bits, share) - weight).square().sum())
        for bits in (3, 4)
        for share in (0.0, 0.001, 0.01, 0.02, 0.03)
    }
    for bits in (3, 4):
        row = [error[bits, share] for share in (0.0, 0.001, 0.01, 0.02, 0.03)]
        assert row == sorted(row, reverse=True)
    assert all(error[4, share] < error[3, share] for share in (0.0, 0.01, 0.03))


@pytest.mark.parametrize("share", [0.0, 0.01, 0.03])
def test_the_share_is_an_option_of_the_name(share):
    kind, point = (make(f"value-aware:{share}") for make in (weight_quantizer, activation_quantizer))
    weight = gaussian(10, 100)
    coded = kind(3).quantize(weight)
    assert len(coded.parts["large"]) == math.ceil(share * 1000)
    assert torch.equal(kind(3)(weight), quantized_weight(weight, 3, share))
    assert coded.bytes == kind.stored_bytes(*(np.array([float(v)]) for v in (1000, 10, 3)))[0]
    assert kind.operand_bits(4) == point.operand_bits(4) == pytest.approx(4 + 12 * share)
    assert weight_quantizer(kind.name) is kind and kind.name == f"value-aware:{share:g}"
    fitted = point(4)
    fitted(gaussian(2000).relu())
    assert int((gaussian(2000).relu() > fitted.limit).sum()) == math.ceil(share * 2000)


@pytest.mark.parametrize("name", ["value-aware:", "value-aware:2", "value-aware:nan", "lq:0.1", "values:0.1"])
def test_an_option_without_meaning_is_refused(name):
    with pytest.raises(UserError, match=r"must lie in|has no option|no weight quantizer"):
        weight_quantizer(name)


def test_weights_need_no_positions():
    weight = gaussian(10, 100)
    coded = ValueAwareWeightQuantizer(3).quantize(weight)
    assert int((coded.codes == 7).sum()) == 20 == len(coded.parts["large"])
    assert coded.bytes == 1000 * 3 / 8 + 20 * 2 + 4


def test_activations_keep_what_is_above_the_calibrated_range():
    point = ValueAwareActivationQuantizer(4)
    x = gaussian(20_000).relu()
    values = point(x)
    kept = largest(x, large_count(x.numel()))
    assert torch.equal(values[kept], x[kept].half().float())
    assert float(point.limit) == float(x[~kept].max())
    assert len(values[~kept].unique()) == 16
    later = torch.tensor([0.0, 0.2, 50.0], requires_grad=True)
    point(later).sum().backward()
    assert float(point(later).detach()[2]) == 50.0 and later.grad.tolist() == [1.0, 1.0, 1.0]


def test_activations_with_negative_values_have_both_signs():
    point = ValueAwareActivationQuantizer(4)
    x = gaussian(20_000)
    values = point(x)
    assert (values * x >= 0).all() and (values - x).square().mean() < 0.01


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 8, 3, padding=1)
        self.norm, self.last = nn.BatchNorm2d(8), nn.Linear(8, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.first(x))
        x = F.relu(self.norm(self.second(x)) + x)
        return self.last(x.mean((2, 3)))


def gradients(net: nn.Module, x: Tensor, storage: ValueAwareStorage | None) -> dict[str, Tensor]:
    """Loss, the input's gradient and the parameters'."""
    net.zero_grad()
    x = x.clone().requires_grad_()
    if storage is None:
        loss = net(x).square().mean()
    else:
        with storage:
            loss = net(x).square().mean()
    loss.backward()
    named = {name: p.grad.clone() for name, p in net.named_parameters()}
    return {"loss": loss.detach(), "input": x.grad, **named}


@pytest.mark.parametrize("relu_aware", [False, True])
def test_only_gradients_of_weights_see_quantized_activations(relu_aware):
    torch.manual_seed(0)
    net, x = Net().train(), gaussian(4, 3, 8, 8)
    plain = gradients(net, x, None)
    stored = gradients(net, x, ValueAwareStorage(3, 0.02, relu_aware))
    for name in plain:
        same = torch.allclose(plain[name], stored[name], rtol=1e-5, atol=1e-7)
        assert same == (name not in ("first.weight", "second.weight", "last.weight")), name
        # The gradient of a bias in front of a batch norm is rounding noise, which has no direction.
        assert same or F.cosine_similarity(plain[name].flatten(), stored[name].flatten(), dim=0) > 0.95, name


def test_stored_bytes_are_those_of_the_formula():
    net, x = Net().train(), gaussian(4, 3, 8, 8)
    image, maps, pooled = 4 * 3 * 64, 4 * 8 * 64, 4 * 8
    v_quant, rv_quant = ValueAwareStorage(3, 0.02), ValueAwareStorage(3, 0.02, relu_aware=True)
    gradients(net, x, v_quant)
    gradients(net, x, rv_quant)
    layers = [stored_bytes(count, 3, 0.02) for count in (image, maps, pooled)]
    assert v_quant.bytes == sum(layers) + 2 * maps // 8
    # The first ReLU and the layer behind it keep one tensor; what the second gives no layer reads.
    assert rv_quant.bytes == sum(layers) + stored_bytes(maps, 3, 0.02)
    assert v_quant.plain_bytes == rv_quant.plain_bytes == 4 * (image + 2 * maps + pooled)


def test_the_name_says_the_very_share():
    kind = weight_quantizer("value-aware:0.0123456789")
    assert kind.name == "value-aware:0.0123457" and weight_quantizer(kind.name) is kind
    with pytest.raises(UserError, match="must lie in"):
        weight_quantizer("value-aware:0.99999999")


@pytest.mark.parametrize(("bits", "share", "wanted"), [(3, 0.02, 3.96), (2, 0.0, 2.0), (4, 0.01, 4.48)])
def test_bits_per_stored_element(bits, share, wanted):
    """b + r (16 + 32): what the sheet leaves out are the positions."""
    assert 8 * stored_bytes(1_000_000, bits, share) / 1e6 == pytest.approx(wanted, abs=1e-4)


def test_what_is_kept_takes_what_it_says():
    x = gaussian(3, 1000)
    for kept in (store(x, 3, 0.02), store(x.relu(), 3, 0.02), store_relu(x.relu(), 3, 0.02)):
        assert kept.bytes == stored_bytes(3000, 3, 0.02)
        assert int(kept.codes.max()) < 8


@pytest.mark.parametrize("bits", [2, 3, 4])
def test_relu_aware_codes_give_the_mask_exactly(bits):
    x = gaussian(5, 400).relu()
    x[0, :100] = 1e-6  # rounds to 0, and yet the gradient passes
    kept = store_relu(x, bits, 0.02)
    assert torch.equal(kept.passes(), (x > 0).float())
    small = ~largest(x, large_count(2000))
    assert len(kept.values()[small].unique()) <= 2**bits - 1
    assert (kept.values() - x)[small].abs().max() <= 0.5001 * float(kept.step)
    assert torch.equal(kept.values()[~small], x[~small].half().float())


def test_without_a_gradient_nothing_is_stored():
    storage = ValueAwareStorage()
    with storage, torch.no_grad():
        Net()(gaussian(2, 3, 8, 8))
    assert storage.bytes == storage.plain_bytes == 0


def owned(net: nn.Module) -> list[Tensor]:
    return [*net.parameters(), *net.buffers()]


def test_everything_that_a_step_keeps_is_counted_once():
    net, x = Net().train(), gaussian(4, 3, 8, 8)
    image, maps, pooled, statistics = 4 * 3 * 64, 4 * 8 * 64, 4 * 8, 2 * 8
    with SavedBytes(owned(net)) as plain:
        net(x).sum().backward()
    # The input, both ReLUs, what the batch norm reads and its statistics, what the last layer reads.
    assert plain.bytes == 4 * (image + 3 * maps + pooled + statistics)
    storage = ValueAwareStorage(3, 0.02, owned=owned(net))
    with storage:
        net(x).sum().backward()
    assert storage.rest.bytes == 4 * (maps + statistics) == plain.bytes - storage.plain_bytes
    assert storage.all_bytes == storage.bytes + storage.rest.bytes < plain.bytes / 2


@pytest.mark.parametrize("relu_aware", [False, True])
def test_activations_are_gone_before_the_backward_pass(relu_aware):
    seen: list[weakref.ref[Tensor]] = []
    net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Conv2d(4, 2, 3))
    net[2].register_forward_pre_hook(lambda _, given: seen.append(weakref.ref(given[0])))
    with ValueAwareStorage(3, 0.02, relu_aware):
        loss = net(gaussian(2, 3, 8, 8)).sum()
    assert loss.requires_grad and seen[0]() is None

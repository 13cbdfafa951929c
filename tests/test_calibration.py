"""Calibration on unlabeled data: batch-norm statistics and bias correction."""

import os
from copy import deepcopy
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from amc.compress import ActivationQuantization, ChannelPruning, WeightQuantization, apply
from amc.costs.symbolic import symbolic_costs
from amc.data import load_data
from amc.evaluate import Evaluator
from amc.knobs import BitsKnob, WidthKnob
from amc.models import build_model, load_weights
from amc.network import trace
from amc.pruning.importance import rank_channels
from amc.recovery.bias import correct_biases, output_means
from amc.recovery.calibrate import calibrate
from amc.space import Space
from amc.tasks import ClassificationTask
from tests.test_quantization import generator


def conv_bn(inputs: int, outputs: int) -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(inputs, outputs, 3, bias=False), nn.BatchNorm2d(outputs), nn.ReLU())


def small_net() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(conv_bn(3, 8), conv_bn(8, 8), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 4))


class CalledTwice(nn.Module):
    def __init__(self, norm: nn.Module):
        super().__init__()
        self.norm = norm

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([self.norm(x), self.norm(x + 5)])


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


def test_statistics_of_a_norm_that_is_called_twice_are_those_of_both_calls():
    norm = nn.BatchNorm2d(3)
    calibrate(CalledTwice(norm), batches())
    alone = nn.BatchNorm2d(3)
    calibrate(nn.Sequential(alone), [inputs for batch in batches() for inputs in (batch, batch + 5)])
    torch.testing.assert_close(norm.running_mean, alone.running_mean)
    torch.testing.assert_close(norm.running_var, alone.running_var)


@pytest.mark.parametrize("momentum", [0.1, None])
def test_calibration_restores_mode_and_momentum(momentum):
    model = small_net().train()
    model[0][1].momentum = momentum
    calibrate(model, batches())
    assert not any(module.training for module in model.modules())
    assert (model[0][1].momentum, model[1][1].momentum) == (momentum, 0.1)


def test_dropout_drops_nothing_while_statistics_are_taken():
    plain = small_net()
    dropping = nn.Sequential(nn.Dropout(0.5), nn.Dropout2d(0.5), deepcopy(plain)).train()
    calibrate(plain, batches())
    calibrate(dropping, batches())
    assert torch.equal(dropping[2][0][1].running_mean, plain[0][1].running_mean)
    assert torch.equal(dropping[2][0][1].running_var, plain[0][1].running_var)


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
    compressors = [pruning, WeightQuantization(knobs[1]), ActivationQuantization(knobs[2])]
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
    compressors = [WeightQuantization(knobs[0]), ActivationQuantization(knobs[1])]
    judge = Evaluator(network, space, task, compressors, symbolic_costs(space), task.calibration())
    original = accuracy(network.module)
    assert original > 0.90
    eight = space.largest.copy()
    eight[:, 1:] = 8
    for table in (space.largest, eight):
        assert accuracy(judge.compressed(space.policy(table))) > original - 0.01

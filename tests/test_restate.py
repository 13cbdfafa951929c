"""Batch norms in terms of chosen images."""

import pytest
import torch
from torch import nn

from amc.inference import fold_norms, inference_form
from amc.models import build_model
from amc.network import Network, trace
from amc.pruning.asymmetric import AsymmetricReconstruction
from amc.quantization.modules import with_quantized_weight
from amc.quantization.registry import weight_quantizer
from amc.recovery.calibrate import calibrate
from amc.recovery.restate import restate_norms
from tests.test_reconstruction import pruned_to


def images(count: int, seed: int = 0, shift: float = 0.5) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(count, 3, 32, 32, generator=generator) + shift


def difference(found: torch.Tensor, expected: torch.Tensor) -> float:
    return float(((found - expected).norm() / expected.norm()).detach())


def norms_of(module: nn.Module) -> list[nn.BatchNorm2d]:
    return [each for each in module.modules() if isinstance(each, nn.BatchNorm2d)]


@pytest.fixture
def network() -> Network:
    """ResNet-20 whose statistics are those of images, not the made-up ones of its initialisation."""
    torch.manual_seed(0)
    network = trace(build_model("resnet20"), images(1))
    calibrate(network.module, [images(32, seed=9, shift=0.0)])
    return network


def test_the_network_computes_what_it_did_and_its_statistics_are_those_of_the_images(network: Network):
    x, module = images(24), network.copy()
    before = module(x)
    restate_norms(module, x.split(8))
    assert torch.allclose(module(x), before, atol=1e-4, rtol=1e-4)
    first = norms_of(module)[0]
    seen: list[torch.Tensor] = []
    first.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    module(x)
    assert torch.allclose(first.running_mean, seen[0].mean((0, 2, 3)), atol=1e-5)
    assert torch.allclose(first.running_var, seen[0].var((0, 2, 3), correction=0), rtol=1e-3)


def test_few_images_change_an_uncompressed_network_only_unless_its_norms_are_in_terms_of_them(
    network: Network,
):
    few, others = images(6), images(64, seed=3, shift=0.0)
    expected = network.module(others)
    changes = []
    for restated in (False, True):
        module = network.copy()
        if restated:
            restate_norms(module, [few])
        calibrate(module, [few])
        changes.append(difference(module(others), expected))
    assert changes[1] < 0.02 * changes[0]


def test_a_quantized_network_is_repaired_better_from_few_images(network: Network):
    few, others = images(6), images(64, seed=3, shift=0.0)
    expected, quantizer = network.module(others), weight_quantizer("uniform")
    errors = []
    for restated in (False, True):
        module = network.copy()
        if restated:
            restate_norms(module, [few])
        for layer in network.layers[1:-1]:
            dense = module.get_submodule(layer.name)
            assert isinstance(dense, nn.Conv2d)
            quantized = with_quantized_weight(dense, quantizer.fitted(dense.weight, 4)).eval()
            module.set_submodule(layer.name, quantized)
        calibrate(module, [few])
        fast = inference_form(module)
        fold_norms(fast)
        errors.append(difference(fast(others), expected))
    assert errors[1] < 0.5 * errors[0]


@pytest.mark.parametrize("settings", [{}, {"affine": False}, {"bias": False}])
def test_norms_get_what_they_lack(settings: dict[str, bool]):
    x = images(8)
    module = nn.Sequential(nn.BatchNorm2d(3, **settings), nn.ReLU()).eval()
    before = module(x)
    restate_norms(module, [x])
    assert torch.allclose(module(x), before, atol=1e-5)
    calibrate(module, [x])
    assert torch.allclose(module(x), before, atol=1e-5)


def test_norms_without_statistics_stay_as_they_are():
    module = nn.Sequential(nn.BatchNorm2d(3, track_running_stats=False)).eval()
    before = {name: value.clone() for name, value in module.state_dict().items()}
    restate_norms(module, [images(8)])
    assert all(torch.equal(value, before[name]) for name, value in module.state_dict().items())


def test_norms_that_share_a_scale_are_told_apart():
    x = images(8)
    module = nn.Sequential(nn.BatchNorm2d(3), nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3)).eval()
    module[2].weight, module[2].bias = module[0].weight, module[0].bias
    before = module(x)
    restate_norms(module, [x])
    assert torch.allclose(module(x), before, atol=1e-4)


def test_few_values_in_front_of_a_norm_cancel_exactly():
    module = nn.Sequential(nn.Flatten(), nn.Linear(3 * 32 * 32, 5), nn.BatchNorm1d(5)).eval()
    x = images(4)
    before = module(x)
    restate_norms(module, [x])
    calibrate(module, [x])
    assert torch.allclose(module(x), before, atol=1e-4)


def test_a_channel_that_is_always_the_same_does_not_blow_up():
    module = nn.Sequential(nn.BatchNorm2d(3)).eval()
    x = images(8)
    x[:, 1] = 2.0
    before = module(x)
    restate_norms(module, [x])
    assert torch.allclose(module(x), before, atol=1e-4) and not any(
        value.isnan().any() for value in module.state_dict().values()
    )


def test_a_reconstruction_repairs_from_its_own_images_whatever_the_norms_were_in_terms_of(network: Network):
    batches, few = list(images(48, seed=5).split(16)), [images(3, seed=7)]
    outputs = []
    for terms in ([], few):
        restate_norms(network.module, terms)
        refits = AsymmetricReconstruction.of(network, batches, positions=8)
        pruned, positions = pruned_to(network, 0.5)
        assert refits(pruned, network, positions)
        outputs.append(pruned(batches[0]))
    assert difference(outputs[1], outputs[0]) < 0.01


def test_where_nothing_was_lost_a_reconstruction_changes_nothing(network: Network):
    batches = list(images(48, seed=5).split(16))
    refits = AsymmetricReconstruction.of(network, batches, positions=8)
    model = network.copy()
    kept = {name: model.get_submodule(name) for name in refits.norms}
    assert not refits(model, network, {})
    assert all(model.get_submodule(name) is norm for name, norm in kept.items())

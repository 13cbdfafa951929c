"""The form in which networks are calibrated and scored computes what the plain network does."""

import pytest
import torch
from torch import Tensor, fx, nn

from amc.graph import trace_graph
from amc.inference import fold_norms, inference_form, take_calibration
from amc.network import Network
from amc.padding import pad_channels, padded
from amc.pruning.importance import kept_channels, rank_channels
from amc.quantization.modules import ActivationQuantizer, UniformWeightQuantizer, with_quantized_weight
from amc.recovery.calibrate import calibrate
from amc.slicing import apply_slices, kept_positions

MODELS = ("concatnet", "digitsnet", "mobilenet_v1", "mobilenet_v2", "resnet20", "vgg16")


def pruned(network: Network) -> fx.GraphModule:
    """Every group without a third of its channels, so that hardly any width is a multiple of 8."""
    ranking = rank_channels(network, "l1")
    kept = kept_channels(ranking, {name: max(1, len(order) * 2 // 3) for name, order in ranking.items()})
    model = network.copy()
    apply_slices(model, kept_positions(network.groups, kept, network.sizes))
    return model


def images(network: Network, count: int) -> Tensor:
    shape = network.example.shape[1:]
    return torch.randn(count, *shape, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("name", MODELS)
def test_it_computes_what_the_pruned_network_does_before_and_after_calibration(name, traced):
    network = traced(name)
    model, x = pruned(network), images(network, 12)
    fast = inference_form(model)
    with torch.no_grad():
        torch.testing.assert_close(fast(x), model(x), rtol=1e-4, atol=1e-4)
    plain = inference_form(model)
    calibrate(model, [x[:6], x[6:]])
    calibrate(plain, [x[:6], x[6:]])
    fold_norms(plain)
    with torch.no_grad():
        expected, found = model(x), plain(x)
    scale = float(expected.abs().max())
    assert float((found - expected).abs().max()) <= 1e-3 * scale
    assert torch.equal(found.argmax(1), expected.argmax(1))


@pytest.mark.parametrize("name", MODELS[1:])
def test_every_inner_width_becomes_a_multiple_of_eight(name, traced):
    fast = inference_form(pruned(traced(name)))
    widths = [module.out_channels for module in fast.modules() if isinstance(module, nn.Conv2d)]
    assert {width % 8 for width in widths} == {0}


def test_a_concatenation_is_not_padded_and_still_right(traced):
    model = pruned(traced("concatnet"))
    before = [module.out_channels for module in model.modules() if isinstance(module, nn.Conv2d)]
    assert not pad_channels(model)
    after = [module.out_channels for module in model.modules() if isinstance(module, nn.Conv2d)]
    assert after == before


@pytest.mark.parametrize("width", [1, 7, 8, 9])
def test_padding_rounds_up_to_eight(width):
    assert padded(width) == (8 if width <= 8 else 16)


class Odd(nn.Module):
    """Ends in a convolution: its outputs are the network's, and none may be added."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 5, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(x)


def test_outputs_of_the_network_are_never_padded():
    model, x = trace_graph(Odd()), torch.randn(2, 3, 8, 8)
    assert not pad_channels(model)
    with torch.no_grad():
        torch.testing.assert_close(inference_form(model)(x), model(x))


def test_the_model_takes_over_what_was_found_out(traced):
    network = traced("digitsnet")
    model, twin, x = pruned(network), pruned(network), images(network, 8)
    fast = inference_form(model)
    calibrate(fast, [x])
    take_calibration(model, fast)
    calibrate(twin, [x])
    for (name, found), expected in zip(model.state_dict().items(), twin.state_dict().values(), strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-4, msg=name)


def test_quantized_layers_are_quantized_once_and_alike(traced):
    network = traced("digitsnet")
    model, x = pruned(network), images(network, 8)
    for layer in network.layers:
        module = model.get_submodule(layer.name)
        quantizer = UniformWeightQuantizer(4, module.weight.shape[0])
        quantizer.fit(module.weight)
        model.set_submodule(layer.name, with_quantized_weight(module, quantizer))
    for point in network.points:
        model.set_submodule(point.name, ActivationQuantizer(8))
    fast = inference_form(model)
    assert not any(isinstance(module, UniformWeightQuantizer) for module in fast.modules())
    calibrate(fast, [x])
    take_calibration(model, fast)
    fold_norms(fast)
    with torch.no_grad():
        found, expected = fast(x), model(x)
    step = float(expected.abs().max()) / 20  # float noise may move a value over a rounding boundary
    assert float((found - expected).abs().max()) < step

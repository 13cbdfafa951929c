"""Scattering as fixed convolutions against kymatio, and networks that read it."""

import builtins
from dataclasses import replace
from pathlib import Path

import onnx
import pytest
import torch
from torch import Tensor

from agents.compress import compress
from agents.config import SearchConfig
from amc.compress import ActivationQuantization, WeightQuantization, apply
from amc.costs.symbolic import symbolic_costs
from amc.data import load_data
from amc.errors import UserError
from amc.export import check_export, export_onnx
from amc.export.tflite import export_tflite
from amc.graph import FixedStage
from amc.knobs import BITS, BitsKnob, WidthKnob
from amc.models import build_model, list_models, load_weights, save_weights
from amc.network import Network, trace
from amc.package import Architecture, Package, kept_by, load_package, save_package
from amc.package_form import packed_form
from amc.recovery.calibrate import calibrate
from amc.scattering import Scattering, expansion_notes, make_plan
from amc.slicing import clone_module
from amc.space import Space
from scripts import pretrain

pytest.importorskip("kymatio.scattering2d.filter_bank")


def images(*shape: int) -> Tensor:
    """Normalised pixels reach about 2.5."""
    return torch.randn(*shape, generator=torch.Generator().manual_seed(0)).clamp(-2.5, 2.5)


def by_input(coefficients: Tensor, channels: int, scales: int) -> Tensor:
    """In kymatio's order, [N, C, 1 + 8 J, h, w]."""
    order0, order1 = coefficients[:, :channels, None], coefficients[:, channels:]
    first = order1.unflatten(1, (scales, channels, 8)).transpose(1, 2).flatten(2, 3)
    return torch.cat([order0, first], dim=2)


def reference(x: Tensor, scales: int) -> Tensor:
    # The front end alone: the package's umbrella modules do not import with the SciPy of today.
    from kymatio.scattering2d.frontend.torch_frontend import ScatteringTorch2D

    return ScatteringTorch2D(scales, tuple(x.shape[2:]), max_order=1)(x.contiguous())


@pytest.mark.parametrize(("scales", "shape"), [(1, (32, 32)), (2, (32, 32)), (3, (32, 32)), (2, (24, 40))])
def test_coefficients_equal_those_of_kymatio(scales: int, shape: tuple[int, int]):
    x = images(2, 3, *shape)
    ours = Scattering(scales)(x)
    cells = tuple(side >> scales for side in shape)
    assert ours.shape == (2, 3 * (1 + 8 * scales), *cells)
    expected = reference(x, scales)
    assert (by_input(ours, 3, scales) - expected).abs().max() < 1e-4
    assert expected[:, :, 1:].abs().mean() > 0.01  # the modulus part is no matter of tolerance


@pytest.mark.slow
@pytest.mark.parametrize(("scales", "side"), [(2, 64), (3, 64), (4, 32)])
def test_coefficients_equal_those_of_kymatio_for_larger_images_and_cells(scales: int, side: int):
    x = images(2, 3, side, side)
    assert (by_input(Scattering(scales)(x), 3, scales) - reference(x, scales)).abs().max() < 1e-4


def test_coefficients_scale_with_the_image_and_forget_its_sign():
    stage, x = Scattering(2), images(2, 1, 16, 16)
    plain = stage(x)
    torch.testing.assert_close(stage(3 * x), 3 * plain, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(stage(-x)[:, 1:], plain[:, 1:], atol=1e-6, rtol=1e-6)


def test_a_constant_image_has_no_waves():
    coefficients = Scattering(2)(torch.full((1, 1, 16, 16), 2.0))
    assert coefficients[:, 1:].abs().max() < 1e-3
    assert torch.allclose(coefficients[:, 0], torch.tensor(2.0), atol=1e-3)


def test_scattering_never_spreads_images_apart():
    x, y = images(1, 1, 32, 32), images(2, 1, 32, 32)[1:]
    stage = Scattering(2)
    assert (stage(x) - stage(y)).norm() * 4 <= (x - y).norm()


def test_a_shift_changes_coefficients_less_than_pixels():
    smooth = torch.nn.functional.avg_pool2d(images(1, 1, 36, 36), 5, stride=1)
    shifted = smooth.roll(1, dims=3)
    stage = Scattering(2)
    pixels = (smooth - shifted).norm() / smooth.norm()
    assert (stage(smooth) - stage(shifted)).norm() / stage(smooth).norm() < 0.7 * pixels


def test_gradients_reach_the_pixels():
    x = images(1, 1, 8, 8).double().requires_grad_()
    stage = Scattering(1)
    assert torch.autograd.gradcheck(stage, (x,), eps=1e-6, atol=1e-4)
    blank = torch.zeros(1, 1, 8, 8, requires_grad=True)
    stage(blank).sum().backward()
    assert blank.grad is not None and blank.grad.isfinite().all()


@pytest.mark.parametrize(("scales", "ratio"), [(1, 16 / 36), (2, 16 / 17), (3, 2.56), (4, 7.7576)])
def test_compression_is_that_of_the_paper(scales: int, ratio: float):
    assert Scattering(scales).compression() == pytest.approx(ratio, abs=1e-3)


def test_expanding_the_data_is_said():
    (note,) = expansion_notes(build_model("scattering_resnet_j2", width=0.125))
    assert "J = 2 expands the data: 1.06 coefficients for each number" in note
    assert expansion_notes(build_model("scattering_resnet_j3", width=0.125)) == ()
    assert expansion_notes(build_model("strided_resnet_j2", width=0.125)) == ()


def test_macs_are_those_of_the_convolutions_that_run(monkeypatch: pytest.MonkeyPatch):
    total, conv2d = 0, torch.nn.functional.conv2d

    def counted(x: Tensor, weight: Tensor, **settings: object) -> Tensor:
        nonlocal total
        result = conv2d(x, weight, **settings)  # type: ignore[arg-type]
        total += weight[0].numel() * result.numel()
        return result

    stage = Scattering(2)
    expected = stage.macs((1, 3, 32, 32))
    monkeypatch.setattr(torch.nn.functional, "conv2d", counted)
    stage(images(1, 3, 32, 32))
    assert total == expected
    assert stage.macs((7, 3, 32, 32)) == expected


@pytest.mark.parametrize(("scales", "side"), [(2, 30), (3, 8), (3, 4)])
def test_images_of_a_wrong_size_are_refused_in_one_sentence(scales: int, side: int):
    with pytest.raises(UserError, match="multiples of"):
        Scattering(scales)(torch.zeros(1, 1, side, side))


def test_without_kymatio_the_error_names_the_extra(monkeypatch: pytest.MonkeyPatch):
    original = builtins.__import__

    def without(name: str, *rest: object) -> object:
        if name.startswith("kymatio"):
            raise ImportError(name)
        return original(name, *rest)  # type: ignore[arg-type]

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(UserError, match=r'pip install "amc-compress\[scattering\]"'):
        build_model("scattering_resnet_j2")


def hybrid(scales: int = 2, channels: int = 1) -> Network:
    torch.manual_seed(0)
    model = build_model(f"scattering_resnet_j{scales}", in_channels=channels, width=0.125)
    for module in model.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            torch.nn.init.uniform_(module.running_var, 0.5, 1.5)
            torch.nn.init.normal_(module.running_mean, std=0.2)
    return trace(model, images(1, channels, 32, 32))


def test_the_stage_is_frozen_and_its_macs_count():
    network = hybrid()
    stage = network.module.get_submodule("front")
    assert isinstance(stage, FixedStage)
    assert network.layers[0].name == "conv1"
    assert not any(member.module.startswith("front") for group in network.groups for member in group.members)
    assert not any(group.frozen for group in network.groups if group.name != "linear")
    assert network.fixed_macs == stage.macs((1, 1, 32, 32)) > 0
    assert network.macs == network.fixed_macs + sum(layer.macs for layer in network.layers)
    knobs = [WidthKnob(), *(BitsKnob(name, network, BITS) for name in ("weight_bits", "activation_bits"))]
    space = Space(network, knobs)
    costs = symbolic_costs(space)
    assert costs["macs"].of(space.original()) == network.macs
    assert costs["macs"].lower_bound(space.empty()) > network.fixed_macs
    assert costs["bops"].of(space.original()) == network.macs * 32 * 32


def test_nothing_of_the_stage_is_stored(tmp_path: Path):
    model = build_model("scattering_resnet_j2", width=0.125)
    assert not any(name.startswith("front") for name in model.state_dict())
    assert not any(name.startswith("front") for name in hybrid().module.state_dict())
    save_weights(model, tmp_path / "weights.safetensors")
    other = build_model("scattering_resnet_j2", width=0.125)
    load_weights(other, tmp_path / "weights.safetensors")
    x = images(1, 3, 32, 32)
    assert torch.equal(other.eval()(x), model.eval()(x))


def test_a_copy_of_the_network_computes_the_same():
    network, x = hybrid(), images(2, 1, 32, 32)
    assert torch.equal(clone_module(network.module)(x), network.module(x))


@pytest.mark.parametrize(("scales", "channels"), [(2, 1), (2, 3), (3, 3)])
def test_the_exported_file_computes_the_coefficients(scales: int, channels: int, tmp_path: Path):
    network, x = hybrid(scales, channels), images(4, channels, 32, 32)
    exported = export_onnx(network.module, x, tmp_path / "model.onnx")
    assert exported.exporter == "amc"
    for figures in check_export(exported.path, network.module, x).values():
        assert figures.relative_error < 1e-4
    ops = {node.op_type for node in onnx.load(exported.path).graph.node}
    assert {"Conv", "Sqrt", "Gather"} <= ops


def test_the_exported_stage_alone_equals_kymatio(tmp_path: Path):
    from amc.export.check import run_onnxruntime, run_openvino

    x = images(2, 2, 32, 32)
    stage = torch.fx.GraphModule(torch.nn.ModuleDict({"stage": Scattering(2)}), _one_node_graph())
    path = export_onnx(stage, x, tmp_path / "stage.onnx").path
    for run in (run_onnxruntime, run_openvino):
        coefficients = torch.from_numpy(run(path, x)[0])
        assert (by_input(coefficients, 2, 2) - reference(x, 2)).abs().max() < 1e-4


def _one_node_graph() -> torch.fx.Graph:
    graph = torch.fx.Graph()
    graph.output(graph.call_module("stage", (graph.placeholder("x"),)))
    return graph


def test_the_int8_file_quantizes_everything_behind_the_stage(tmp_path: Path):
    network, x = hybrid(), images(16, 1, 32, 32)
    knobs = [WidthKnob(), *(BitsKnob(name, network, BITS) for name in ("weight_bits", "activation_bits"))]
    space = Space(network, knobs)
    table = space.original()
    table[:, 1:] = [7, 8]
    compressors = [WeightQuantization(knobs[1]), ActivationQuantization(knobs[2])]
    model = apply(space.policy(table), network, compressors)
    calibrate(model, [x])
    exported = export_onnx(model, x, tmp_path / "model.onnx")
    assert exported.quantization["weights"] == {7: len(network.layers)}
    for figures in check_export(exported.path, model, x).values():
        assert figures.relative_error < 0.05
    codes = [node for node in onnx.load(exported.path).graph.node if node.op_type == "QuantizeLinear"]
    assert codes and "input" not in {node.input[0] for node in codes}


def test_tflite_has_no_translation_and_says_so(tmp_path: Path):
    """Its gathering operator runs outside of XNNPACK."""
    with pytest.raises(UserError, match="no exact translation of Scattering"):
        export_tflite(hybrid().module, images(1, 1, 32, 32), tmp_path / "model.tflite")


def test_filters_are_stored_once_for_all_colours(tmp_path: Path):
    sizes = [
        export_onnx(hybrid(3, channels).module, images(1, channels, 32, 32), tmp_path / "model.onnx").size
        for channels in (1, 3)
    ]
    waves = sum(taps.weight.numel() for taps in make_plan(32, 32, 3).waves)
    assert sizes[1] - sizes[0] < 4 * waves / 2


def test_the_pixel_twins_have_the_same_trunk():
    assert {"scattering_resnet_j2", "scattering_resnet_j3", "strided_resnet_j2", "strided_resnet_j3"} <= set(
        list_models()
    )
    for scales in (2, 3):
        names = [
            {
                name: tuple(p.shape)
                for name, p in build_model(f"{kind}_resnet_j{scales}").named_parameters()
                if not name.startswith("front")
            }
            for kind in ("scattering", "strided")
        ]
        assert names[0] == names[1]


def test_a_hybrid_is_trained_searched_and_packaged(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
):
    digits, weights = load_data("digits", side=16), tmp_path / "hybrid.safetensors"
    few = {name: digits.split(name).take(torch.arange(96)) for name in ("train", "reward", "test")}
    data = replace(digits, **few, _normalised={})
    monkeypatch.setattr(pretrain, "load_data", lambda *_: data)
    pretrain.main(
        pretrain.Pretrain("scattering_resnet_j2", epochs=1, batch_size=32, width=0.125, out=weights)
    )
    assert "expands the data" in capsys.readouterr().out
    model = build_model("scattering_resnet_j2", 10, 1, 0.125)
    load_weights(model, weights)
    result = compress(model, data, "params=0.5", search=SearchConfig(evaluations=3), folder=tmp_path / "run")
    run, policy = result.run, result.policy
    assert any("expands the data" in note for note in run.problem.notes)
    assert run.evaluator.costs_of(policy)["params"] <= 0.5 * run.problem.original_costs["params"]
    kept = kept_by(run.evaluator.compressors, run.network, policy)
    known = Architecture("scattering_resnet_j2", 10, (1, 16, 16), 0.125)
    path = save_package(tmp_path, Package(result.model, policy, kept, known), run.network)
    x = images(4, 1, 16, 16)
    with torch.no_grad():
        assert torch.equal(load_package(path).module(x), packed_form(result.model, run.network)(x))

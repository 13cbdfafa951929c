"""Exported int8 files: codes, fusion, mixed precision, what is refused, and the fallback."""

import importlib.util
from collections import Counter
from pathlib import Path

import numpy as np
import onnx
import openvino
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from amc.errors import UserError
from amc.export import check_export, export_onnx
from amc.export.check import run_onnxruntime, run_openvino
from amc.export.folding import fit_bias_grid, refine_codes
from amc.graph import trace_graph
from amc.quantization.modules import (
    ActivationQuantizer,
    QuantizedConv2d,
)
from tests.test_export import (
    NETWORKS,
    WEIGHT_BITS,
    ResNet,
    conv_bn,
    images,
    initializers,
    optimized_operators,
    prepared,
    quantize,
    vgg,
)


@pytest.mark.parametrize("name", NETWORKS)
def test_int8_file_agrees_with_the_simulation(name: str, tmp_path: Path) -> None:
    net = trace_graph(quantize(prepared(NETWORKS[name])))
    exported = export_onnx(net, images(1), tmp_path / "model.onnx")
    assert exported.quantized and set(exported.quantization["weights"]) == {WEIGHT_BITS}
    onnx.checker.check_model(exported.path, full_check=True)
    expected = net(images()).detach().numpy()
    assert len(set(expected.argmax(1))) > 2, "the images must not all look the same to the network"
    for figures in check_export(exported.path, net, images()).values():
        # Random networks have near ties: over seeds 0.95 to 1 of the images agree.
        assert figures.relative_error < 0.03 and figures.same_decisions >= 0.95


@pytest.mark.parametrize("bits", [8, 4])
@pytest.mark.parametrize("name", NETWORKS)
def test_int8_codes_are_those_of_the_simulation(name: str, bits: int, tmp_path: Path) -> None:
    """Rounding the bias to int32 is the only difference by design; without biases there is none.

    What is left are values on the border of two codes, and OpenVINO's sums, which keep one operand unrounded.
    """
    net = prepared(NETWORKS[name])
    for module in net.modules():
        if isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d):
            module.running_mean.zero_()
        if getattr(module, "bias", None) is not None:
            nn.init.zeros_(module.bias)
    net = trace_graph(quantize(net, min(bits, WEIGHT_BITS), bits))
    path = export_onnx(net, images(1), tmp_path / "model.onnx").path
    expected = net(images()).detach().numpy()
    has_sums = name in ("resnet", "mobilenet")
    for run in (run_onnxruntime,) if has_sums else (run_onnxruntime, run_openvino):
        (actual,) = run(path, images())
        same = np.abs(actual - expected).max(axis=1) < 1e-3 * np.abs(expected).max()
        assert same.mean() >= 0.8


def test_every_layer_of_a_resnet_runs_in_int8(tmp_path: Path) -> None:
    net = trace_graph(quantize(prepared(ResNet)))
    path = export_onnx(net, images(1), tmp_path / "model.onnx").path
    operators = optimized_operators(path)
    assert operators["QLinearConv"] == 7 + 2 and operators["QLinearAdd"] == 3 and operators["QGemm"] == 1
    assert not {"Conv", "FusedConv", "Add", "Gemm", "Relu"} & set(operators)
    assert operators["QuantizeLinear"] == 1
    precisions = openvino_precisions(path)
    assert set(precisions["Convolution"]) == {"u8"} and set(precisions["FullyConnected"]) == {"u8"}


@pytest.mark.parametrize("channels", [10, 11])
def test_a_layer_with_as_many_channels_as_there_are_classes_runs_in_int8(
    channels: int, tmp_path: Path
) -> None:
    """OpenVINO takes a convolution to floats that shares its zero points with a linear layer."""
    parts: list[nn.Module] = [ActivationQuantizer()]
    for inputs, outputs in ((3, 16), (16, channels), (channels, 16)):
        parts += [*conv_bn(inputs, outputs), nn.ReLU(), ActivationQuantizer()]
    head = [nn.AdaptiveAvgPool2d(1), nn.Flatten(), ActivationQuantizer(), nn.Linear(16, 10)]
    model = nn.Sequential(*parts, *head)
    net = trace_graph(quantize(prepared(lambda: model)))
    path = export_onnx(net, images(1), tmp_path / "model.onnx").path
    assert openvino_precisions(path)["Convolution"] == 3 * ["u8"]


def openvino_precisions(path: Path) -> dict[str, list[str]]:
    """Layer type to the precisions of its layers, for one image as the target runs it."""
    core = openvino.Core()
    model = core.read_model(str(path))
    model.reshape({model.inputs[0]: [1, *list(model.inputs[0].partial_shape)[1:]]})
    compiled = core.compile_model(model, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    found: dict[str, list[str]] = {}
    for node in compiled.get_runtime_model().get_ops():
        info = node.get_rt_info()
        found.setdefault(info["layerType"].astype(str), []).append(info["runtimePrecision"].astype(str))
    return found


def test_codes_survive_a_negative_batch_norm_factor(tmp_path: Path) -> None:
    net = quantize(prepared(lambda: nn.Sequential(ActivationQuantizer(), *conv_bn(3, 4))), weight_bits=4)
    conv, norm = net[1], net[2]
    assert isinstance(conv, QuantizedConv2d) and (norm.weight < 0).any() and (norm.weight > 0).any()
    path = export_onnx(trace_graph(net), images(1), tmp_path / "model.onnx").path
    stored = next(a for a in initializers(path) if a.dtype == np.int8 and a.ndim == 4)
    signs = norm.weight.detach().sign().numpy().reshape(-1, 1, 1, 1)
    finer = 9  # codes -7..7 leave room for -63..63
    np.testing.assert_array_equal(stored, conv.quantizer.codes(conv.weight).numpy() * signs * finer)
    factor = (norm.weight / torch.sqrt(norm.running_var + norm.eps)).abs() * conv.quantizer.scale / finer
    scales = [a for a in initializers(path) if a.dtype == np.float32 and a.shape == (4,)]
    assert any(np.allclose(a, factor.detach().numpy(), rtol=1e-6) for a in scales)
    assert all(f.relative_error < 1e-3 for f in check_export(path, net, images(20)).values())


def test_few_bits_leave_room_for_a_finer_bias_grid() -> None:
    codes = np.array([[1, -1], [7, -2], [63, 5], [-127, 127], [0, 0]], dtype=np.int8)
    scale = np.array([0.63, 0.9, 0.5, 0.25, 0.3])
    fine, fine_scale = refine_codes(codes, scale)
    np.testing.assert_array_equal(fine, [[63, -63], [63, -18], [63, 5], [-127, 127], [0, 0]])
    np.testing.assert_allclose(fine_scale, [0.01, 0.1, 0.5, 0.25, 0.3 / 63])
    assert fine.dtype == np.int8


def test_a_vanishing_batch_norm_factor_keeps_its_bias() -> None:
    codes, scale = np.array([[[[50]]], [[[50]]]], dtype=np.int8), np.array([1e-2, 1e-20])
    new_codes, new_scale, bias = fit_bias_grid(codes, scale, np.array([0.5, 0.5]), input_scale=0.1)
    np.testing.assert_allclose(bias * new_scale * 0.1, 0.5, rtol=1e-3)
    assert new_codes[0, 0, 0, 0] == 50 and new_scale[0] == 1e-2 and new_codes[1, 0, 0, 0] == 0


def test_four_bit_activations_are_exact(tmp_path: Path) -> None:
    net = nn.Sequential(ActivationQuantizer(8), ActivationQuantizer(4), nn.Identity())
    net[1].scale.fill_(0.25)
    net[1].zero_point.fill_(6)
    net[0].scale.fill_(0.0625)
    net[0].zero_point.fill_(100)
    net[0].calibrating = net[1].calibrating = False
    x = torch.linspace(-9, 9, 3 * 256).reshape(1, 3, 16, 16)
    path = export_onnx(trace_graph(net), x, tmp_path / "model.onnx").path
    for run in (run_onnxruntime, run_openvino):
        np.testing.assert_array_equal(run(path, x)[0], net(x).numpy())
    assert net(x).min() == -1.5 and net(x).max() == 2.25


def test_four_bit_network_runs_in_int8_kernels(tmp_path: Path) -> None:
    net = trace_graph(quantize(prepared(vgg), weight_bits=4, activation_bits=4))
    exported = export_onnx(net, images(1), tmp_path / "model.onnx")
    assert exported.quantization == {"weights": {4: 4}, "activations": {4: 4}}
    operators = optimized_operators(exported.path)
    assert operators["QLinearConv"] == 2 and operators["Conv"] == 0


def test_mixed_precision(tmp_path: Path) -> None:
    """Quantized weights on a float input, and float weights on a quantized one."""
    net = quantize(prepared(vgg))
    net[0].bits = 32
    net[12] = nn.Flatten()
    quantized = net[6]
    net[6] = nn.Conv2d(16, 32, 3, padding=1, bias=False)
    net[6].weight = quantized.weight
    traced = trace_graph(net)
    path = export_onnx(traced, images(1), tmp_path / "model.onnx").path
    for figures in check_export(path, traced, images()).values():
        assert figures.same_decisions >= 0.98 and figures.relative_error < 0.02


def test_each_tensor_is_quantized_once(tmp_path: Path) -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.second, self.off = (ActivationQuantizer(b) for b in (8, 8, 32))
            self.left, self.right = nn.Conv2d(3, 4, 1), nn.Conv2d(3, 4, 1)

        def forward(self, x: Tensor) -> Tensor:
            x = self.second(self.off(self.first(F.relu(x))))
            return self.left(x) + self.right(F.max_pool2d(x, 1))

    net = Net()
    net(images())
    net.second.load_state_dict(net.first.state_dict())
    path = export_onnx(trace_graph(net), images(1), tmp_path / "model.onnx").path
    nodes = Counter(node.op_type for node in onnx.load(path).graph.node)
    # One pair for the input, and one that says that pooling kept the codes.
    assert nodes["QuantizeLinear"] == 2 and nodes["Relu"] == 0


@pytest.mark.parametrize(("zero_point", "kept"), [(0, 0), (3, 1)])
def test_relu_is_dropped_only_where_quantization_repeats_it(
    zero_point: int, kept: int, tmp_path: Path
) -> None:
    net = nn.Sequential(nn.ReLU(), ActivationQuantizer(8))
    net[1].calibrating = False
    net[1].scale.fill_(0.02)
    net[1].zero_point.fill_(zero_point)
    path = export_onnx(trace_graph(net), images(1), tmp_path / "model.onnx").path
    assert Counter(n.op_type for n in onnx.load(path).graph.node)["Relu"] == kept
    np.testing.assert_allclose(run_onnxruntime(path, images(4))[0], net(images(4)).numpy(), atol=1e-6)


@pytest.mark.parametrize(("largest", "kept"), [(6.0, 0), (5.0, 0), (7.0, 1)])
def test_relu6_is_dropped_only_where_the_grid_ends_first(largest: float, kept: int, tmp_path: Path) -> None:
    net = nn.Sequential(nn.ReLU6(), ActivationQuantizer(8))
    net[1].calibrating = False
    net[1].scale.fill_(largest / 255)
    x = images(4) * 5
    path = export_onnx(trace_graph(net), x, tmp_path / "model.onnx").path
    assert Counter(n.op_type for n in onnx.load(path).graph.node)["Clip"] == kept
    np.testing.assert_allclose(run_onnxruntime(path, x)[0], net(x).numpy(), atol=1e-6)


# ---- the file -------------------------------------------------------------------------------------------


def test_metadata_and_no_waste(tmp_path: Path) -> None:
    net = trace_graph(quantize(prepared(ResNet)))
    exported = export_onnx(net, images(1), tmp_path / "model.onnx", policy_digest="abc")
    model = onnx.load(exported.path)
    metadata = {entry.key: entry.value for entry in model.metadata_props}
    assert metadata["amc.policy"] == "abc" and metadata["amc.exporter"] == "amc"
    assert f'"{WEIGHT_BITS}": 8' in metadata["amc.quantization"] and model.producer_name == "amc"
    kept = [a for a in initializers(exported.path) if a.any()]  # every layer has zero points of its own
    contents = [(a.dtype.str, a.shape, a.tobytes()) for a in kept]
    assert len(contents) == len(set(contents)) and not model.graph.value_info
    weights = sum(p.numel() for p in net.parameters())
    assert exported.size == exported.path.stat().st_size < weights + 16_000


def test_failed_write_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    net, path = trace_graph(prepared(vgg)), tmp_path / "model.onnx"
    path.write_bytes(b"old")

    def crash(self: Path, target: Path) -> None:
        raise OSError("disk full")

    monkeypatch.setattr(Path, "replace", crash)
    with pytest.raises(OSError, match="disk full"):
        export_onnx(net, images(1), path)
    assert path.read_bytes() == b"old" and list(tmp_path.iterdir()) == [path]


def test_export_leaves_the_network_alone(tmp_path: Path) -> None:
    net = trace_graph(quantize(prepared(ResNet)))
    nodes, state = str(net.graph), {k: v.clone() for k, v in net.state_dict().items()}
    export_onnx(net, images(1), tmp_path / "model.onnx")
    assert str(net.graph) == nodes
    assert all(torch.equal(v, state[k]) for k, v in net.state_dict().items())


# ---- bad input and the fallback -------------------------------------------------------------------------


def test_bad_input_is_one_sentence(tmp_path: Path) -> None:
    path = tmp_path / "model.onnx"
    with pytest.raises(UserError, match="eval"):
        export_onnx(trace_graph(prepared(vgg)).train(), images(1), path)
    with pytest.raises(UserError, match="no scale yet"):
        export_onnx(trace_graph(nn.Sequential(ActivationQuantizer(8))), images(1), path)
    with pytest.raises(UserError, match=r"\[2, 5, 16, 16\]"):
        export_onnx(trace_graph(prepared(vgg)), torch.zeros(1, 5, 16, 16), path)
    assert not path.exists()


class Rolled(nn.Module):
    """Our writer has no torch.roll, and no subclass of a layer is taken for the layer."""

    def __init__(self) -> None:
        super().__init__()
        self.point, self.conv = ActivationQuantizer(), nn.Conv2d(3, 8, 3)
        self.pooled, self.classifier = ActivationQuantizer(), nn.Linear(8, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.roll(F.relu(self.conv(self.point(x))), 1, 1)
        return self.classifier(self.pooled(x.mean((2, 3))))


def test_missing_onnxscript_names_the_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"roll.*pip install"):
        export_onnx(trace_graph(prepared(Rolled)), images(1), tmp_path / "model.onnx")
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
def test_fallback_says_so(tmp_path: Path) -> None:
    net = trace_graph(prepared(Rolled))
    exported = export_onnx(net, images(1), tmp_path / "model.onnx")
    assert (exported.exporter, exported.unsupported) == ("torch", "roll")
    assert all(f.relative_error < 1e-4 for f in check_export(exported.path, net, images(5)).values())


@pytest.mark.slow
def test_fallback_quantizes_with_onnxruntime(tmp_path: Path) -> None:
    net = trace_graph(quantize(prepared(Rolled)))
    exported = export_onnx(net, images(1), tmp_path / "model.onnx", calibration=images())
    assert exported.exporter == "torch" and exported.quantized
    assert "QuantizeLinear" in {node.op_type for node in onnx.load(exported.path).graph.node}
    metadata = {entry.key: entry.value for entry in onnx.load(exported.path).metadata_props}
    assert metadata["amc.exporter"] == "torch (roll)"
    print(check_export(exported.path, net, images()))
    assert all(f.relative_error < 0.1 for f in check_export(exported.path, net, images()).values())

"""Exported files against the networks they came from, in both runtimes."""

import importlib.util
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import openvino
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from amc.errors import UserError
from amc.export import check_export, export_onnx
from amc.export.check import run_onnxruntime, run_openvino
from amc.export.folding import fit_bias_grid, refine_codes
from amc.graph import ChannelPad, trace_graph
from amc.quantization.modules import (
    ActivationQuantizer,
    QuantizedConv2d,
    UniformWeightQuantizer,
    with_quantized_weight,
)

WEIGHT_BITS = 7
"""CPUs without VNNI add pairs of 8-bit products in 16 bits, which saturates; 7-bit weights fit."""


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """Networks this small run slower on several threads, on a busy machine thirty times slower."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


# ---- networks -------------------------------------------------------------------------------------------


def conv_bn(inputs: int, outputs: int, kernel: int = 3, **settings: int) -> list[nn.Module]:
    return [nn.Conv2d(inputs, outputs, kernel, bias=False, **settings), nn.BatchNorm2d(outputs)]


def scattered_pad(inputs: int, outputs: int) -> ChannelPad:
    """What is left of a channel pad after pruning arbitrary channels on both sides."""
    pad = ChannelPad(inputs + 3, 5, 2 * outputs, stride=2)
    generator = torch.Generator().manual_seed(1)
    rows = torch.randperm(pad.out_channels, generator=generator)[:outputs].sort().values
    columns = torch.randperm(pad.in_channels, generator=generator)[:inputs].sort().values
    pad.weight = nn.Parameter(pad.weight[rows][:, columns], requires_grad=False)
    return pad


class ResidualBlock(nn.Module):
    def __init__(self, inputs: int, outputs: int, shortcut: nn.Module, stride: int) -> None:
        super().__init__()
        point = ActivationQuantizer
        self.first = nn.Sequential(*conv_bn(inputs, outputs, stride=stride, padding=1), nn.ReLU(), point())
        self.second = nn.Sequential(*conv_bn(outputs, outputs, padding=1), point())
        self.shortcut, self.out = shortcut, point()

    def forward(self, x: Tensor) -> Tensor:
        return self.out(F.relu(self.second(self.first(x)) + self.shortcut(x)))


class ResNet(nn.Module):
    """Seven convolutions, two channel pads, two sums a fully quantized runtime should run in int8."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(
            ActivationQuantizer(), *conv_bn(3, 16, padding=1), nn.ReLU(), ActivationQuantizer()
        )
        self.blocks = nn.Sequential(
            ResidualBlock(16, 16, nn.Identity(), 1),
            ResidualBlock(16, 32, ChannelPad(16, 8, 8, stride=2), 2),
            ResidualBlock(32, 24, scattered_pad(32, 24), 2),
        )
        self.point, self.classifier = ActivationQuantizer(), nn.Linear(24, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = self.point(self.blocks(self.stem(x)).mean((2, 3)))
        return self.classifier(x.view(x.size(0), -1))


class InvertedResidual(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        point = ActivationQuantizer
        self.body = nn.Sequential(
            *(*conv_bn(16, 48, 1), nn.ReLU6(), point()),
            *(*conv_bn(48, 48, 3, padding=1, groups=48), nn.ReLU6(), point()),
            *(*conv_bn(48, 16, 1), point()),
        )
        self.out = point()

    def forward(self, x: Tensor) -> Tensor:
        return self.out(x + self.body(x))


def mobilenet() -> nn.Module:
    point = ActivationQuantizer
    stem = [point(), *conv_bn(3, 16, 3, stride=2, padding=1), nn.ReLU6(), point()]
    head = [nn.AdaptiveAvgPool2d(1), point(), nn.Flatten(), nn.Dropout(0.2), nn.Linear(16, 10)]
    return nn.Sequential(*stem, InvertedResidual(), *head)


class ConcatNet(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        point = ActivationQuantizer
        self.stem = nn.Sequential(point(), *conv_bn(3, 16, padding=1), nn.ReLU(), point())
        self.left = nn.Sequential(*conv_bn(16, 8, 1), nn.ReLU(), point())
        self.right = nn.Sequential(*conv_bn(16, 16, padding=1), nn.ReLU(), point())
        self.joined, self.pooled, self.classifier = point(), point(), nn.Linear(24, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        x = self.joined(torch.cat([self.left(x), self.right(x)], 1))
        x = self.pooled(F.avg_pool2d(x, x.size(3)))
        return self.classifier(torch.flatten(x, 1))


def vgg() -> nn.Module:
    point = ActivationQuantizer
    return nn.Sequential(
        *(point(), nn.Conv2d(3, 16, 3, padding=1), nn.BatchNorm2d(16), nn.ReLU(), point(), nn.MaxPool2d(2)),
        *(*conv_bn(16, 32, padding=1), nn.ReLU(), point(), nn.MaxPool2d(3, 2, 1)),
        *(nn.AdaptiveAvgPool2d((4, 4)), nn.Flatten(), nn.Dropout(), nn.Linear(512, 32), nn.BatchNorm1d(32)),
        *(nn.ReLU(), point(), nn.Linear(32, 10)),
    )


class SqueezeExcite(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        point = ActivationQuantizer
        self.stem = nn.Sequential(point(), *conv_bn(3, 16, padding=1), nn.Hardswish(), point())
        self.gate = nn.Sequential(
            *(nn.AdaptiveAvgPool2d(1), point(), nn.Conv2d(16, 8, 1), nn.ReLU(), point()),
            *(nn.Conv2d(8, 16, 1), nn.Hardsigmoid()),
        )
        self.scaled, self.classifier = point(), nn.Linear(16, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        return self.classifier(self.scaled(x * self.gate(x)).mean([2, 3]))


NETWORKS = {
    "resnet": ResNet,
    "mobilenet": mobilenet,
    "concat": ConcatNet,
    "vgg": vgg,
    "squeeze_excite": SqueezeExcite,
}


def images(count: int = 100, size: int = 16) -> Tensor:
    """Low frequencies of random strength: images that a random network tells apart."""
    generator = torch.Generator().manual_seed(5)
    coarse = torch.randn(count, 3, 4, 4, generator=generator) + torch.randn(
        count, 3, 1, 1, generator=generator
    )
    return F.interpolate(coarse, size=(size, size), mode="bilinear")


def prepared(factory: type[nn.Module], seed: int = 0) -> nn.Module:
    """A random network in eval mode whose batch norms have statistics and factors of both signs."""
    torch.manual_seed(seed)
    net = factory()
    for module in net.modules():
        if isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d):
            nn.init.uniform_(module.weight, 0.4, 1.2)
            module.weight.data[::3] *= -1
            nn.init.normal_(module.bias, std=0.3)
            module.momentum = None
    with torch.no_grad():
        net.train()(images())
    return net.eval()


def quantize(net: nn.Module, weight_bits: int = WEIGHT_BITS, activation_bits: int = 8) -> nn.Module:
    """Quantize every layer and every point of a network, in place, and calibrate."""
    for name, module in list(net.named_modules()):
        if type(module) in (nn.Conv2d, nn.Linear):
            quantizer = UniformWeightQuantizer(weight_bits, module.weight.shape[0])
            quantizer.fit(module.weight)
            owner, _, attribute = name.rpartition(".")
            setattr(net.get_submodule(owner), attribute, with_quantized_weight(module, quantizer))
        if isinstance(module, ActivationQuantizer):
            module.bits, module.calibrating = activation_bits, True
    with torch.no_grad():
        net.eval()(images())
    return net


def optimized_operators(path: Path) -> Counter[str]:
    options = onnxruntime.SessionOptions()
    options.optimized_model_filepath = str(path.with_suffix(".optimized.onnx"))
    options.log_severity_level = 3
    onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    return Counter(node.op_type for node in onnx.load(options.optimized_model_filepath).graph.node)


def initializers(path: Path) -> list[np.ndarray]:
    return [onnx.numpy_helper.to_array(tensor) for tensor in onnx.load(path).graph.initializer]


# ---- floats ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", NETWORKS)
def test_float_file_equals_the_network(name: str, tmp_path: Path) -> None:
    net = trace_graph(prepared(NETWORKS[name]))
    exported = export_onnx(net, images(1), tmp_path / "model.onnx")
    assert exported.exporter == "amc" and not exported.quantized and exported.unsupported is None
    onnx.checker.check_model(exported.path, full_check=True)
    for figures in check_export(exported.path, net, images(20)).values():
        assert figures.relative_error < 1e-4 and figures.top1 == 1.0
    assert "BatchNormalization" not in optimized_operators(exported.path)


class Call(nn.Module):
    """A network around one function of x [N, 6, 8, 8]."""

    def __init__(self, function) -> None:
        super().__init__()
        self.function, self.offset = function, nn.Parameter(torch.randn(6, 1, 1))
        self.conv, self.norm = nn.Conv2d(3, 6, 3, padding="same"), nn.BatchNorm2d(6)

    def forward(self, x: Tensor) -> Tensor:
        # The sum keeps the batch norm from being folded.
        return self.function(self.norm(self.conv(x) + self.offset))


def channel_shuffle(x: Tensor) -> Tensor:
    n, c, h, w = x.size()
    return x.view(n, 2, c // 2, h, w).transpose(1, 2).contiguous().view(n, c, h, w)


FUNCTIONS = {
    "silu": lambda x: F.silu(x) + torch.sigmoid(x) * 2,
    "leaky_relu": lambda x: F.leaky_relu(x, 0.2) - x.relu(),
    "functional_gates": lambda x: F.hardswish(x) + F.hardsigmoid(x) + F.relu6(x),
    "hardtanh_clamp": lambda x: F.hardtanh(x, -0.5, 0.5) + x.clamp(min=0.1) + x.clamp(-1, 1),
    "arithmetic": lambda x: (2.0 - x) / 3 + x.mul(x).add(1).tanh(),
    "softmax": lambda x: F.softmax(x, dim=1),
    "max_pool": lambda x: F.max_pool2d(x, 3, 2, 1),
    "max_pool_ceil": nn.MaxPool2d(3, 2, ceil_mode=True),
    "avg_pool": lambda x: F.avg_pool2d(x, 3, stride=2, padding=1),
    "avg_pool_exclusive": nn.AvgPool2d(3, 2, 1, count_include_pad=False),
    "adaptive_tiles": nn.AdaptiveAvgPool2d((2, 4)),
    "mean_keepdim": lambda x: x.mean((-1, -2), keepdim=True),
    "mean_one_axis": lambda x: x.mean(3),
    "view": lambda x: x.view(x.size(0), -1),
    "view_minus_one": lambda x: x.reshape(-1, 6 * 8 * 8),
    "channel_shuffle": channel_shuffle,
    "permute": lambda x: x.permute(0, 2, 3, 1),
    "slices": lambda x: x[:, 1:4, ::2, ::2],
    "ellipsis": lambda x: x[..., 1:],
    "pad": lambda x: F.pad(x[:, :, ::2, ::2], (0, 1, 2, 0, 3, 3)),
    "chunk": lambda x: torch.cat([x.chunk(2, dim=1)[1], x.split([2, 4], dim=1)[0]], dim=1),
    "squeeze": lambda x: F.adaptive_avg_pool2d(x, 1).squeeze(-1).squeeze(-1),
    "two_outputs": lambda x: (x.mean((2, 3)), x),
}


@pytest.mark.parametrize("name", FUNCTIONS)
def test_operators(name: str, tmp_path: Path) -> None:
    net = trace_graph(prepared(lambda: Call(FUNCTIONS[name])))
    exported = export_onnx(net, images(1, 8), tmp_path / "model.onnx")
    assert exported.exporter == "amc"
    for figures in check_export(exported.path, net, images(3, 8)).values():
        assert figures.relative_error < 1e-4


def test_names_never_meet(tmp_path: Path) -> None:
    """SiLU becomes two nodes; the second one's name must not be that of a module."""

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.silu, self.silu_1, self.silu_2, self.input, self.output_1 = (nn.SiLU() for _ in range(5))

        def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
            x = self.silu(self.silu_1(self.silu_2(x)))
            return self.input(x), self.output_1(x)

    net = trace_graph(Net())
    path = export_onnx(net, images(1), tmp_path / "model.onnx").path
    assert all(f.relative_error < 1e-4 for f in check_export(path, net, images(2)).values())


def test_fixed_and_symbolic_batch(tmp_path: Path) -> None:
    net = trace_graph(prepared(ResNet))
    for batch, shape in ((None, "N"), (1, 1)):
        path = export_onnx(net, images(1), tmp_path / "model.onnx", batch=batch).path
        assert onnxruntime.InferenceSession(path).get_inputs()[0].shape[0] == shape
        assert all(f.relative_error < 1e-4 for f in check_export(path, net, images(4)).values())
    export_onnx(net, images(1), path, batch=3)
    with pytest.raises(UserError, match="multiple"):
        check_export(path, net, images(4))


# ---- int8 -----------------------------------------------------------------------------------------------


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
        assert figures.relative_error < 0.03 and figures.top1 >= 0.95


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


def openvino_precisions(path: Path) -> dict[str, list[str]]:
    compiled = openvino.Core().compile_model(str(path), "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
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
        assert figures.top1 >= 0.98 and figures.relative_error < 0.02


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
    contents = [(a.dtype.str, a.shape, a.tobytes()) for a in initializers(exported.path)]
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

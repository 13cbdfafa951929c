"""Exported files against the networks they came from, in both runtimes."""

from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from amc.errors import UserError
from amc.export import check_export, export_onnx
from amc.graph import ChannelPad, trace_graph
from amc.quantization.modules import (
    ActivationQuantizer,
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


@pytest.mark.parametrize("name", NETWORKS)
def test_float_file_equals_the_network(name: str, tmp_path: Path) -> None:
    net = trace_graph(prepared(NETWORKS[name]))
    exported = export_onnx(net, images(1), tmp_path / "model.onnx")
    assert exported.exporter == "amc" and not exported.quantized and exported.unsupported is None
    onnx.checker.check_model(exported.path, full_check=True)
    for figures in check_export(exported.path, net, images(20)).values():
        assert figures.relative_error < 1e-4 and figures.same_decisions == 1.0
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


def test_a_norm_of_tokens_stays_behind_its_linear_layer(tmp_path: Path) -> None:
    """Of [N, T, C], the channels of a batch norm are T."""
    torch.manual_seed(0)
    net = trace_graph(nn.Sequential(nn.Linear(6, 12), nn.BatchNorm1d(12), nn.ReLU()))
    net.get_submodule("1").running_mean.uniform_(-1, 1)
    net.get_submodule("1").running_var.uniform_(0.5, 2)
    tokens = torch.randn(8, 12, 6)
    path = export_onnx(net, tokens[:1], tmp_path / "model.onnx").path
    assert all(f.relative_error < 1e-4 for f in check_export(path, net, tokens).values())

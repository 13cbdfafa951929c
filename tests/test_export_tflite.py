"""Exported TFLite files against the networks they came from: floats, int8, mixed, and what is refused."""

import builtins
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, fx, nn
from torch.nn import functional as F

from amc.errors import UserError
from amc.export import check_export, export_onnx
from amc.export.check import run_litert, run_onnxruntime
from amc.export.tflite import export_tflite, flatbuffer
from amc.export.tflite.windows import Window, needed_pads, same_pads
from amc.graph import trace_graph
from amc.network import Network
from amc.quantization.modules import ActivationQuantizer, UniformWeightQuantizer, with_quantized_weight
from amc.quantization.points import point_bits
from amc.recovery.calibrate import calibrate
from tests.conftest import MODELS
from tests.test_export import FUNCTIONS, NETWORKS, Call, images, prepared, quantize

interpreters = pytest.importorskip("ai_edge_litert.interpreter")
schema = pytest.importorskip("ai_edge_litert.schema_py_generated")

DEEPER = ("plain20", "resnet32", "resnet44", "resnet56")
"""Made of what ResNet-20 is made of: they take long and test nothing else."""
REGISTERED = [
    pytest.param(name, marks=pytest.mark.slow if name in DEEPER else ())
    for name in MODELS
    if not name.startswith("scattering")  # refused: tests/test_scattering.py
]
MIXED = [(8, 8), (4, 32), (32, 8), (8, 4), (32, 32), (5, 3)]


def everything_delegated(path: Path) -> bool:
    """Whether one piece of XNNPACK leads from the input to the output."""
    interpreter = interpreters.Interpreter(str(path), num_threads=1)
    interpreter.allocate_tensors()
    pieces = [d for d in interpreter._get_ops_details() if d["op_name"] == "DELEGATE"]
    ends = interpreter.get_input_details()[0]["index"], interpreter.get_output_details()[0]["index"]
    return len(pieces) == 1 and ends[0] in pieces[0]["inputs"] and ends[1] in pieces[0]["outputs"]


def written(path: Path) -> schema.ModelT:
    return schema.ModelT.InitFromPackedBuf(path.read_bytes())


def operators(path: Path) -> list[str]:
    names = {code: name for name, code in vars(schema.BuiltinOperator).items() if isinstance(code, int)}
    model = written(path)
    return [names[model.operatorCodes[op.opcodeIndex].builtinCode] for op in model.subgraphs[0].operators]


def quantized(network: Network, choices: list[tuple[int, int]]) -> fx.GraphModule:
    """The network with weight and activation bits that follow `choices` from tensor to tensor."""
    model = network.copy()
    tensors = list(dict.fromkeys(layer.input_tensor for layer in network.layers))
    chosen = {
        layer.name: choices[tensors.index(layer.input_tensor) % len(choices)] for layer in network.layers
    }
    for name, (weight_bits, _) in chosen.items():
        layer = model.get_submodule(name)
        if weight_bits < 32 and isinstance(layer, nn.Conv2d | nn.Linear):
            quantizer = UniformWeightQuantizer(weight_bits, layer.weight.shape[0])
            quantizer.fit(layer.weight)
            model.set_submodule(name, with_quantized_weight(layer, quantizer))
    for name, bits in point_bits(network.points, {name: a for name, (_, a) in chosen.items()}).items():
        model.set_submodule(name, ActivationQuantizer(bits))
    calibrate(model, [inputs_of(network, 16)])
    return model.eval()


def inputs_of(network: Network, count: int) -> Tensor:
    return images(count, 32)[:, : network.example.shape[1]]


def without_biases(model: nn.Module) -> None:
    for module in model.modules():
        if isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d):
            module.running_mean.zero_()
        if isinstance(getattr(module, "bias", None), Tensor):
            nn.init.zeros_(module.bias)


def errors(path: Path, model: nn.Module, x: Tensor) -> np.ndarray:
    """Largest difference of every image's outputs, relative to the largest output of all."""
    expected, (actual,) = model(x).detach().numpy(), run_litert(path, x)
    return np.abs(actual - expected).max(axis=1) / np.abs(expected).max()


# ---- registered networks --------------------------------------------------------------------------------


@pytest.mark.parametrize("name", REGISTERED)
def test_float_file_equals_the_network(name: str, traced: Callable[[str], Network], tmp_path: Path) -> None:
    network = traced(name)
    exported = export_tflite(network.module, network.example, tmp_path / "model.tflite")
    assert exported.exporter == "amc" and not exported.quantized
    (figures,) = check_export(exported.path, network.module, inputs_of(network, 4)).values()
    assert figures.relative_error < 1e-4 and figures.same_decisions == 1.0
    assert everything_delegated(exported.path)


@pytest.mark.parametrize("choices", [[(8, 8)], MIXED], ids=["int8", "mixed"])
@pytest.mark.parametrize("name", REGISTERED)
def test_quantized_file_computes_the_simulation(
    name: str, choices: list, traced: Callable[[str], Network], tmp_path: Path
) -> None:
    """Rounding a bias to int32 is the only difference by design, and deep random networks magnify it.

    Without biases the codes are those of the simulation, but for values on the border of two.
    """
    network = traced(name)
    model = quantized(network, choices)
    without_biases(model)
    path = export_tflite(model, network.example, tmp_path / "model.tflite").path
    found = errors(path, model, inputs_of(network, 8))
    assert np.median(found) < 0.02 and found.max() < 0.3
    assert everything_delegated(path)


@pytest.mark.parametrize("name", ["resnet20", "mobilenet_v1", "vgg16"])
def test_int8_file_computes_what_the_onnx_file_does(
    name: str, traced: Callable[[str], Network], tmp_path: Path
) -> None:
    """Both round a bias alike, so that their codes agree in depth; 7-bit weights are exact on every CPU."""
    network = traced(name)
    model, x = quantized(network, [(7, 8)]), inputs_of(network, 8)
    path = export_tflite(model, network.example, tmp_path / "model.tflite").path
    export_onnx(model, network.example, tmp_path / "model.onnx")
    (ours,), (theirs,) = run_litert(path, x), run_onnxruntime(tmp_path / "model.onnx", x)
    # In sums of two grids ONNX Runtime and XNNPACK round differently.
    assert np.abs(ours - theirs).max() < (0.02 if name == "resnet20" else 1e-4) * np.abs(theirs).max()


def test_every_layer_but_the_last_runs_in_int8(traced: Callable[[str], Network], tmp_path: Path) -> None:
    network = traced("resnet20")
    path = export_tflite(quantized(network, [(8, 8)]), network.example, tmp_path / "model.tflite").path
    found = operators(path)
    assert found.count("CONV_2D") == 19 + 2 and found.count("ADD") == 9
    # The input; and the last layer with its weight, whose result is in floats.
    assert found.count("QUANTIZE") == 1 and found.count("DEQUANTIZE") == 2
    assert found[-1] == "FULLY_CONNECTED" and "RELU" not in found and "MUL" not in found


# ---- small networks -------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", NETWORKS)
def test_int8_file_agrees_with_the_simulation(name: str, tmp_path: Path) -> None:
    net = trace_graph(quantize(prepared(NETWORKS[name]), weight_bits=8))
    exported = export_tflite(net, images(1), tmp_path / "model.tflite")
    assert exported.quantized and set(exported.quantization["weights"]) == {8}
    (figures,) = check_export(exported.path, net, images()).values()
    assert figures.relative_error < 0.03 and figures.same_decisions >= 0.95


@pytest.mark.parametrize("bits", [8, 4, 2])
@pytest.mark.parametrize("name", NETWORKS)
def test_int8_codes_are_those_of_the_simulation(name: str, bits: int, tmp_path: Path) -> None:
    net = prepared(NETWORKS[name])
    without_biases(net)
    net = trace_graph(quantize(net, bits, bits))
    path = export_tflite(net, images(1), tmp_path / "model.tflite").path
    assert (errors(path, net, images()) < 1e-3).mean() >= 0.8


@pytest.mark.parametrize("name", FUNCTIONS)
def test_operators(name: str, tmp_path: Path) -> None:
    if name == "avg_pool_exclusive":
        pytest.skip("refused, see test_what_has_no_exact_translation_is_one_sentence")
    net = trace_graph(prepared(lambda: Call(FUNCTIONS[name])))
    exported = export_tflite(net, images(1, 8), tmp_path / "model.tflite")
    (figures,) = check_export(exported.path, net, images(3, 8)).values()
    assert figures.relative_error < 1e-4


class Between(nn.Module):
    """A function between two quantization points of random scales."""

    def __init__(self, function: Callable[[Tensor], Tensor], zero: int, bits: int) -> None:
        super().__init__()
        self.before, self.after, self.function = ActivationQuantizer(8), ActivationQuantizer(bits), function
        self.before.scale.fill_(0.0311)
        self.before.zero_point.fill_(120)
        self.after.scale.fill_(0.0197 * 255 / (2**bits - 1))
        self.after.zero_point.fill_(zero)
        self.before.calibrating = self.after.calibrating = False

    def forward(self, x: Tensor) -> Tensor:
        return self.after(self.function(self.before(x)))


@pytest.mark.parametrize("bits", [8, 3])
@pytest.mark.parametrize("start", [0.0, 0.5], ids=["unsigned", "signed"])
@pytest.mark.parametrize(
    "function",
    [
        lambda x: x,
        F.relu,
        F.relu6,
        lambda x: F.max_pool2d(x, 3, 2, 1),
        lambda x: x.mean((2, 3)),
        lambda x: x + F.max_pool2d(x, 1),
        lambda x: torch.cat([x, x], 1),
        lambda x: F.pad(x[:, 1:], (1, 0, 0, 2)),
        lambda x: torch.flatten(x, 1),
        lambda x: F.avg_pool2d(x, 2),
    ],
    ids=["identity", "relu", "relu6", "max_pool", "mean", "add", "cat", "pad", "flatten", "avg_pool"],
)
def test_codes_on_every_kind_of_grid(function: Callable, start: float, bits: int, tmp_path: Path) -> None:
    net = trace_graph(Between(function, round(start * (2**bits - 1)), bits))
    x = images(3, 8) * 3
    path = export_tflite(net, x, tmp_path / "model.tflite").path
    expected, (actual,) = net(x).numpy(), run_litert(path, x)
    assert len(np.unique(expected)) > 1
    np.testing.assert_allclose(actual, expected, atol=1e-4 * float(net.after.scale))


@pytest.mark.parametrize("place", [1, 4])
def test_a_layer_that_has_died_runs_in_floats(place: int, tmp_path: Path) -> None:
    """Its grid has a step of 1e-12, which no int8 kernel accepts; XNNPACK refused the whole file."""
    torch.manual_seed(0)
    point = ActivationQuantizer
    net = nn.Sequential(
        *(point(), nn.Conv2d(3, 8, 3), nn.ReLU(), point(), nn.Conv2d(8, 8, 3), nn.ReLU(), point()),
        *(nn.AdaptiveAvgPool2d(1), point(), nn.Flatten(), nn.Linear(8, 4)),
    )
    nn.init.constant_(net[place].bias, -100.0)
    net = trace_graph(quantize(net, 8))
    path = export_tflite(net, images(1), tmp_path / "model.tflite").path
    assert errors(path, net, images(5)).max() < 1e-5 and everything_delegated(path)


@pytest.mark.parametrize("size", [7, 8])
@pytest.mark.parametrize(
    ("kernel", "stride", "padding", "dilation"),
    [
        (3, 1, 1, 1),
        (3, 2, 1, 1),
        (5, 2, 2, 1),
        (3, 1, 2, 2),
        (1, 2, 0, 1),
        (2, 2, 1, 1),
        (3, 3, 2, 1),
    ],
)
@pytest.mark.parametrize("groups", [1, 6])
def test_convolutions(
    size: int, kernel: int, stride: int, padding: int, dilation: int, groups: int, tmp_path: Path
) -> None:
    torch.manual_seed(1)
    layer = nn.Conv2d(6, 12, kernel, stride, padding, dilation, groups)
    net = trace_graph(nn.Sequential(nn.Conv2d(3, 6, 1), layer, nn.ReLU6()))
    path = export_tflite(net, images(1, size), tmp_path / "model.tflite").path
    (figures,) = check_export(path, net, images(2, size)).values()
    assert figures.relative_error < 1e-5 and "RELU6" not in operators(path)


@pytest.mark.parametrize("bits", [8, 32])
def test_grouped_convolution(bits: int, tmp_path: Path) -> None:
    torch.manual_seed(1)
    point = ActivationQuantizer
    net = nn.Sequential(point(), nn.Conv2d(3, 8, 1), point(), nn.Conv2d(8, 12, 3, groups=2), point())
    net = trace_graph(quantize(net, 8) if bits == 8 else net)
    path = export_tflite(net, images(1), tmp_path / "model.tflite").path
    (figures,) = check_export(path, net, images(5)).values()
    assert figures.relative_error < (1e-5 if bits == 32 else 0.02) and everything_delegated(path)


def test_padding_is_left_to_the_operator_only_where_it_pads_alike() -> None:
    odd = Window((1, 1, 4, 4), (3, 3), (2, 2), pads=((1, 1), (1, 1)))
    assert needed_pads((7, 7), odd) == same_pads((7, 7), odd) == ((1, 1), (1, 1))
    even = Window((1, 1, 4, 4), (3, 3), (2, 2), pads=((1, 1), (1, 1)))
    assert needed_pads((8, 8), even) == ((1, 0), (1, 0)) and same_pads((8, 8), even) == ((0, 1), (0, 1))


# ---- the file -------------------------------------------------------------------------------------------


def test_metadata_and_alignment(traced: Callable[[str], Network], tmp_path: Path) -> None:
    network = traced("digitsnet")
    model = quantized(network, [(4, 8)])
    exported = export_tflite(model, network.example, tmp_path / "model.tflite", policy_digest="abc")
    content = written(exported.path)
    texts = {entry.name.decode(): bytes(content.buffers[entry.buffer].data) for entry in content.metadata}
    stored = {name: text.decode() for name, text in texts.items()}
    assert stored["amc.policy"] == "abc" and stored["amc.exporter"] == "amc"
    assert '"weights": {"4": ' in stored["amc.quantization"]
    file = exported.path.read_bytes()
    constants = [bytes(b.data) for b in content.buffers if b.data is not None and len(b.data) >= 64]
    assert len(constants) > 10 and all(file.index(c) % flatbuffer.ALIGNMENT == 0 for c in constants)
    assert exported.size == len(file) and file[4:8] == b"TFL3"


def test_constants_are_stored_once(tmp_path: Path) -> None:
    layer = nn.Conv2d(3, 3, 3, padding=1)
    net = trace_graph(nn.Sequential(layer, nn.ReLU(), layer, nn.Sigmoid(), layer))
    path = export_tflite(net, images(1), tmp_path / "model.tflite").path
    assert path.read_bytes().count(layer.weight.detach().permute(0, 2, 3, 1).numpy().tobytes()) == 1


def test_export_leaves_the_network_alone(tmp_path: Path) -> None:
    net = trace_graph(quantize(prepared(NETWORKS["resnet"])))
    nodes, state = str(net.graph), {k: v.clone() for k, v in net.state_dict().items()}
    export_tflite(net, images(1), tmp_path / "model.tflite")
    assert str(net.graph) == nodes
    assert all(torch.equal(v, state[k]) for k, v in net.state_dict().items())


# ---- what is refused ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("function", "named"),
    [
        (lambda x: torch.roll(x, 1, 1), "roll"),
        (nn.AvgPool2d(3, 2, 1, count_include_pad=False), "AvgPool2d that leaves padding out"),
        (lambda x: F.max_pool2d(x, 2, dilation=2), "max_pool2d with dilation"),
        (lambda x: F.softmax(x, dim=2), "softmax along axis 2"),
        (nn.Conv2d(6, 6, 3, padding=1, padding_mode="reflect"), "Conv2d with reflect padding"),
        (lambda x: x.view(-1, 8), "view across the batch"),
    ],
)
def test_what_has_no_exact_translation_is_one_sentence(
    function: Callable, named: str, tmp_path: Path
) -> None:
    net = trace_graph(prepared(lambda: Call(function)))
    with pytest.raises(UserError, match=named):
        export_tflite(net, images(1, 8), tmp_path / "model.tflite")
    assert not list(tmp_path.iterdir())


def test_a_network_that_is_not_ready_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="eval"):
        export_tflite(trace_graph(prepared(NETWORKS["vgg"])).train(), images(1), tmp_path / "a.tflite")
    with pytest.raises(UserError, match="no scale yet"):
        export_tflite(trace_graph(nn.Sequential(ActivationQuantizer(8))), images(1), tmp_path / "a.tflite")


def test_a_missing_package_names_the_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    imported = builtins.__import__

    def without(name: str, *arguments: object) -> object:
        if name.startswith("ai_edge_litert"):
            raise ImportError(name)
        return imported(name, *arguments)

    flatbuffer.schema.cache_clear()
    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(UserError, match=r'pip install "amc-compress\[litert\]"'):
        export_tflite(trace_graph(nn.ReLU()), images(1), tmp_path / "model.tflite")

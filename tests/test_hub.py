"""Networks of timm and torchvision by name, and what it takes to trace them."""

import importlib.machinery
import importlib.util
import json
import math
import socket
import sys
import types

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from agents.run_config import SourceConfig
from agents.source import load_source
from amc.errors import UserError
from amc.export import check_export, export_onnx
from amc.models import build_model, hub
from amc.models.hub import import_library
from amc.models.hub_weights import load_library_weights
from amc.network import trace
from scripts import pretrain
from scripts.architectures import Spec, measured
from scripts.architectures_page import write_architectures

needs_hub = pytest.mark.extra("hub")
IMAGE = torch.zeros(1, 3, 16, 16)


# ---- libraries ------------------------------------------------------------------------------------------


# Squeeze and excitation with hard swish, a convolution in groups, standardised weights.
@needs_hub
@pytest.mark.parametrize("name", ["timm:mobilenetv3_small_050", "timm:regnetx_002"])
def test_a_network_of_timm_is_halved_and_exported(name):
    row = measured(Spec(name))
    assert "refused" not in row
    assert row["macs_counted"] == row["macs_after"] <= row["macs"] / 2
    assert row["masked_error"] < 1e-4 and row["onnxruntime"] < 1e-4 and row["openvino"] < 1e-4
    assert row["frozen_groups"] == 0 and row["exporter"] == "amc"


@needs_hub
def test_a_network_of_torchvision_has_as_many_classes_as_asked_for():
    model = build_model("torchvision:squeezenet1_1", classes=7).eval()
    assert model(torch.zeros(1, 3, 64, 64)).shape == (1, 7)


@needs_hub
def test_channels_of_the_images_reach_timm_and_are_refused_by_torchvision():
    assert build_model("timm:lcnet_050", in_channels=1).eval()(torch.zeros(1, 1, 32, 32)).shape == (1, 10)
    with pytest.raises(UserError, match="reads 3 channels and the images have 1"):
        build_model("torchvision:resnet18", in_channels=1)


@needs_hub
def test_an_unknown_architecture_names_the_closest():
    with pytest.raises(UserError, match="did you mean 'timm:resnet18'"):
        build_model("timm:resnet_18")
    with pytest.raises(UserError, match="has no width multiplier"):
        build_model("timm:resnet18", width=0.5)


def test_a_missing_library_is_one_sentence(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UserError, match=r'Models of timm need an extra: pip install "amc-compress\[hub\]"'):
        import_library("timm")


@pytest.mark.parametrize("name", ["googlenet", "inception_v3", "resnet18"])
def test_images_are_normalised_anew_where_published_weights_were_trained_so(monkeypatch, name):
    asked = {}
    models = types.SimpleNamespace(get_model=lambda _, **options: asked.update(options) or nn.Identity())
    models.list_models = lambda module: [name]
    monkeypatch.setattr(hub, "import_library", lambda _: types.SimpleNamespace(models=models))
    build_model(f"torchvision:{name}", classes=7)
    assert asked.get("transform_input", False) == (name != "resnet18")


class Small(nn.Module):
    """What the library in the place of timm builds: a body, and a head for some classes."""

    def __init__(self, classes: int, channels: int):
        super().__init__()
        self.body, self.head = nn.Conv2d(channels, 4, 3), nn.Linear(4, classes)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.body(x).mean((2, 3)))


@pytest.fixture
def library(monkeypatch):
    """A module in timm's place, whose published weights are all 1; `fails` takes them away."""

    def create_model(name, pretrained=False, exportable=False, num_classes=1000, in_chans=3):
        if pretrained and made.fails:
            raise OSError("no network")
        model = Small(num_classes, in_chans)
        for parameter in model.parameters() if pretrained else ():
            nn.init.ones_(parameter)
        return model

    made = types.ModuleType("timm")
    made.__spec__ = importlib.machinery.ModuleSpec("timm", None)
    made.create_model, made.list_models, made.fails = create_model, lambda: ["small"], False
    monkeypatch.setitem(sys.modules, "timm", made)
    monkeypatch.setattr("amc.models.hub._define_missing_operators", lambda: None)
    return made


def test_published_weights_are_loaded_and_what_stays_random_is_said(library):
    model = build_model("timm:small", classes=10)
    assert not bool((model.body.weight == 1).all())
    said = load_library_weights("timm:small", model)
    assert bool((model.body.weight == 1).all()) and not bool((model.head.weight == 1).all())
    assert "do not fit these images in head.weight, head.bias: those stay random" in said
    assert load_library_weights("timm:small", build_model("timm:small", classes=1000)) == ""
    assert load_library_weights("digitsnet", model) == ""


def test_random_weights_are_said_by_whoever_loads_the_network(library, capsys):
    library.fails = True
    source = SourceConfig("timm:small", side=8)
    first, _ = load_source(source)
    said = capsys.readouterr().err
    assert (
        "note: timm:small has random weights, as none of timm could be loaded (OSError: no network)" in said
    )
    second, _ = load_source(source)  # a run that is opened again finds the same network
    assert torch.equal(first.body.weight, second.body.weight)
    assert socket.getdefaulttimeout() is None


def test_a_training_starts_from_published_weights(library, capsys):
    task = types.SimpleNamespace(data=types.SimpleNamespace(shape=(3, 8, 8), classes=10))
    model = pretrain.build(pretrain.Pretrain("timm:small"), task)
    assert bool((model.body.weight == 1).all()) and not bool((model.head.weight == 1).all())
    assert "note: timm:small has the trained weights of timm" in capsys.readouterr().err
    continued = pretrain.build(pretrain.Pretrain("timm:small", resume=True), task)  # a checkpoint follows
    assert not bool((continued.body.weight == 1).all())


def test_box_operators_are_defined_where_the_compiled_ones_are_missing(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: object())
    monkeypatch.setattr(hub, "_defined", [])
    monkeypatch.setattr(hub, "_compiled_operators_load", lambda: True)
    hub._define_missing_operators()
    assert hub._defined == []  # those that are there stay as they are
    monkeypatch.setattr(hub, "_compiled_operators_load", lambda: False)
    monkeypatch.setattr(hub.torch_library, "Library", Recorded)
    hub._define_missing_operators()
    hub._define_missing_operators()  # once is enough
    (made,) = hub._defined
    assert made.name == "torchvision" and [each.partition("(")[0] for each in made.defined] == ["nms", "qnms"]


class Recorded:
    """What is defined in a library of operators; the process may have the real ones."""

    def __init__(self, name: str, kind: str):
        self.name, self.kind, self.defined = name, kind, []

    def define(self, schema: str) -> None:
        torch._C.parse_schema(schema)  # torch would refuse a wrong one
        self.defined.append(schema)


# ---- functional layers ----------------------------------------------------------------------------------


class Standardised(nn.Conv2d):
    """A convolution whose weight is standardised, padded to the input's size, with a functional norm."""

    def __init__(self, inputs: int, outputs: int):
        super().__init__(inputs, outputs, 3, stride=2)
        self.norm_weight, self.norm_bias = (
            nn.Parameter(torch.rand(outputs)),
            nn.Parameter(torch.rand(outputs)),
        )
        self.register_buffer("mean", torch.rand(outputs))
        self.register_buffer("variance", torch.rand(outputs) + 0.5)

    def forward(self, x: Tensor) -> Tensor:
        missing = max((math.ceil(x.shape[-1] / 2) - 1) * 2 + 3 - x.shape[-1], 0)
        x = F.pad(x, (missing // 2, missing - missing // 2) * 2)
        weight = self.weight - self.weight.mean(dim=(1, 2, 3), keepdim=True)
        x = F.conv2d(x, weight, self.bias, self.stride)
        return F.batch_norm(x, self.mean, self.variance, self.norm_weight, self.norm_bias, False, 0.1, 1e-5)


class Functional(nn.Module):
    """Everything called as a function; the branch is taken by the size of the image."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = Standardised(3, 8), Standardised(8, 6)
        self.weight = nn.Parameter(torch.randn(5, 6))

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.first(x))
        if x.shape[-1] > 4 and len(x.chunk(2, dim=1)) == 2:
            x = F.relu(self.second(x))
        assert x.dim() == 4
        return F.linear(x.mean((2, 3)), self.weight)


def test_functional_layers_become_modules_that_compute_the_same():
    model, x = Functional().eval(), torch.randn(4, 3, 16, 16)
    network = trace(model, IMAGE)
    assert [layer.name for layer in network.layers] == ["first.conv2d", "second.conv2d", "linear"]
    assert network.layer("first.conv2d").norm == "first.norm"
    assert {group.name for group in network.groups if not group.frozen} == {"first.conv2d", "second.conv2d"}
    with torch.no_grad():
        torch.testing.assert_close(network.module(x), model(x))


def test_parameters_that_became_a_modules_are_not_kept_twice():
    parameters = dict(trace(Functional(), IMAGE).module.named_parameters())
    assert "first.conv2d.weight" in parameters and "first.norm.bias" in parameters
    assert not {"first.weight", "first.norm_weight", "weight"} & set(parameters)


def test_a_functional_layer_that_is_called_twice_is_one_module():
    class Shared(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.stem, self.weight = nn.Conv2d(3, 4, 3), nn.Parameter(torch.randn(4, 4, 1, 1))

        def forward(self, x: Tensor) -> Tensor:
            return F.conv2d(F.conv2d(self.stem(x), self.weight), self.weight).mean((2, 3))

    network = trace(Shared(), IMAGE)
    assert [layer.name for layer in network.layers] == ["stem", "conv2d"]
    assert network.frozen_reasons()["stem"] == "conv2d is called more than once"


class Tied(nn.Module):
    """What a module calls is also called as a function, its norm too, and padded by the image's size."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.conv, self.norm = nn.Conv2d(3, 4, 3), nn.Conv2d(4, 4, 3), nn.BatchNorm2d(4)

    def forward(self, x: Tensor) -> Tensor:
        x, norm = self.stem(x), self.norm
        tied = F.conv2d(self.conv(x), self.conv.weight)
        x = F.batch_norm(norm(tied), norm.running_mean, norm.running_var, norm.weight, norm.bias)
        around = (x.shape[-1] - 8) // 2
        return F.conv2d(x, self.conv.weight, padding=(around, around)).mean((2, 3))


def test_parameters_that_modules_still_read_are_kept():
    model, x = Tied().eval(), torch.randn(4, 3, 16, 16)
    network = trace(model, IMAGE)
    assert [layer.name for layer in network.layers] == ["stem", "conv", "conv.conv2d"]
    with torch.no_grad():
        torch.testing.assert_close(network.module(x), model(x))


class Branching(nn.Module):
    """Another sign wherever a condition holds."""

    def __init__(self, condition):
        super().__init__()
        self.conv, self.condition = nn.Conv2d(3, 4, 3), condition

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv(x)
        return -x if self.condition(x) else x


VALUES = {
    "tensor": lambda x: x.mean() > 0,
    "item": lambda x: x.mean().item() > 0,
    "list": lambda x: x.mean((0, 2, 3)).tolist()[0] > 0,
    "comparison": lambda x: torch.allclose(x, x.abs()),
    "selection": lambda x: x[x > 0].shape[0] > 100,
}


@pytest.mark.parametrize("name", VALUES)
def test_control_flow_on_the_values_of_a_tensor_stays_refused(name):
    with pytest.raises(UserError, match="values of a tensor cannot be used as inputs to control flow"):
        trace(Branching(VALUES[name]), IMAGE)


@pytest.mark.parametrize(
    "count", [lambda x: x.shape[0] == 1, lambda x: len(x) == 1, lambda x: range(x.size(0))]
)
def test_control_flow_on_the_number_of_images_is_refused(count):
    with pytest.raises(UserError, match="number of images cannot be used as inputs to control flow"):
        trace(Branching(count), IMAGE)


def test_what_a_refused_network_has_patched_is_put_back():
    before = nn.Module.__call__, nn.Module.__getattr__
    with pytest.raises(UserError):
        trace(Branching(VALUES["item"]), IMAGE)
    assert (nn.Module.__call__, nn.Module.__getattr__) == before


# ---- operations that the libraries use ------------------------------------------------------------------


class Tail(nn.Module):
    """A convolution, a function of its output, and the mean over all axes but the first two."""

    def __init__(self, function):
        super().__init__()
        self.stem, self.function = nn.Conv2d(3, 4, 3, padding=1), function
        self.norm, self.linear = nn.LayerNorm(4), nn.Linear(4, 6)

    def forward(self, x: Tensor) -> Tensor:
        return self.function(self, self.stem(x)).flatten(1)


OPERATIONS = {
    "gelu": lambda net, x: F.gelu(x),
    "gelu by tanh": lambda net, x: F.gelu(x, approximate="tanh"),
    "layer norm": lambda net, x: net.norm(x.permute(0, 2, 3, 1)),
    "functional layer norm": lambda net, x: F.layer_norm(x, (16, 16)),
    "linear of rows": lambda net, x: net.linear(x.flatten(2).transpose(1, 2)),
    "stack and sum": lambda net, x: torch.stack([x, x * 2, x + 1], dim=1).sum(dim=1),
    "nearest": lambda net, x: F.interpolate(x, scale_factor=2, mode="nearest"),
    "pool with nothing left over": lambda net, x: F.avg_pool2d(x, 2, 2, ceil_mode=True),
}


@pytest.mark.parametrize("name", OPERATIONS)
def test_operations_are_exported_without_the_fallback(name, tmp_path):
    network = trace(Tail(OPERATIONS[name]), IMAGE)
    file = export_onnx(network.module, IMAGE, tmp_path / "model.onnx")
    found = check_export(file.path, network.module, torch.randn(3, 3, 16, 16))
    assert file.exporter == "amc"
    assert all(agreement.relative_error < 1e-5 for agreement in found.values())


def test_the_page_tells_networks_that_were_halved_from_those_that_were_not(tmp_path):
    good = {"model": "a", "side": 64, "decision_points": 3, "channel_groups": 3, "frozen_groups": 1}
    good |= {"frozen": {"conv": "conv mixes"}, "macs": 4e6, "macs_after": 2e6, "macs_counted": 2e6}
    good |= {"params": 1e6, "params_after": 4e5, "masked_error": 0.0, "onnxruntime": 1e-6, "openvino": 2e-3}
    good |= {"litert": "TFLite export has no exact translation of roll.", "seconds": 3.0}
    bad = {"model": "b", "refused": "It cannot be traced.", "seconds": 1.0}
    write_architectures(tmp_path / "table.json", {"a": good, "b": bad}, ["a", "b", "c"])
    text = (tmp_path / "table.md").read_text()
    assert "| a | 64 | 3 | 1 of 2 | 4.00 M | 50.0% | 1.00 M | 40.0% | 1e-06 | **2e-03** | roll | 3 |" in text
    assert "| b |  | It cannot be traced. |" in text and "Not made yet: c." in text
    assert "1 of 2 networks could be halved" in text
    found = json.loads((tmp_path / "table.json").read_text())["tables"]
    (halved,), (refused,) = found["halved"], found["refused"]
    assert (halved["MACs"], halved["MACs after"], halved["parameters after"]) == (4e6, 2e6, 4e5)
    assert refused == {"network": "b", "decision points": "", "reason": "It cannot be traced."}
    assert found["frozen"][0]["reason"] == "it mixes"
    assert "MACs | MACs after | parameters | parameters after" in text

"""Tracing: layers, channel groups, and what is refused or frozen."""

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import amc.network
from amc.errors import UserError
from amc.graph import ChannelPad
from amc.groups import Group
from amc.models import build_model, list_models
from amc.network import Network, trace
from amc.slicing import clone_module

IMAGE = torch.zeros(1, 3, 8, 8)


def conv_bn(inputs: int, outputs: int, **settings: int) -> nn.Sequential:
    conv = nn.Conv2d(inputs, outputs, 3, padding=1, bias=False, **settings)
    return nn.Sequential(conv, nn.BatchNorm2d(outputs), nn.ReLU())


def head(features: int, classes: int = 5) -> nn.Sequential:
    return nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(features, classes))


def members(network: Network, name: str) -> dict[tuple[str, str], list[list[int]]]:
    group = next(g for g in network.groups if g.name == name)
    return {(m.module, m.side): m.positions.tolist() for m in group.members}


# ---- reference networks ---------------------------------------------------------------------------------


@pytest.mark.parametrize("name", list_models())
def test_every_group_of_a_registered_network_can_be_pruned(name, traced):
    network = traced(name)
    last = network.layers[-1].name
    assert network.frozen_reasons() == {last: "its channels are the network's output"}
    assert set(network.group_of) == {layer.name for layer in network.layers}


# 3 x 16 x 9 x 32^2 for the stem, 2.36 million a convolution within a stage, 640 in the head.
@pytest.mark.parametrize(
    ("name", "macs", "layers"),
    [
        ("resnet20", 40_551_040, 20),
        ("plain20", 40_551_040, 20),
        ("resnet32", 68_862_592, 32),
        ("resnet44", 97_174_144, 44),
        ("resnet56", 125_485_696, 56),
    ],
)
def test_macs_of_the_published_networks(name, macs, layers, traced):
    network = traced(name)
    assert (network.macs, len(network.layers)) == (macs, layers)


def test_groups_of_resnet20(traced):
    network = traced("resnet20")
    sums = {"conv1": 16, "layer2.0.conv2": 32, "layer3.0.conv2": 64}
    inner = {
        f"layer{stage}.{block}.conv1": 8 * 2**stage
        for stage in (1, 2, 3)
        for block in range(3)
        if (stage, block) != (0, 0)
    }
    assert {g.name: g.channels for g in network.groups} == {**sums, **inner, "linear": 10}
    assert len(network.groups) == 13
    stage = members(network, "layer2.0.conv2")
    assert {m for m, side in stage if side == "out"} == {
        *("layer2.0.conv2", "layer2.1.conv2", "layer2.2.conv2", "channel_pad_0")
    }
    assert {m for m, side in stage if side == "in"} == {
        *("layer2.1.conv1", "layer2.2.conv1", "layer3.0.conv1", "channel_pad_1")
    }
    assert {m for m, side in stage if side == "both"} == {f"layer2.{block}.bn2" for block in range(3)}
    assert all(positions == [[c] for c in range(32)] for positions in stage.values())


def test_channel_pad_is_exact_and_not_a_layer(traced):
    network = traced("resnet20")
    pad = network.module.get_submodule("channel_pad_0")
    x = torch.randn(2, 16, 8, 8)
    assert isinstance(pad, ChannelPad)
    assert torch.equal(pad(x), F.pad(x[:, :, ::2, ::2], (0, 0, 0, 0, 8, 8)))
    assert not any("channel_pad" in layer.name for layer in network.layers)


@pytest.mark.parametrize("name", ["resnet20", "mobilenet_v2", "concatnet"])
def test_the_traced_module_computes_what_the_original_does(name):
    model = build_model(name, width=1.0 if name == "resnet20" else 0.25).eval()
    x = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        torch.testing.assert_close(trace(model, x).module(x), model(x))


def test_tracing_works_without_gradients():
    with torch.no_grad():
        assert len(trace(nn.Sequential(conv_bn(3, 4), head(4)), IMAGE).groups) == 2


def test_tracing_leaves_the_module_untouched():
    model = nn.Sequential(conv_bn(3, 4), head(4)).train()
    before = {key: value.clone() for key, value in model.state_dict().items()}
    network = trace(model, IMAGE)
    network.module.get_submodule("0.0").weight.data.zero_()
    assert all(module.training for module in model.modules())
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())


def test_a_copy_shares_neither_tensors_nor_hooks():
    model = nn.Sequential(nn.Linear(2, 2))
    copy, calls = clone_module(model), []
    copy[0].register_forward_hook(lambda *_: calls.append(1))
    copy[0].weight.data.fill_(7.0)
    model(torch.zeros(1, 2))
    assert not calls and not (model[0].weight == 7.0).any()


# ---- structures -----------------------------------------------------------------------------------------


def test_layer_shapes_by_hand():
    model = nn.Sequential(nn.Conv2d(3, 6, (3, 1), stride=(1, 2)), nn.Conv2d(6, 6, 3, groups=6), head(6))
    conv, depthwise, linear = trace(model, IMAGE).layers
    assert (conv.kind, conv.kernel, conv.kernel_size, conv.stride) == ("conv", 3, 3, 2)
    assert (conv.in_shape, conv.out_size, conv.macs) == ((8, 8), 6 * 4, 3 * 6 * 3 * 24)
    assert (depthwise.kind, depthwise.weights, depthwise.macs) == ("depthwise", 54, 54 * 4 * 2)
    assert (linear.kind, linear.weights, linear.macs, linear.has_bias) == ("linear", 30, 30, True)


def test_depthwise_convolution_joins_the_group_in_front_of_it():
    model = nn.Sequential(nn.Conv2d(3, 6, 3), nn.Conv2d(6, 6, 3, groups=6), nn.Conv2d(6, 4, 1), head(4))
    network = trace(model, IMAGE)
    assert set(members(network, "0")) == {("0", "out"), ("1", "both"), ("2", "in")}
    assert network.group_of["1"].name == "0"


def test_linear_behind_a_flatten_loses_whole_blocks():
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.MaxPool2d(3), nn.Flatten(), nn.Linear(16, 5))
    positions = members(trace(model, IMAGE), "0")[("3", "in")]
    assert positions == [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9, 10, 11], [12, 13, 14, 15]]


class Concat(nn.Module):
    """Two branches of 4 and 6 channels, with a batch norm behind the concatenation as in DenseNet."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Conv2d(3, 4, 1), nn.Conv2d(3, 6, 1)
        self.norm, self.last = nn.BatchNorm2d(10), nn.Conv2d(10, 5, 1)
        self.head = head(5)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.last(F.relu(self.norm(torch.cat([self.a(x), self.b(x)], 1)))))


def test_branches_of_a_concatenation_are_separate_groups():
    network = trace(Concat(), IMAGE)
    assert set(network.frozen_reasons()) == {"head.2"}
    assert members(network, "a")[("last", "in")] == [[0], [1], [2], [3]]
    assert members(network, "b")[("last", "in")] == members(network, "b")[("norm", "both")]
    assert members(network, "b")[("norm", "both")] == [[4], [5], [6], [7], [8], [9]]


class Shortcut(nn.Module):
    """Option A in the spellings that are in use."""

    def __init__(self, style: str) -> None:
        super().__init__()
        self.style = style
        self.stem, self.wide, self.head = conv_bn(3, 4), conv_bn(4, 8, stride=2), head(8)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        if self.style == "ellipsis":
            short = F.pad(x[..., ::2, ::2], [0, 0, 0, 0, 2, 2], mode="constant", value=0.0)
        elif self.style == "keywords":
            short = F.pad(input=x[:, :, ::2, ::2], pad=(0, 0, 0, 0, 0, 4))
        else:
            short = F.pad(F.avg_pool2d(x, 2), (0, 0, 0, 0, 4, 0, 0, 0))
        return self.head(short + self.wide(x))


@pytest.mark.parametrize("style", ["ellipsis", "keywords", "pooled"])
def test_channel_padding_in_every_spelling(style):
    model = Shortcut(style).eval()
    network = trace(model, IMAGE)
    assert {g.name: g.channels for g in network.groups if not g.frozen} == {"stem.0": 4, "wide.0": 8}
    x = torch.randn(2, 3, 8, 8)
    with torch.no_grad():
        torch.testing.assert_close(network.module(x), model(x))


# ---- what cannot be pruned ------------------------------------------------------------------------------


def test_channels_around_a_grouped_convolution_go_in_units_of_its_groups():
    model = nn.Sequential(conv_bn(3, 8), conv_bn(8, 12, groups=2), conv_bn(12, 6), head(6))
    network = trace(model, IMAGE)
    assert set(network.frozen_reasons()) == {"3.2"}
    units = {group.name: group.units.tolist() for group in network.groups if group.units is not None}
    assert units["0.0"] == [[0, 4], [1, 5], [2, 6], [3, 7]]
    assert units["1.0"] == [[n, n + 6] for n in range(6)]
    assert members(network, "0.0")[("1.0", "in")] == [[0], [1], [2], [3]] * 2


def test_a_grouped_convolution_that_reads_a_concatenation_is_frozen_with_its_reason():
    class Joined(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.left, self.right = conv_bn(3, 4), conv_bn(3, 4)
            self.grouped, self.head = conv_bn(8, 8, groups=2), head(8)

        def forward(self, x: Tensor) -> Tensor:
            return self.head(self.grouped(torch.cat([self.left(x), self.right(x)], dim=1)))

    reasons = trace(Joined(), IMAGE).frozen_reasons()
    assert reasons["left.0"] == "a convolution in groups reads it together with others"


class Doubled(nn.Module):
    """As in GhostNet: a depthwise convolution has every channel of the stem twice."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Conv2d(3, 4, 3, padding=1)
        self.depthwise = nn.Conv2d(8, 8, 3, padding=1, groups=8)
        self.head = nn.Conv2d(8, 5, 1)

    def forward(self, x: Tensor) -> Tensor:
        y = self.stem(x)
        return self.head(self.depthwise(torch.cat([y, y], dim=1)))


def test_a_layer_that_has_its_channels_twice_keeps_them_all():
    reasons = trace(Doubled(), IMAGE).frozen_reasons()
    assert reasons["stem"] == "depthwise has each of its channels 2 times"


def test_layers_of_a_grouped_convolution():
    model = nn.Sequential(conv_bn(3, 8), conv_bn(8, 8, groups=2), conv_bn(8, 6), head(6))
    network = trace(model, IMAGE)
    grouped = network.layer("1.0")
    assert (grouped.in_channels, grouped.macs) == (4, 4 * 8 * 9 * 64)


class Shared(nn.Module):
    """One convolution called twice, on 8 x 8 and on 4 x 4 pixels."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.twice, self.last = nn.Conv2d(3, 4, 1), nn.Conv2d(4, 4, 1), nn.Conv2d(4, 6, 1)
        self.again, self.head = self.twice, head(6)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.last(self.again(F.max_pool2d(self.twice(self.stem(x)), 2))))


def test_shared_module_is_one_frozen_layer_that_costs_both_calls():
    network = trace(Shared(), IMAGE)
    assert [layer.name for layer in network.layers] == ["stem", "twice", "last", "head.2"]
    # What it returns is what it reads, so the stem is tied to it.
    assert network.frozen_reasons()["stem"] == "twice is called more than once"
    assert network.group_of["twice"].name == "stem" and "last" not in network.frozen_reasons()
    assert network.layer("twice").macs == 16 * (64 + 16)


@pytest.mark.parametrize(
    ("between", "reason"),
    [
        (nn.GroupNorm(2, 6), "is a GroupNorm, which cannot be sliced"),
        (nn.PReLU(6), "is a PReLU, which cannot be sliced"),
        (nn.GroupNorm(2, 6, affine=False), "disagree"),  # only the proof can tell
        (nn.Softmax(dim=1), "disagree"),
    ],
)
def test_what_mixes_channels_freezes_only_its_own_group(between, reason):
    model = nn.Sequential(conv_bn(3, 4), nn.Conv2d(4, 6, 3), between, conv_bn(6, 4), head(4))
    reasons = trace(model, IMAGE).frozen_reasons()
    assert set(reasons) == {"1", "4.2"}
    assert reason in reasons["1"]


def test_prelu_with_one_slope_does_not_freeze():
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.PReLU(), head(4))
    assert set(trace(model, IMAGE).frozen_reasons()) == {"2.2"}


class Scaled(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv, self.head = nn.Conv2d(3, 4, 3), head(4)
        self.factor = nn.Parameter(torch.rand(1, 4, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.conv(x) * self.factor)


def test_bare_parameter_freezes_its_group():
    assert trace(Scaled(), IMAGE).frozen_reasons()["conv"] == "a bare parameter takes part in it"


@pytest.mark.parametrize(
    ("pattern", "frozen"), [("0.0", {"0.0"}), ("?.0", {"0.0", "1.0"}), ("*", {"0.0", "1.0", "2.2"})]
)
def test_freeze_patterns(pattern, frozen):
    model = nn.Sequential(conv_bn(3, 4), conv_bn(4, 6), head(6))
    reasons = trace(model, IMAGE, freeze=[pattern]).frozen_reasons()
    assert set(reasons) == frozen | {"2.2"}
    assert reasons["0.0"] == f"asked for by --freeze {pattern}"


def test_freezing_any_layer_of_a_residual_sum_freezes_the_sum(traced):
    network = trace(build_model("resnet20"), torch.zeros(1, 3, 32, 32), freeze=["layer1.2.conv2"])
    assert set(network.frozen_reasons()) == {"conv1", "linear"}


def test_freeze_pattern_without_a_match_is_refused():
    with pytest.raises(UserError, match=r"--freeze layer9\.\* matches no layer; the layers are 0\.0, 1\.2"):
        trace(nn.Sequential(conv_bn(3, 4), head(4)), IMAGE, freeze=["layer9.*"])


# ---- the proof ------------------------------------------------------------------------------------------


def without(group: Group, module: str) -> Group:
    kept = tuple(member for member in group.members if member.module != module)
    return Group(group.name, group.channels, kept, group.frozen)


def shifted(group: Group, module: str) -> Group:
    moved = [
        type(m)(m.module, m.side, m.positions.roll(1, 0)) if m.module == module else m for m in group.members
    ]
    return Group(group.name, group.channels, tuple(moved), group.frozen)


@pytest.mark.parametrize("example", [torch.zeros(1, 3, 8, 8), torch.ones(1, 3, 8, 8)])
@pytest.mark.parametrize("damage", [without, shifted])
def test_wrong_coupling_is_caught_and_the_rest_goes_on(damage, example, monkeypatch):
    found = amc.network.find_groups

    def wrong(*arguments: object) -> list[Group]:
        return [damage(g, "2.0") if g.name == "1.0" else g for g in found(*arguments)]

    monkeypatch.setattr(amc.network, "find_groups", wrong)
    model = nn.Sequential(conv_bn(3, 4), conv_bn(4, 6), conv_bn(6, 5), head(5))
    reasons = trace(model, example).frozen_reasons()
    assert set(reasons) == {"1.0", "3.2"}
    assert "disagree" in reasons["1.0"] or "breaks the network" in reasons["1.0"]


def test_wrong_coupling_is_caught_behind_dead_weights(monkeypatch):
    found = amc.network.find_groups
    monkeypatch.setattr(amc.network, "find_groups", lambda *a: [shifted(g, "1.0") for g in found(*a)])
    model = nn.Sequential(conv_bn(3, 4), conv_bn(4, 6), head(6))
    nn.init.zeros_(model[1][1].weight)  # as zero-initialised residual branches are
    assert "disagree" in trace(model, IMAGE).frozen_reasons()["0.0"]


# ---- refusals -------------------------------------------------------------------------------------------

import pytest
import torch
from torch import Tensor, nn

from amc.errors import UserError
from amc.models import build_model, check_fits, list_models, register_model
from amc.models.mobilenet import round_to_eight
from amc.models.resnet_cifar import PaddedShortcut
from amc.plugins import load_factory


def channels_of(name: str) -> int:
    return 1 if name == "digitsnet" else 3


def parameters(model: nn.Module) -> int:
    return sum(p.numel() for p in model.parameters())


def macs(model: nn.Module, image: Tensor) -> int:
    """Multiplications of convolutions and linear layers, counted while the model runs."""
    total = 0

    def count(module: nn.Module, _: object, output: Tensor) -> None:
        nonlocal total
        positions = output[0, 0].numel() if isinstance(module, nn.Conv2d) else 1
        total += module.weight.numel() * positions

    for module in model.modules():
        if isinstance(module, nn.Conv2d | nn.Linear):
            module.register_forward_hook(count)
    with torch.no_grad():
        model.eval()(image)
    return total


@pytest.mark.parametrize("name", list_models())
def test_every_model_traces_and_gives_one_logit_a_class(name):
    channels = channels_of(name)
    model = build_model(name, classes=7, in_channels=channels).eval()
    x = torch.randn(2, channels, 32, 32, generator=torch.Generator().manual_seed(0))
    traced = torch.fx.symbolic_trace(model)
    with torch.no_grad():
        logits = model(x)
        assert logits.shape == (2, 7)
        assert torch.equal(traced(x), logits)
    assert torch.isfinite(logits).all()


@pytest.mark.parametrize("name", list_models())
def test_every_parameter_receives_a_gradient(name):
    channels = channels_of(name)
    model = build_model(name, in_channels=channels)
    model(torch.randn(4, channels, 32, 32)).logsumexp(1).sum().backward()
    assert [n for n, p in model.named_parameters() if p.grad is None] == []


# He et al. 2015, table 6: 0.27, 0.46, 0.66 and 0.85 million.
@pytest.mark.parametrize(
    ("name", "count"),
    [
        ("resnet20", 269_722),
        ("resnet32", 464_154),
        ("resnet44", 658_586),
        ("resnet56", 853_018),
        ("plain20", 269_722),
    ],
)
def test_parameters_of_resnets(name, count):
    assert parameters(build_model(name)) == count


@pytest.mark.parametrize(("name", "n"), [("resnet20", 3), ("resnet56", 9)])
def test_macs_of_resnets(name, n):
    image = torch.zeros(1, 3, 32, 32)
    # Every 3x3 convolution of a stage costs 16 * 16 * 9 * 32 * 32, except the stem and the two that widen.
    full = 16 * 16 * 9 * 1024
    expected = 3 * 16 * 9 * 1024 + (6 * n - 2) * full + 2 * full // 2 + 640
    assert macs(build_model(name), image) == expected


def test_published_parameter_counts():
    assert parameters(build_model("mobilenet_v1", 1000, small_input=False)) == 4_231_976
    assert parameters(build_model("mobilenet_v2", 1000, small_input=False)) == 3_504_872
    # 14,710,464 weights of convolutions, 2 x 4,224 of batch norm, 5,130 of the head.
    assert parameters(build_model("vgg16")) == 14_710_464 + 8_448 + 5_130


def test_published_macs():
    image = torch.zeros(1, 3, 224, 224)
    assert macs(build_model("mobilenet_v1", 1000, small_input=False), image) == 568_740_352
    assert macs(build_model("mobilenet_v2", 1000, small_input=False), image) == 300_774_272
    assert macs(build_model("vgg16"), torch.zeros(1, 3, 32, 32)) == 313_201_664


def test_the_demonstration_network_is_of_the_documented_size():
    model = build_model("digitsnet", in_channels=1)
    assert parameters(model) == 96_314
    assert macs(model, torch.zeros(1, 1, 32, 32)) == 16_925_312


def test_small_input_keeps_resolution():
    image = torch.zeros(1, 3, 32, 32)
    small, large = (build_model("mobilenet_v2", small_input=s).eval() for s in (True, False))
    with torch.no_grad():
        assert small.features(image).shape[-1] == 4
        assert large.features(image).shape[-1] == 1


def test_padded_shortcut_is_subsampling_between_zeros():
    x = torch.arange(1.0, 33).reshape(1, 2, 4, 4)
    out = PaddedShortcut(1, 2)(x)
    assert out.shape == (1, 5, 2, 2)
    assert out[0, 1].tolist() == [[1, 3], [9, 11]]
    assert out[0, 2].tolist() == [[17, 19], [25, 27]]
    assert out[0, [0, 3, 4]].abs().sum() == 0


def test_plain_network_is_the_residual_one_without_its_shortcuts():
    plain, residual = build_model("plain20").eval(), build_model("resnet20").eval()
    residual.load_state_dict(plain.state_dict())
    x = torch.randn(1, 3, 32, 32)
    with torch.no_grad():
        assert not torch.allclose(plain(x), residual(x))
        for module in residual.modules():
            if hasattr(module, "shortcut"):
                module.shortcut = None
        assert torch.equal(plain(x), residual(x))


@pytest.mark.parametrize("key", ["conv1.weight", "bn1.bias", "layer1.0.conv1.weight", "layer3.2.bn2.weight"])
def test_names_of_the_common_resnet_files(key):
    model = build_model("resnet20")
    assert key in model.state_dict()
    assert list(model.state_dict())[-2:] == ["linear.weight", "linear.bias"]


@pytest.mark.parametrize(
    ("channels", "rounded"), [(1, 8), (11, 16), (12, 16), (16, 16), (33.6, 32), (19, 24), (45, 48)]
)
def test_round_to_eight_loses_at_most_a_tenth(channels, rounded):
    assert round_to_eight(channels) == rounded


@pytest.mark.parametrize("name", ["vgg16", "mobilenet_v1", "mobilenet_v2", "concatnet", "digitsnet"])
def test_half_width_quarters_the_inner_parameters(name):
    full, half = (parameters(build_model(name, in_channels=3, width=w)) for w in (1.0, 0.5))
    assert 0.2 < half / full < 0.75
    assert build_model(name, width=0.5, in_channels=3)(torch.zeros(2, 3, 32, 32)).shape == (2, 10)


def test_unknown_model_names_the_closest():
    with pytest.raises(UserError, match=r"no model 'ResNet-20': did you mean 'resnet20'\?"):
        build_model("ResNet-20")
    with pytest.raises(
        UserError, match=r"no model 'qqq': choose concatnet, digitsnet, .* or package\.module:factory"
    ):
        build_model("qqq")


def test_width_where_there_is_none_is_refused():
    with pytest.raises(UserError, match="'resnet32' has no width multiplier"):
        build_model("resnet32", width=0.5)
    with pytest.raises(UserError, match=r"lie in \(0, 16\], not at 0"):
        build_model("vgg16", width=0)


def test_registering_a_name_twice_is_a_programming_error():
    assert "vgg16" in list_models()
    with pytest.raises(ValueError, match="registered already"):
        register_model("vgg16")(lambda: nn.Identity())


@pytest.fixture
def own(tmp_path, monkeypatch):
    code = (
        "from torch import nn\n"
        "def simple():\n    return nn.Sequential(nn.Flatten(), nn.Linear(12, 5))\n"
        "def sized(num_classes, in_channels=3):\n"
        "    return nn.Sequential(nn.Flatten(), nn.Linear(4 * in_channels, num_classes))\n"
        "def broken():\n    raise RuntimeError('no layers')\n"
        "def wrong():\n    return {}\n"
        "number = 3\n"
    )
    (tmp_path / "own_models_for_test.py").write_text(code)
    (tmp_path / "own_failing_for_test.py").write_text("import a_package_nobody_has\n")
    (tmp_path / "own_raising_for_test.py").write_text("1 / 0\n")
    monkeypatch.chdir(tmp_path)


@pytest.mark.usefixtures("own")
def test_a_model_of_the_users_own():
    assert build_model("own_models_for_test:simple")(torch.zeros(1, 3, 2, 2)).shape == (1, 5)
    assert build_model("own_models_for_test:sized", 4, 1)(torch.zeros(1, 1, 2, 2)).shape == (1, 4)


@pytest.mark.usefixtures("own")
@pytest.mark.parametrize(
    ("path", "said"),
    [
        (
            "own_models_for_test:broken",
            "factory 'own_models_for_test:broken' failed: RuntimeError: no layers",
        ),
        ("own_models_for_test:wrong", r"returned a dict, not a torch\.nn\.Module"),
        ("own_models_for_test:absent", r"'own_models_for_test' \(.*\) has no 'absent'"),
        ("own_models_for_test:number", "is a int, but a function or class is needed"),
        ("no_such_package.models:net", "no module 'no_such_package'"),
        ("torch.no_such_part:net", "no module 'torch.no_such_part'"),
        ("own_failing_for_test:net", "needs 'a_package_nobody_has', which is not installed"),
        ("own_raising_for_test:net", "Importing 'own_raising_for_test' failed: ZeroDivisionError"),
    ],
)
def test_a_failing_import_path_is_one_sentence(path, said):
    with pytest.raises(UserError, match=said) as caught:
        build_model(path)
    assert "\n" not in str(caught.value)


def test_a_malformed_import_path_says_what_it_should_be():
    with pytest.raises(UserError, match=r"write it as package\.module:factory"):
        load_factory("package.module")


def test_check_fits_finds_a_misfit_before_any_work():
    check_fits(build_model("resnet20", 7), "resnet20", (3, 32, 32), 7)
    with pytest.raises(UserError, match="'resnet20' fails on an image of 1 x 32 x 32: RuntimeError"):
        check_fits(build_model("resnet20"), "resnet20", (1, 32, 32), 10)
    with pytest.raises(UserError, match=r"returns \[1, 7\] for one image where \[1, 10\] is needed"):
        check_fits(build_model("resnet20", 7), "resnet20", (3, 32, 32), 10)

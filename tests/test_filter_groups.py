"""Filter groups and the plain low-rank forms: two convolutions in the place of one."""

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from amc.compress import ChannelPruning, apply
from amc.decomposition.chain import Chain
from amc.decomposition.filter_groups import FilterGroups, group_schedule
from amc.decomposition.low_rank import ChannelSVD, Decomposition, SpatialSVD, truncated_svd
from amc.decomposition.operator import AMOUNT, legal_amounts
from amc.decomposition.registry import get_operator
from amc.decomposition.replacement import OperatorReplacement
from amc.decomposition.responses import Responses
from amc.export import check_export, export_onnx
from amc.export.tflite import export_tflite
from amc.knobs import WidthKnob
from amc.network import Layer, Network, trace
from amc.policy import CompressionPolicy, LayerDecision
from amc.pruning.importance import rank_channels
from amc.pruning.reconstruction import InputMoments, input_moments
from amc.space import Space

OPERATORS = (FilterGroups(), ChannelSVD(), SpatialSVD())
BY_NAME = {operator.name: operator for operator in OPERATORS}
SETTINGS = [
    {"padding": 1},
    {"padding": 1, "stride": 2},
    {"padding": 0, "bias": False},
    {"padding": 2, "dilation": 2},
    {"padding": (0, 2), "kernel_size": (3, 5)},
]
FULL_RANK = {"filter-groups": 12, "channel-svd": 12, "spatial-svd": 36}


def conv_of(inputs: int = 12, outputs: int = 12, **settings: object) -> nn.Conv2d:
    torch.manual_seed(0)
    return nn.Conv2d(inputs, outputs, **{"kernel_size": 3, **settings})  # type: ignore[arg-type]


def images(channels: int = 12) -> Tensor:
    return torch.randn(2, channels, 8, 8, generator=torch.Generator().manual_seed(1))


def executed_macs(module: nn.Module, x: Tensor) -> int:
    """Counted from the convolutions that run, one image."""
    total = 0

    def count(conv: nn.Module, _: object, output: Tensor) -> None:
        nonlocal total
        total += conv.get_parameter("weight")[0].numel() * output[0].numel()

    hooks = [m.register_forward_hook(count) for m in module.modules() if isinstance(m, nn.Conv2d)]
    with torch.no_grad():
        module(x[:1])
    for hook in hooks:
        hook.remove()
    return total


def network_of(conv: nn.Conv2d, x: Tensor) -> Network:
    return trace(nn.Sequential(conv, nn.BatchNorm2d(conv.out_channels), nn.ReLU()), x)


def layer_of(conv: nn.Conv2d, x: Tensor) -> Layer:
    return network_of(conv, x).layers[0]


def moments_of(rows: Tensor) -> InputMoments:
    mean = rows.mean(dim=0)
    return InputMoments(rows.T @ rows / len(rows) - mean[:, None] * mean[None, :], mean)


@pytest.mark.parametrize("settings", SETTINGS)
@pytest.mark.parametrize("operator", OPERATORS, ids=BY_NAME)
def test_full_rank_reproduces_the_convolution(operator: Decomposition, settings: dict):
    conv = conv_of(**settings)
    amount = 60 if operator.name == "spatial-svd" else FULL_RANK[operator.name]
    with torch.no_grad():
        torch.testing.assert_close(operator.fit(conv, amount)(images()), conv(images()), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("settings", SETTINGS)
@pytest.mark.parametrize("operator", OPERATORS, ids=BY_NAME)
def test_the_chain_computes_what_its_factors_stand_for(operator: Decomposition, settings: dict):
    conv = conv_of(**settings)
    factors = operator.factors(conv.weight, 3)
    whole = conv_of(**settings)
    whole.weight.data = factors.weight().float()
    with torch.no_grad():
        torch.testing.assert_close(operator.fit(conv, 3)(images()), whole(images()), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("size", [1, 2, 4, 8])
def test_the_error_of_filter_groups_equals_the_discarded_singular_values(size: int):
    weight = conv_of(16, 16).weight.detach().double()
    groups = weight.reshape(16, 16 // size, -1).transpose(0, 1)
    discarded = torch.linalg.svdvals(groups)[:, size:].square().sum()
    assert FilterGroups().factors(weight, size).squared_error(weight) == pytest.approx(float(discarded), 1e-6)


@pytest.mark.parametrize("rank", [1, 3, 7])
def test_the_error_of_low_rank_equals_the_discarded_singular_values(rank: int):
    weight = conv_of(6, 8).weight.detach().double()
    along_channels = torch.linalg.svdvals(weight.reshape(8, -1))[rank:].square().sum()
    along_space = torch.linalg.svdvals(weight.permute(0, 3, 1, 2).reshape(24, 18))[rank:].square().sum()
    for operator, discarded in ((ChannelSVD(), along_channels), (SpatialSVD(), along_space)):
        assert operator.factors(weight, rank).squared_error(weight) == pytest.approx(float(discarded), 1e-6)


def test_the_error_falls_with_the_group_size():
    weight = conv_of(16, 16).weight
    errors = [FilterGroups().factors(weight, size).squared_error(weight) for size in (1, 2, 4, 8, 16)]
    assert errors == sorted(errors, reverse=True)
    assert errors[-1] < 1e-20 < errors[-2]


def test_the_grouping_matters():
    weight = conv_of(16, 16).weight.detach()
    weight[:, ::2] *= 5
    mixed = weight[:, torch.cat([torch.arange(0, 16, 2), torch.arange(1, 16, 2)])]
    errors = [FilterGroups().factors(w, 4).squared_error(w) for w in (weight, mixed)]
    assert abs(errors[0] - errors[1]) > 0.05 * errors[0]


def test_a_matrix_of_low_rank_is_found_exactly():
    matrix = torch.randn(1, 9, 2, dtype=torch.float64) @ torch.randn(1, 2, 30, dtype=torch.float64)
    for m in (matrix, matrix.mT):
        left, right = truncated_svd(m, 4)
        assert torch.allclose(left @ right, m, atol=1e-8)
        assert left.isfinite().all() and right.isfinite().all()


def test_a_weight_of_zeros_gives_zeros():
    chain = FilterGroups().fit(zero_conv(), 4)
    assert all(p.isfinite().all() for p in chain.parameters())
    assert chain(images()).abs().max() == 0


def zero_conv() -> nn.Conv2d:
    conv = conv_of(bias=False)
    nn.init.zeros_(conv.weight)
    return conv


@pytest.mark.parametrize("size", [1, 2, 4, 8, 16])
def test_parameters_are_those_of_the_paper(size: int):
    conv = conv_of(16, 16, padding=1, bias=False)
    cost = FilterGroups().cost(layer_of(conv, images(16)), size, 16, 16)
    assert cost.params / conv.weight.numel() == pytest.approx(size / 16 + 1 / 9)


@pytest.mark.parametrize("settings", SETTINGS[:3])
@pytest.mark.parametrize("channels", [(12, 12), (13, 6), (3, 10)])
@pytest.mark.parametrize("operator", OPERATORS, ids=BY_NAME)
def test_costs_equal_what_runs(operator: Decomposition, channels: tuple[int, int], settings: dict):
    """13 inputs are no multiple of the group size, 3 are less than one group."""
    conv = conv_of(*channels, **settings)
    x = images(channels[0])
    if operator.obstacle(conv) is not None:
        pytest.skip("it is refused")
    chain = operator.fit(conv, 4)
    cost = operator.cost(layer_of(conv, x), 4, *channels)
    assert cost.macs == executed_macs(chain, x)
    assert cost.params == sum(p.numel() for p in chain.parameters())
    assert cost.size == 4 * cost.params


@pytest.mark.parametrize("operator", OPERATORS, ids=BY_NAME)
def test_every_legal_amount_is_cheaper_than_the_layer(operator: Decomposition):
    conv = conv_of(16, 24, padding=1, stride=2)
    layer = layer_of(conv, images(16))
    macs = [operator.cost(layer, amount, 16, 24).macs for amount in operator.amounts(conv)]
    assert len(macs) > 2 and macs == sorted(macs)
    assert macs[-1] < layer.macs


@pytest.mark.parametrize("operator", OPERATORS, ids=BY_NAME)
@pytest.mark.parametrize(
    ("module", "reason"),
    [
        (nn.Linear(4, 4), "Linear"),
        (nn.Conv2d(4, 4, 1), "single element"),
        (nn.Conv2d(4, 4, 3, groups=4), "groups"),
        (nn.Conv2d(4, 4, 3, groups=2), "groups"),
        (nn.Conv2d(4, 4, 3, padding_mode="reflect", padding=1), "zero padding"),
    ],
)
def test_a_layer_that_cannot_be_replaced_offers_nothing(
    operator: Decomposition, module: nn.Module, reason: str
):
    assert legal_amounts(operator, module) == ()
    assert reason in str(operator.obstacle(module))


@pytest.mark.parametrize(
    ("settings", "reason"),
    [
        ({"padding": 0}, "padded too little"),
        ({"padding": 1, "dilation": 2}, "padded too little"),
        ({"padding": (0, 2), "kernel_size": (3, 5)}, "not square"),
        ({"padding": 1}, None),
        ({"padding": 2, "dilation": 2}, None),
    ],
)
def test_spatial_factors_are_offered_only_where_their_cost_is_known(settings: dict, reason: str | None):
    """Elsewhere more runs than a budget is charged, or fewer bytes are charged than stored."""
    conv, operator = conv_of(**settings), BY_NAME["spatial-svd"]
    found = operator.obstacle(conv)
    assert (found is None) if reason is None else (reason in str(found))
    assert bool(legal_amounts(operator, conv)) == (reason is None)


def correlated_rows(inputs: int) -> Tensor:
    generator = torch.Generator().manual_seed(3)
    mixing = torch.randn(inputs, inputs, dtype=torch.float64, generator=generator)
    return torch.randn(800, inputs, dtype=torch.float64, generator=generator) @ mixing + 1.0


@pytest.mark.parametrize("operator", OPERATORS, ids=BY_NAME)
def test_calibration_lowers_the_error_of_responses(operator: Decomposition):
    conv, rows = conv_of(6, 8), correlated_rows(54)
    responses = Responses.of(conv.weight, moments_of(rows), None, None)
    plain = operator.factors(conv.weight, 3)
    mixing, _ = responses.fit(plain.basis)
    fitted = torch.einsum("nm,mchw->nchw", mixing, plain.basis)
    exact = responses.error(conv.weight)
    assert responses.error(fitted) - exact < 0.97 * (responses.error(plain.weight()) - exact)


def test_calibration_equals_least_squares_on_the_responses_themselves():
    conv, rows = conv_of(6, 8), correlated_rows(54)
    basis = FilterGroups().factors(conv.weight, 2).basis
    mixing, shift = Responses.of(conv.weight, moments_of(rows), None, None).fit(basis)
    hidden = torch.cat([rows @ basis.reshape(6, -1).T, torch.ones(800, 1, dtype=torch.float64)], dim=1)
    wanted = rows @ conv.weight.detach().double().reshape(8, -1).T
    solved = torch.linalg.lstsq(hidden, wanted).solution.T
    assert torch.allclose(torch.cat([mixing, shift[:, None]], dim=1), solved, atol=1e-4)


def test_calibration_leaves_a_full_rank_as_it_is():
    conv = conv_of(6, 6)
    chain = FilterGroups().fit(
        conv, 6, Responses.of(conv.weight, moments_of(correlated_rows(54)), None, None)
    )
    with torch.no_grad():
        torch.testing.assert_close(chain(images(6)), conv(images(6)), atol=1e-3, rtol=1e-3)


def net() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(
        *(nn.Conv2d(3, 12, 3, padding=1, bias=False), nn.BatchNorm2d(12), nn.ReLU()),
        *(nn.Conv2d(12, 16, 3, stride=2, padding=1, bias=False), nn.BatchNorm2d(16), nn.ReLU()),
        *(nn.Conv2d(16, 16, 3, padding=1), nn.ReLU()),
        *(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(16, 5)),
    ).eval()


def policy_of(
    network: Network, widths: dict[str, int], operators: dict[str, tuple[str, int]]
) -> CompressionPolicy:
    """Widths and operators of some layers."""
    decisions = []
    for layer in network.layers:
        name, amount = operators.get(layer.name, ("original", 0))
        values = {"width": widths.get(layer.name, layer.out_channels), **({AMOUNT: amount} if amount else {})}
        decisions.append(LayerDecision(layer.name, values, name))
    return CompressionPolicy(network.fingerprint, tuple(decisions))


def test_it_works_after_channel_pruning():
    x = torch.randn(16, 3, 16, 16)
    network = trace(net(), x[:1])
    pruning = ChannelPruning(rank_channels(network, "l2"))
    widths = {"0": 7, "3": 10}
    space = Space(network, [WidthKnob()])
    pruned = apply(space.policy(space.table(policy_of(network, widths, {}))), network, [pruning])
    expected = pruned(x)
    policy = policy_of(network, widths, {"3": ("filter-groups", 4), "6": ("filter-groups", 16)})
    replacement = OperatorReplacement(pruning.kept)
    replacement.apply(pruned, network, policy)
    chain = pruned.get_submodule("3")
    assert isinstance(chain, Chain)
    cost = FilterGroups().cost(network.layer("3"), 4, 7, 10)
    assert cost.macs == executed_macs(chain, torch.zeros(1, 7, 16, 16)) == 64 * 8 * (4 * 9 + 10)
    assert pruned(x).shape == expected.shape
    # The last replaced layer has all of its rank, so only the pruned one changes anything.
    pruned.set_submodule("3", apply_pruning_only(network, pruning, widths).get_submodule("3"))
    torch.testing.assert_close(pruned(x), expected, atol=1e-4, rtol=1e-4)


def apply_pruning_only(network: Network, pruning: ChannelPruning, widths: dict[str, int]) -> nn.Module:
    model = network.copy()
    pruning.apply(model, network, policy_of(network, widths, {}))
    return model


def test_fits_on_responses_see_the_original_inputs_of_a_pruned_layer():
    """The second of each pair of equal channels is pruned: responses tell the first to stand for both."""
    model = net()
    with torch.no_grad():
        model[0].weight[6:] = model[0].weight[:6]
    x = torch.randn(64, 3, 8, 8)
    network = trace(model, x[:1])
    moments = input_moments(network, [x], positions=100)
    ranking = rank_channels(network, "l2") | {"0": torch.arange(12)}
    pruning = ChannelPruning(ranking)
    policy = policy_of(network, {"0": 6}, {"3": ("channel-svd", 16)})
    errors = []
    for known in ({}, moments):
        compressed = apply_pruning_only(network, pruning, {"0": 6})
        OperatorReplacement(pruning.kept, known).apply(compressed, network, policy)
        with torch.no_grad():
            wanted, got = (m.get_submodule("3")(hidden) for m, hidden in hidden_of(model, compressed, x))
        errors.append(float((wanted - got).square().mean() / wanted.var()))
    assert errors[1] < 0.6 * errors[0]


def hidden_of(model: nn.Module, compressed: nn.Module, x: Tensor) -> list[tuple[nn.Module, Tensor]]:
    with torch.no_grad():
        hidden = torch.relu(model.get_submodule("1")(model.get_submodule("0")(x)))
    return [(model, hidden), (compressed, hidden[:, :6])]


def test_a_fit_is_made_once_for_a_layer_an_amount_and_its_channels(monkeypatch: pytest.MonkeyPatch):
    network = trace(net(), torch.zeros(1, 3, 16, 16))
    pruning = ChannelPruning(rank_channels(network, "l2"))
    operator = get_operator("filter-groups")
    fits: list[int] = []
    original = operator.fit
    monkeypatch.setattr(
        operator, "fit", lambda conv, amount, *rest: fits.append(amount) or original(conv, amount, *rest)
    )
    replacement = OperatorReplacement(pruning.kept)
    models = []
    for width, amount in ((12, 4), (12, 4), (12, 2), (8, 4), (12, 4)):
        models.append(apply_pruning_only(network, pruning, {"0": width}))
        policy = policy_of(network, {"0": width}, {"3": ("filter-groups", amount)})
        replacement.apply(models[-1], network, policy)
    assert fits == [4, 2, 4]
    models.append(apply_pruning_only(network, pruning, {"0": 12}))
    with torch.no_grad():  # as a reconstruction does
        models[-1].get_submodule("3").weight.mul_(2)
    replacement.apply(models[-1], network, policy)
    assert fits == [4, 2, 4, 4]
    with torch.no_grad():  # what is trained later is a copy
        models[0].get_submodule("3")[0].weight.zero_()
    assert models[1].get_submodule("3")[0].weight.abs().max() > 0


def test_groups_grow_in_number_with_depth_and_keep_the_macs(traced):
    network = traced("resnet20")
    for fraction in (0.5, 0.25):
        sizes = group_schedule(network, fraction, frozenset({"conv1"}))
        counts = [network.layer(name).in_channels // size for name, size in sizes.items()]
        operator = FilterGroups()
        macs = sum(
            operator.cost(v, sizes[v.name], v.in_channels, v.out_channels).macs if v.name in sizes else v.macs
            for v in network.layers
        )
        assert macs <= fraction * network.macs
        assert counts == sorted(counts) and counts[0] < counts[-1]
        assert "conv1" not in sizes and "linear" not in sizes
    assert group_schedule(network, 1.0) == {}


def replaced(operator: str) -> tuple[nn.Module, Tensor]:
    """A pruned network, two of its layers replaced, and images for it."""
    x = torch.randn(8, 3, 16, 16)
    network = trace(net(), x[:1])
    model = network.copy()
    model.get_submodule("4").running_mean.normal_()
    pruning = ChannelPruning(rank_channels(network, "l2"))
    pruning.apply(model, network, policy_of(network, {"0": 7}, {}))
    policy = policy_of(network, {"0": 7}, {"3": (operator, 4), "6": (operator, 4)})
    OperatorReplacement(pruning.kept).apply(model, network, policy)
    return model, x


@pytest.mark.parametrize("operator", ["filter-groups", "spatial-svd", "channel-svd"])
def test_the_exported_file_folds_the_norm_into_the_last_factor(operator: str, tmp_path: Path):
    model, x = replaced(operator)
    exported = export_onnx(model, x, tmp_path / "model.onnx")
    assert exported.exporter == "amc"
    for figures in check_export(exported.path, model, x).values():
        assert figures.relative_error < 1e-4


@pytest.mark.parametrize("operator", ["filter-groups", "spatial-svd"])
def test_the_tflite_file_computes_the_same(operator: str, tmp_path: Path):
    pytest.importorskip("ai_edge_litert.interpreter")
    model, x = replaced(operator)
    path = export_tflite(model, x, tmp_path / "model.tflite").path
    (figures,) = check_export(path, model, x).values()
    assert figures.relative_error < 1e-4

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from amc.compress import ChannelPruning, apply
from amc.errors import UserError
from amc.knobs import WidthKnob
from amc.network import Network, trace
from amc.pruning.asymmetric import AsymmetricReconstruction
from amc.pruning.fits import asymmetric_fit
from amc.pruning.importance import rank_channels
from amc.pruning.patches import PatchSampler, design
from amc.pruning.reconstruction import (
    InputMoments,
    SymmetricReconstruction,
    input_moments,
    reconstruct_weight,
)
from amc.pruning.sums import Values, WatchedRun, summands
from amc.recovery.calibrate import calibrate
from amc.slicing import apply_slices, kept_positions
from amc.space import Space
from envs.problem_config import ProblemConfig


def plain_net(bias: bool = False) -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 12, 3, padding=1, bias=bias),
        nn.ReLU(),
        nn.Conv2d(12, 8, 3, stride=2, padding=1, bias=bias),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(8 * 16, 5, bias=bias),
    )


def moments_of(rows: torch.Tensor, centred: bool) -> InputMoments:
    mean = rows.mean(dim=0) if centred else torch.zeros(rows.shape[1], dtype=rows.dtype)
    second = rows.T @ rows / len(rows) - mean[:, None] * mean[None, :]
    return InputMoments(second, mean)


def test_the_residual_is_orthogonal_to_the_kept_inputs():
    rows = torch.randn(400, 6 * 9, dtype=torch.float64) @ torch.randn(54, 54, dtype=torch.float64)
    weight, kept = torch.randn(4, 6, 3, 3), torch.tensor([0, 2, 5])
    new, _ = reconstruct_weight(weight, moments_of(rows, centred=False), kept)
    columns = (kept[:, None] * 9 + torch.arange(9)).reshape(-1)
    residual = rows @ weight.reshape(4, -1).double().T - rows[:, columns] @ new.reshape(4, -1).double().T
    normal = rows[:, columns].T @ residual / len(rows)
    assert normal.abs().max() < 1e-4 * (rows[:, columns].T @ rows / len(rows)).abs().max()


def test_keeping_every_input_returns_the_weight():
    rows = torch.randn(500, 20, dtype=torch.float64)
    weight = torch.randn(3, 20)
    new, shift = reconstruct_weight(weight, moments_of(rows, centred=True), torch.arange(20))
    assert torch.allclose(new, weight, atol=1e-5)
    assert shift.abs().max() < 1e-5


@pytest.mark.parametrize("centred", [False, True])
def test_the_error_is_never_above_that_of_dropping_inputs(centred):
    mixing = torch.randn(10, 10, dtype=torch.float64)
    rows = torch.rand(300, 10, dtype=torch.float64) @ mixing + 0.5
    weight, kept = torch.randn(4, 10), torch.tensor([1, 3, 4, 8])
    new, shift = reconstruct_weight(weight, moments_of(rows, centred), kept)
    wanted = rows @ weight.double().T
    intercept = shift.double() if centred else 0.0
    rebuilt = rows[:, kept] @ new.double().T + intercept
    dropped = rows[:, kept] @ weight[:, kept].double().T
    assert (wanted - rebuilt).square().sum() < (wanted - dropped).square().sum()
    if centred:
        assert torch.allclose(rebuilt.mean(dim=0), wanted.mean(dim=0), atol=1e-5)


@pytest.mark.parametrize("bias", [False, True])
def test_moments_equal_those_of_unfolded_inputs(bias):
    model = plain_net(bias)
    images = torch.randn(7, 3, 8, 8)
    network = trace(model, images[:1])
    moments = input_moments(network, [images], positions=10_000)
    hidden = model[1](model[0](images))
    patches = F.unfold(hidden, 3, padding=1, stride=2).transpose(1, 2).reshape(-1, 12 * 9).double()
    expected = moments_of(patches, centred=bias)
    assert torch.allclose(moments["2"].second, expected.second, atol=1e-5)
    assert torch.allclose(moments["2"].mean, expected.mean, atol=1e-5)


def test_redundant_channels_are_dropped_without_any_loss():
    model = plain_net(bias=True)
    with torch.no_grad():  # behind a ReLU, a positive multiple of a channel carries nothing new
        model[0].weight[6:] = 0.5 * model[0].weight[:6]
        model[0].bias[6:] = 0.5 * model[0].bias[:6]
    images = torch.randn(64, 3, 8, 8)
    network = trace(model, images[:1])
    ranking = rank_channels(network, "l2")
    space = Space(network, [WidthKnob()])
    table = space.largest.copy()
    table[space.row("0"), 0] = 6
    symmetric = SymmetricReconstruction(input_moments(network, [images], positions=10_000))
    with torch.no_grad():
        expected = model(images)
        plain, rebuilt = (
            apply(space.policy(table), network, [ChannelPruning(ranking, None, m)])(images)
            for m in (None, symmetric)
        )
    assert (plain - expected).abs().max() > 1e-2
    assert torch.allclose(rebuilt, expected, atol=1e-3)


@pytest.mark.parametrize("intercept", [False, True])
def test_asymmetric_weights_solve_the_least_squares_problem(intercept: bool):
    torch.manual_seed(0)
    mixing = torch.eye(12, dtype=torch.float64) + 0.2 * torch.randn(12, 12, dtype=torch.float64)
    inputs = torch.randn(300, 12, dtype=torch.float64) @ mixing + 1.0
    targets = inputs @ torch.randn(12, 5, dtype=torch.float64) + torch.randn(300, 5, dtype=torch.float64)
    fit = asymmetric_fit(inputs.clone(), targets, torch.zeros(5, 12), intercept)
    ones = torch.ones(300, int(intercept), dtype=torch.float64)
    expected = torch.linalg.lstsq(torch.cat([inputs, ones], dim=1), targets).solution.T
    found = torch.cat([fit.weight, fit.shift[:, None]], dim=1)[:, : expected.shape[1]]
    assert torch.allclose(found, expected, rtol=1e-4, atol=1e-4)
    assert intercept or not fit.shift.any()
    outputs = inputs @ fit.weight.T + fit.shift
    assert not intercept or torch.allclose(fit.mean, outputs.mean(dim=0))


def pruned_to(network: Network, share: float) -> tuple[torch.nn.Module, dict[tuple[str, str], torch.Tensor]]:
    """A sliced copy and what slicing kept."""
    ranking = rank_channels(network)
    kept = {name: order[: max(1, int(share * len(order)))].sort().values for name, order in ranking.items()}
    positions = kept_positions(network.groups, kept, network.sizes)
    model = network.copy()
    apply_slices(model, positions)
    return model, positions


@pytest.mark.parametrize("name", ["resnet20", "mobilenet_v2", "concatnet"])
def test_every_layer_solves_its_own_problem_on_the_pruned_networks_inputs(
    traced: Callable[[str], Network], name: str
):
    """Residual sums, strides, 1x1 and 3x3 kernels, concatenations; batch norms use the batch's statistics."""
    network = replace(traced(name), module=traced(name).copy())
    torch.manual_seed(0)  # now, as a network that was traced before draws no numbers
    batches = list(torch.randn(3, 16, 3, 32, 32))
    calibrate(network.module, batches)  # with made-up statistics a deep network's values vanish
    refitted = AsymmetricReconstruction.of(network, batches, positions=8)
    model, positions = pruned_to(network, 0.5)
    depthwise = [layer.name for layer in network.layers if layer.kind == "depthwise"]
    before = {each: model.get_submodule(each).get_parameter("weight").clone() for each in depthwise}
    refitted(model, network, positions, final=False)  # then nothing is clipped
    assert all(
        torch.equal(model.get_submodule(each).get_parameter("weight"), before[each]) for each in before
    )
    assert not any(module.training for module in model.modules() if isinstance(module, nn.BatchNorm2d))
    inputs = rows_of(model, torch.cat(batches), [16] * 3, training=True)
    originals = rows_of(network.copy(), torch.cat(batches), [16] * 3, training=False)
    ends = summands(network)
    own = [v for v in network.layers if v.kind != "depthwise" and v.name not in ends]
    checked = [v for v in own if (v.name, "in") in positions]
    for layer in [checked[0], checked[len(checked) // 2], checked[-1]]:
        whole = (
            network.module.get_submodule(layer.name)
            .get_parameter("weight")
            .movedim(1, -1)
            .flatten(1)
            .double()
        )
        rows = positions.get((layer.name, "out"), torch.arange(len(whole)))
        targets = originals[layer.name].double() @ whole[rows].T
        found = design(model.get_submodule(layer.name).get_parameter("weight")).double()
        z = inputs[layer.name].double()
        if layer.has_bias or layer.norm:
            z, targets = z - z.mean(dim=0), targets - targets.mean(dim=0)
        normal = z.T @ (targets - z @ found.T)
        size = (z.T @ targets).abs().max().clamp_min((z.T @ z).abs().max())
        # With fewer rows than unknowns, rounding in all layers before is fitted too.
        assert normal.abs().max() < (1e-4 if len(z) > z.shape[1] else 1e-2) * size


def grouped_net(bias: bool) -> nn.Module:
    """A convolution in groups behind layers that lose channels, and one that reads its outputs."""
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 8, 1, bias=bias),
        nn.ReLU(),
        nn.Conv2d(8, 8, 3, padding=1, bias=bias),
        nn.ReLU(),
        nn.Conv2d(8, 12, 3, stride=2, padding=1, groups=2, bias=bias),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(12 * 9, 5, bias=bias),
    )


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("kind", ["symmetric", "asymmetric"])
def test_every_group_of_a_convolution_solves_its_own_problem(kind: str, bias: bool):
    network, images = trace(grouped_net(bias), torch.randn(1, 3, 6, 6)), torch.randn(100, 3, 6, 6)
    pruned, positions = pruned_to(network, 0.5)
    refits = {
        "symmetric": lambda: SymmetricReconstruction(input_moments(network, [images], positions=100)),
        "asymmetric": lambda: AsymmetricReconstruction.of(network, [images], positions=100),
    }[kind]()
    refits(pruned, network, positions, final=False)
    rows, channels = positions["4", "out"], positions["4", "in"]
    assert pruned.get_submodule("4").groups == 2 and len(rows) == 6 and len(channels) == 2
    with torch.no_grad():
        hidden, now = (Until(model, "4").run(images) for model in (network.module, pruned))
        layer = network.module.get_submodule("4")
        wanted = F.conv2d(hidden, layer.weight, None, 2, 1, 1, 2)[:, rows]
        # The symmetric kind sees what the original gives.
        both = (torch.arange(2)[:, None] * 4 + channels).reshape(-1)
        seen = hidden[:, both] if kind == "symmetric" else now
        found = F.conv2d(seen, pruned.get_submodule("4").weight, None, 2, 1, 1, 2)
    for group in range(2):
        own = seen[:, 2 * group : 2 * group + 2]
        inputs = F.unfold(own, 3, padding=1, stride=2).transpose(1, 2).flatten(0, 1).double()
        outputs = [
            y[:, 3 * group : 3 * group + 3].movedim(1, -1).flatten(0, 2).double() for y in (wanted, found)
        ]
        if bias:
            inputs, outputs = inputs - inputs.mean(dim=0), [y - y.mean(dim=0) for y in outputs]
        solution = torch.linalg.lstsq(inputs, outputs[0]).solution
        assert torch.allclose(outputs[1], inputs @ solution, atol=2e-4)
        lost = (outputs[0] - outputs[1]).square().mean()
        assert lost > 0.02 * outputs[0].square().mean()  # there was something to lose


class Until(torch.fx.Interpreter):
    """Runs a graph as far as to the inputs of a module, and returns those."""

    def __init__(self, module: torch.fx.GraphModule, name: str):
        super().__init__(module)
        self.before = next(node for node in module.graph.nodes if node.target == name).all_input_nodes[0]

    def run(self, *args: torch.Tensor) -> torch.Tensor:  # type: ignore[override]
        super().run(*args)
        return self.found

    def run_node(self, n: torch.fx.Node) -> torch.Tensor:
        value = super().run_node(n)
        if n is self.before:
            self.found = value
        return value


def rows_of(
    model: nn.Module, images: torch.Tensor, sizes: list[int], training: bool
) -> dict[str, torch.Tensor]:
    """Rows of every layer's design matrix at the positions of the reconstruction."""
    found: dict[str, torch.Tensor] = {}
    for name, module in model.named_modules():
        if isinstance(module, nn.Conv2d | nn.Linear):

            def keep(module: nn.Module, arguments: tuple[torch.Tensor, ...], name: str = name) -> None:
                patches = PatchSampler(module, 8)
                found[name] = torch.cat([patches(part) for part in arguments[0].split(sizes)])

            module.register_forward_pre_hook(keep)
        if isinstance(module, nn.BatchNorm2d):
            module.train(training)
    with torch.no_grad():
        model(images)
    return found


def test_an_asymmetric_layer_makes_up_for_the_errors_of_those_before_it():
    model = plain_net(bias=True)
    images = torch.rand(200, 3, 8, 8) + 0.1 * torch.randn(200, 3, 8, 8)
    network = trace(model, images[:1])
    symmetric = SymmetricReconstruction(input_moments(network, [images], positions=10_000))
    asymmetric = AsymmetricReconstruction.of(network, [images], positions=10_000)
    errors = []
    with torch.no_grad():
        for refits in (symmetric, asymmetric):
            pruned, positions = pruned_to(network, 0.5)
            refits(pruned, network, positions)
            errors.append(float((pruned(images) - model(images)).square().mean()))
    assert errors[1] < 0.9 * errors[0]


class Joined(nn.Module):
    """A block with a convolution in its shortcut, one without, and a sum that nothing but inputs go into."""

    def __init__(self, bias: bool = False) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, padding=1)
        self.conv1, self.bn1 = nn.Conv2d(8, 8, 3, padding=1), nn.BatchNorm2d(8)
        self.narrow = nn.Conv2d(8, 8, 1)
        self.conv2 = nn.Conv2d(8, 8, 3, padding=1, bias=bias)
        self.bn2 = nn.BatchNorm2d(8)
        self.relu = nn.ReLU()
        self.linear = nn.Linear(8, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.stem(x)
        x = self.relu(self.bn1(self.conv1(x)) + self.narrow(x))
        x = x + self.bn2(self.conv2(x))
        return self.linear((x + x).mean(dim=(2, 3)))


def test_layers_that_end_in_a_sum_are_found(traced: Callable[[str], Network]):
    network = trace(Joined(), torch.randn(1, 3, 8, 8))
    found = summands(network)
    assert set(found) == {"narrow", "conv2"}  # the later one of the first sum
    assert (found["narrow"].norm, found["conv2"].norm) == (None, "bn2")
    blocks = summands(traced("resnet20"))
    names = [f"layer{stage}.{block}" for stage in (1, 2, 3) for block in (0, 1, 2)]
    assert blocks.keys() == {f"{name}.conv2" for name in names}
    assert all(blocks[f"{name}.conv2"].norm == f"{name}.bn2" for name in names)
    assert summands(trace(plain_net(), torch.randn(1, 3, 8, 8))) == {}
    assert summands(traced("resnet20").without(["layer2.1.conv1"])).keys() == blocks.keys() - {
        "layer2.1.conv2"
    }


def test_a_watched_run_gives_values_ahead_and_computes_nothing_twice(traced: Callable[[str], Network]):
    network, images = traced("resnet20"), torch.randn(2, 3, 32, 32)
    model, other = network.copy(), summands(network)["layer2.0.conv2"].other
    pad = next(str(node.target) for node in model.graph.nodes if node.name == other)
    calls: list[str] = []
    model.get_submodule(pad).register_forward_hook(lambda *_: calls.append(pad))
    seen: list[torch.Size] = []

    def look(x: torch.Tensor, values: Values) -> None:
        seen.extend([x.shape, values(other).shape])

    with torch.no_grad():
        assert torch.equal(WatchedRun(model, {"layer2.0.conv2": look}).run(images), network.module(images))
    assert seen == [torch.Size([2, 32, 16, 16])] * 2
    assert calls == [pad]


class EveryValue(torch.fx.Interpreter):
    """Keeps the value of every node by its name."""

    def __init__(self, module: torch.fx.GraphModule):
        super().__init__(module)
        self.found: dict[str, torch.Tensor] = {}

    def run_node(self, n: torch.fx.Node) -> torch.Tensor:
        self.found[n.name] = super().run_node(n)
        return self.found[n.name]


@pytest.mark.parametrize("bias", [False, True])
def test_what_is_left_of_a_sums_error_is_nothing_that_its_last_layer_could_make_up_for(bias: bool):
    """Its rows are uncorrelated with the layer's inputs, and their mean is zero."""
    torch.manual_seed(0)
    network = trace(Joined(bias), torch.randn(1, 3, 8, 8))
    images = torch.randn(40, 3, 8, 8)
    for module in network.module.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.uniform_(-0.5, 0.5)
            module.running_var.uniform_(0.5, 2.0)
            module.weight.data.uniform_(-1.0, 1.0)
    pruned, positions = pruned_to(network, 0.5)
    AsymmetricReconstruction.of(network, [images], positions=10_000)(pruned, network, positions, final=False)
    runs = EveryValue(network.module), EveryValue(pruned)
    for module in pruned.modules():
        module.train(isinstance(module, nn.BatchNorm2d))
    with torch.no_grad():
        for run in runs:
            run.run(images)
    for name, total in (("narrow", "add"), ("conv2", "add_1")):
        kept = positions[name, "out"]
        error = runs[0].found[total][:, kept] - runs[1].found[total]
        source = next(n for n in pruned.graph.nodes if n.target == name).all_input_nodes[0].name
        patches = PatchSampler(pruned.get_submodule(name), 10_000)
        inputs = patches(runs[1].found[source])
        rows = patches.outputs(error)
        assert rows.abs().mean() > 0.05
        assert rows.mean(dim=0).abs().max() < 1e-4
        assert ((inputs - inputs.mean(dim=0)).T @ rows / len(rows)).abs().max() < 1e-4


def test_a_channel_that_its_batch_norm_silences_makes_up_for_nothing():
    network = trace(Joined(), torch.randn(1, 3, 8, 8))
    images = torch.randn(40, 3, 8, 8)
    network.module.get_submodule("bn2").get_parameter("weight").data[2] = 0.0
    pruned, positions = pruned_to(network, 1.0)
    pruned.get_submodule("conv1").get_parameter("weight").data.mul_(1.5)
    AsymmetricReconstruction.of(network, [images])(pruned, network, positions)
    assert pruned.get_submodule("bn2").get_parameter("weight")[2] == 0.0
    assert all(value.isfinite().all() for value in pruned.state_dict().values())


def test_what_is_no_reconstruction_is_refused():
    with pytest.raises(UserError, match="--reconstruct is none, symmetric or asymmetric, not True"):
        ProblemConfig(reconstruct=True)  # type: ignore[arg-type]

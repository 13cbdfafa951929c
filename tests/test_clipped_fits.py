"""Least squares where a ReLU follows: targets that it clips are met by everything beyond the same end."""

from collections.abc import Callable
from itertools import dropwhile, pairwise

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from amc.clips import ceiling_of
from amc.export.folding import batch_norm_affine
from amc.network import Network, trace
from amc.pruning import fits
from amc.pruning.asymmetric import AsymmetricReconstruction
from amc.pruning.fits import Live, asymmetric_fit, grouped_fits
from amc.pruning.outcomes import Affine, outcomes
from amc.pruning.reconstruction import Positions
from amc.recovery.calibrate import calibrate
from tests.test_reconstruction import EveryValue, Joined, plain_net, pruned_to

RELU = Live(torch.zeros(5), torch.full((5,), torch.inf))


def problem(seed: int = 0) -> tuple[Tensor, Tensor]:
    """Inputs [600, 12] and targets [600, 5] that they explain in part; two of three targets are negative."""
    generator = torch.Generator().manual_seed(seed)
    inputs = torch.randn(600, 12, dtype=torch.float64, generator=generator)
    noise = torch.randn(600, 5, dtype=torch.float64, generator=generator)
    mixing = torch.randn(12, 5, dtype=torch.float64, generator=generator)
    return inputs + 1.0, inputs @ mixing * 0.5 + 1.5 * noise - 0.8


def missed(targets: Tensor, outputs: Tensor, live: Live) -> Tensor:
    """What is left of the error: nothing where both lie beyond the same end."""
    left, ends = outputs - targets, (live.low.expand_as(targets), live.high.expand_as(targets))
    left = torch.where(targets <= ends[0], (outputs - ends[0]).clamp_min(0), left)
    return -torch.where(targets >= ends[1], (outputs - ends[1]).clamp_max(0), left)


@pytest.mark.parametrize("intercept", [False, True])
@pytest.mark.parametrize("live", [RELU, Live(torch.full((5,), -0.5), torch.full((5,), 1.0))])
def test_many_rounds_end_where_the_gradient_vanishes(
    intercept: bool, live: Live, monkeypatch: pytest.MonkeyPatch
):
    inputs, targets = problem()
    monkeypatch.setattr(fits, "CLIPPED_ROUNDS", 200)
    fit = asymmetric_fit(inputs.clone(), targets, torch.zeros(5, 12), intercept, live=live)
    left = missed(targets, inputs @ fit.weight.T + fit.shift, live)
    assert (left.abs() < 1e-12).double().mean() > 0.1  # some need not be met
    assert (inputs.T @ left / len(left)).abs().max() < 1e-4
    assert not intercept or left.mean(dim=0).abs().max() < 1e-4
    assert intercept or not fit.shift.any()


def test_a_few_rounds_come_close_and_no_round_makes_it_worse(monkeypatch: pytest.MonkeyPatch):
    inputs, targets = problem(1)

    def loss(rounds: int) -> float:
        monkeypatch.setattr(fits, "CLIPPED_ROUNDS", rounds)
        fit = asymmetric_fit(inputs.clone(), targets, torch.zeros(5, 12), True, live=RELU)
        return float(missed(targets, inputs @ fit.weight.T + fit.shift, RELU).square().mean())

    few = fits.CLIPPED_ROUNDS
    losses = [loss(rounds) for rounds in range(9)]
    assert all(later <= earlier + 1e-12 for earlier, later in pairwise(losses))
    least = loss(300)
    assert losses[few] - least < 0.1 * (losses[0] - least)


def test_without_an_end_within_reach_it_is_plain_least_squares():
    inputs, targets = problem(2)
    far = Live(torch.full((5,), -torch.inf), torch.full((5,), torch.inf))
    plain, same = (
        asymmetric_fit(inputs.clone(), targets, torch.zeros(5, 12), True, live=live) for live in (None, far)
    )
    assert torch.allclose(plain.weight, same.weight) and torch.allclose(plain.shift, same.shift)


def test_groups_have_ends_of_their_own():
    inputs, targets = problem(3)
    live = Live(torch.zeros(600, 10) + torch.arange(10) / 10, torch.full((10,), torch.inf))
    both, prior = torch.cat([targets, -targets], dim=1), torch.zeros(10, 12)
    found = grouped_fits(torch.stack([inputs, inputs + 1]), both, prior, True, 1e-6, live)
    second = Live(live.low[:, 5:], live.high[5:])
    alone = asymmetric_fit(inputs + 1, -targets, prior[5:], True, live=second)
    assert torch.equal(found[1].weight, alone.weight)


@pytest.mark.parametrize("ceiling", [float("inf"), 6.0])
def test_ends_are_where_the_affine_map_leaves_what_is_not_clipped(ceiling: float):
    layer, norm = nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4)
    norm.running_mean.uniform_(-1, 1)
    norm.running_var.uniform_(0.5, 2)
    norm.weight.data = torch.tensor([1.5, -0.7, 0.0, 0.4])
    norm.bias.data.uniform_(-1, 1)
    rows = torch.tensor([0, 1, 2, 3])
    outputs, other = 8 * torch.randn(500, 4), torch.randn(500, 4)
    live = Affine.of(layer, norm, rows).live(ceiling, other)
    with torch.no_grad():
        behind = norm.eval()((outputs + layer.bias)[:, :, None, None])[:, :, 0, 0] + other
    inside = (outputs > live.low) & (outputs < live.high)
    wanted = (behind > 0) & (behind < ceiling)
    assert torch.equal(inside[:, [0, 1, 3]], wanted[:, [0, 1, 3]])
    assert 0 < inside[:, 1].float().mean() < 1
    assert inside[:, 2].all()  # the channel says nothing, so nothing of it is clipped


def test_what_happens_to_outputs_is_found(traced: Callable[[str], Network]):
    blocks = outcomes(traced("resnet20"))
    assert all(way.ceiling == float("inf") for name, way in blocks.items() if name != "linear")
    assert blocks["linear"].ceiling is None and blocks["linear"].norm is None
    assert blocks["layer1.0.conv1"].norm == "layer1.0.bn1" and blocks["layer1.0.conv1"].end is None
    assert blocks["layer1.0.conv2"].norm == "layer1.0.bn2" and blocks["layer1.0.conv2"].end is not None
    network = traced("mobilenet_v2")
    mobile = {layer.name: outcomes(network)[layer.name] for layer in network.layers}
    ceilings = {way.ceiling for way in mobile.values()}
    assert ceilings == {6.0, None}  # the last layer of a bottleneck is linear
    assert all(way.ceiling is None for way in mobile.values() if way.end)
    joined = outcomes(trace(Joined(), torch.randn(1, 3, 8, 8)))
    assert joined["narrow"].ceiling == float("inf") and joined["narrow"].end is not None
    assert joined["conv1"].ceiling is None  # the other summand is not known yet
    assert joined["conv2"].ceiling is None and joined["conv2"].norm == "bn2"
    plain = outcomes(trace(plain_net(), torch.randn(1, 3, 8, 8)))
    assert [plain[name].ceiling for name in ("0", "2", "5")] == [float("inf"), float("inf"), None]


class Forked(nn.Module):
    """The first layer's outputs are read by a ReLU and, unclipped, by a sum; the last one's by two ReLUs."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Conv2d(3, 8, 1), nn.Conv2d(8, 8, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x)
        x = self.last(x + F.relu(x))
        return F.relu(x) * torch.relu(x).mean()


def test_outputs_that_are_read_unclipped_too_are_met_everywhere():
    found = outcomes(trace(Forked(), torch.randn(1, 3, 8, 8)))
    assert found["first"].ceiling is None and found["last"].ceiling == float("inf")


class Residual(nn.Module):
    """A block with batch norms that scale by both signs, and a ReLU behind its sum."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.relu = nn.Conv2d(3, 8, 3, padding=1), nn.ReLU()
        self.conv1, self.bn1 = nn.Conv2d(8, 8, 3, padding=1), nn.BatchNorm2d(8)
        self.conv2, self.bn2 = nn.Conv2d(8, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8)
        self.linear = nn.Linear(8, 4)
        for norm in (self.bn1, self.bn2):
            nn.init.uniform_(norm.weight, 0.5, 1.5)
            norm.weight.data[::2] *= -1
            nn.init.normal_(norm.bias, std=0.5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.relu(self.stem(x))
        other = 2 * x - 1
        y = self.bn2(self.conv2(self.relu(self.bn1(self.conv1(x)))))
        return self.linear(self.relu(y + other).mean(dim=(2, 3)))


@pytest.fixture
def residual() -> tuple[Network, Tensor]:
    """Traced, its norms with the statistics of the images."""
    torch.manual_seed(0)
    images = F.avg_pool2d(torch.randn(300, 3, 16, 16), 2) * 2
    model = Residual()
    calibrate(model, [images])
    return trace(model, images[:1]), images


def refitted(network: Network, images: Tensor, final: bool = True) -> tuple[nn.Module, Positions]:
    pruned, positions = pruned_to(network, 0.6)
    refits = AsymmetricReconstruction.of(network, [images], positions=10_000)
    assert refits(pruned, network, positions, final=final)
    return pruned, positions


@pytest.mark.parametrize("name", ["conv1", "conv2"])
def test_what_a_relu_lets_through_is_met_better(
    name: str, residual: tuple[Network, Tensor], monkeypatch: pytest.MonkeyPatch
):
    """By a layer with a batch norm behind it, and by one that ends in a sum."""
    network, images = residual
    errors = []
    for rounds in (0, 4):
        monkeypatch.setattr(fits, "CLIPPED_ROUNDS", rounds)
        pruned, positions = refitted(network, images)
        kept = positions.get((name, "out"), torch.arange(8))
        errors.append(behind_relu(network.module, pruned, name, kept, images))
    assert errors[1] < 0.96 * errors[0]


def effect(norm: nn.Module) -> Tensor:
    """Factor and offset of each channel, [2, channels]."""
    found = batch_norm_affine(norm, 0)
    return torch.stack([torch.as_tensor(found.factor), torch.as_tensor(found.shift)])


def test_norms_in_front_of_a_relu_map_as_the_originals_did(residual: tuple[Network, Tensor]):
    network, images = residual
    for final, alike in ((True, True), (False, False)):
        pruned, positions = refitted(network, images, final)
        kept = positions["conv1", "out"]
        before, after = effect(network.module.get_submodule("bn1")), effect(pruned.get_submodule("bn1"))
        assert torch.allclose(after, before[:, kept], rtol=2e-3, atol=2e-3) == alike
        before, after = effect(network.module.get_submodule("bn2")), effect(pruned.get_submodule("bn2"))
        kept = positions.get(("conv2", "out"), torch.arange(8))
        assert torch.allclose(after[0], before[0, kept], rtol=2e-3)  # it ends in a sum


def test_norms_that_are_no_map_of_channels_are_left_alone():
    """Without statistics of their own, without factors, or with tokens for channels."""
    torch.manual_seed(0)
    images = torch.randn(40, 3, 8, 8)
    for odd in (nn.BatchNorm2d(8, track_running_stats=False), nn.BatchNorm2d(8, affine=False)):
        model = nn.Sequential(
            nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 8, 3), odd, nn.ReLU(),
            nn.Flatten(), nn.Linear(128, 4),
        )  # fmt: skip
        network = trace(model, images[:1])
        assert outcomes(network)["0"].ceiling is not None and outcomes(network)["3"].ceiling is None
        refitted(network, images)
    tokens = nn.Sequential(nn.Linear(6, 12), nn.ReLU(), nn.Linear(12, 12), nn.BatchNorm1d(12), nn.ReLU())
    network = trace(tokens, torch.randn(1, 12, 6))
    assert network.layer("2").norm is None and outcomes(network)["2"].ceiling is None


class SharesItsNorm(nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.second = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 8, 3, padding=1)
        self.norm, self.relu, self.linear = nn.BatchNorm2d(8), nn.ReLU(), nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = self.relu(self.norm(self.first(x)))
        return self.linear(self.relu(self.norm(self.second(x))).mean(dim=(2, 3)))


def test_a_norm_that_is_called_twice_is_left_to_the_calibration():
    torch.manual_seed(0)
    images, model = torch.randn(40, 3, 8, 8), SharesItsNorm()
    calibrate(model, [images])
    network = trace(model, images[:1])
    pruned, positions = pruned_to(network, 0.6)
    refits = AsymmetricReconstruction.of(network, [images], positions=64)
    assert not refits(pruned, network, positions)


def test_what_is_replaced_aims_at_all_outputs(traced: Callable[[str], Network]):
    found = outcomes(traced("resnet20"))
    inner, last = found["layer1.0.conv1"].unclipped, found["layer1.0.conv2"].unclipped
    assert inner.ceiling is None and inner.norm is None
    assert last.ceiling is None and last.norm == "layer1.0.bn2" and last.end is not None


@torch.no_grad()
def behind_relu(original: nn.Module, pruned: nn.Module, name: str, kept: Tensor, images: Tensor) -> float:
    """Mean squared error of what the first ReLU behind a layer, or behind the sum that it ends in, gives."""
    clipped: list[Tensor] = []
    for model in (original, pruned):
        assert isinstance(model, torch.fx.GraphModule)
        run = EveryValue(model)
        run.run(images)
        behind = dropwhile(lambda node: node.target != name, model.graph.nodes)
        relu = next(node for node in behind if ceiling_of(model, node) is not None)
        clipped.append(run.found[relu.name])
    return float((clipped[0][:, kept] - clipped[1]).square().mean())

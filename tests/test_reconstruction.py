import pytest
import torch
from torch import nn
from torch.nn import functional as F

from amc.compress import ChannelPruning, apply
from amc.knobs import WidthKnob
from amc.network import trace
from amc.pruning.importance import rank_channels
from amc.pruning.reconstruction import InputMoments, input_moments, reconstruct_weight
from amc.space import Space


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
    moments = input_moments(network, [images], positions=10_000)
    with torch.no_grad():
        expected = model(images)
        plain, rebuilt = (
            apply(space.policy(table), network, [ChannelPruning(ranking, None, m)])(images)
            for m in (None, moments)
        )
    assert (plain - expected).abs().max() > 1e-2
    assert torch.allclose(rebuilt, expected, atol=1e-3)

import pytest
import torch
from torch import nn

from amc.network import Network, trace
from amc.pruning.importance import rank_channels
from amc.pruning.reconstruction import InputMoments, input_moments, reconstruct_weight
from amc.pruning.surgeon import eliminate_channels


def chain(*layers: nn.Module, side: int = 6) -> Network:
    torch.manual_seed(0)
    model = nn.Sequential(*layers).eval()
    return trace(model, torch.zeros(1, 3, side, side))


def images(side: int = 6) -> list[torch.Tensor]:
    return [torch.randn(64, 3, side, side, generator=torch.Generator().manual_seed(1))]


def error(weight: torch.Tensor, moments: InputMoments, kept: list[int]) -> float:
    """Squared error of the best layer that reads these inputs only."""
    chosen = torch.tensor(sorted(kept))
    new, _ = reconstruct_weight(weight, moments, chosen)
    per_input = weight[0, 0].numel()
    padded = torch.zeros(weight.shape, dtype=torch.float64).reshape(len(weight), -1)
    padded[:, (chosen[:, None] * per_input + torch.arange(per_input)).reshape(-1)] = new.double().flatten(1)
    off = weight.detach().double().reshape(len(weight), -1) - padded
    return float(((off @ moments.second) * off).sum())


def test_each_step_leaves_out_what_costs_least_after_refitting():
    network = chain(nn.Conv2d(3, 6, 3, padding=1), nn.ReLU(), nn.Conv2d(6, 5, 3, padding=1))
    moments = input_moments(network, images())
    order = eliminate_channels(network, moments).orders["0"].tolist()
    weight, known = network.module.get_submodule("2").weight, moments["2"]
    for width in range(5, 0, -1):
        now = order[: width + 1]
        errors = {left: error(weight, known, [c for c in now if c != left]) for left in now}
        assert order[width] == min(errors, key=lambda channel: errors[channel])


def test_a_channel_that_says_what_another_says_goes_first_however_large_its_weights():
    first, second = nn.Conv2d(3, 4, 1, bias=False), nn.Conv2d(4, 3, 1, bias=False)
    network = chain(first, second)
    with torch.no_grad():
        convolution, reader = network.module.get_submodule("0"), network.module.get_submodule("1")
        convolution.weight[3] = convolution.weight[0]
        reader.weight[:, [0, 3]] *= 10.0
    order = eliminate_channels(network, input_moments(network, images())).orders["0"].tolist()
    assert order[-1] in (0, 3)
    assert set(rank_channels(network, "l2")["0"].tolist()[:2]) == {0, 3}


def test_a_batch_norm_behind_makes_outputs_count_by_its_scale():
    network = chain(nn.Conv2d(3, 4, 1, bias=False), nn.Conv2d(4, 2, 1, bias=False), nn.BatchNorm2d(2))
    with torch.no_grad():
        network.module.get_submodule("0").weight.copy_(torch.eye(4, 3)[:, :, None, None])
        network.module.get_submodule("0").weight[3, 0] = -0.5
        # Output 0 is large and reads channel 1; output 1 is small and reads channel 2.
        network.module.get_submodule("1").weight.zero_()
        network.module.get_submodule("1").weight[0, 1] = 100.0
        network.module.get_submodule("1").weight[1, 2] = 1.0
        network.module.get_submodule("2").weight.copy_(torch.tensor([0.1, 1.0]))
    order = eliminate_channels(network, input_moments(network, images())).orders["0"].tolist()
    assert order[:2] == [2, 1]


def test_a_linear_layer_behind_a_flatten_loses_all_pixels_of_a_channel():
    network = chain(nn.Conv2d(3, 4, 3, padding=1), nn.ReLU(), nn.Flatten(), nn.Linear(4 * 36, 3))
    with torch.no_grad():
        linear = network.module.get_submodule("3")
        linear.weight.reshape(3, 4, 36)[:, 2] = 0.0
    order = eliminate_channels(network, input_moments(network, images())).orders["0"].tolist()
    assert order[-1] == 2 and sorted(order) == [0, 1, 2, 3]


def test_every_reader_of_a_stream_has_a_say():
    class TwoReaders(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.stem = nn.Conv2d(3, 3, 1, bias=False)
            self.left, self.right = nn.Conv2d(3, 2, 1), nn.Conv2d(3, 2, 1)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            x = self.stem(x)
            return self.left(x) + self.right(x)

    torch.manual_seed(0)
    network = trace(TwoReaders().eval(), torch.zeros(1, 3, 6, 6))
    with torch.no_grad():
        parts = {name: network.module.get_submodule(name) for name in ("stem", "left", "right")}
        parts["stem"].weight.copy_(torch.eye(3)[:, :, None, None])
        parts["left"].weight.copy_(torch.tensor([[1.0, 0.0, 0.1], [2.0, 0.0, 0.1]])[:, :, None, None])
        # In absolute terms the right reader is a hundredth of the left one, and must not be drowned out.
        parts["right"].weight.copy_(torch.tensor([[0.0, 0.01, 0.0], [0.0, 0.02, 0.0]])[:, :, None, None])
    order = eliminate_channels(network, input_moments(network, images())).orders["stem"].tolist()
    assert order[-1] == 2


def test_units_of_a_convolution_in_groups_go_together():
    network = chain(
        nn.Conv2d(3, 8, 1), nn.ReLU(), nn.Conv2d(8, 8, 3, padding=1, groups=4), nn.ReLU(), nn.Conv2d(8, 4, 1)
    )
    orders = eliminate_channels(network, input_moments(network, images())).orders
    group = next(group for group in network.groups if group.units is not None and group.name in orders)
    assert group.units is not None
    units = {tuple(sorted(unit)) for unit in group.units.tolist()}
    order = orders[group.name].tolist()
    pieces = {tuple(sorted(order[i : i + group.step])) for i in range(0, len(order), group.step)}
    assert pieces == units


@pytest.mark.parametrize("channels", [150, 200])
def test_wide_groups_lose_several_channels_at_a_time_and_keep_every_one_in_the_order(channels: int):
    network = chain(nn.Conv2d(3, channels, 1), nn.ReLU(), nn.Conv2d(channels, 4, 1))
    order = eliminate_channels(network, input_moments(network, images())).orders["0"]
    assert sorted(order.tolist()) == list(range(channels))


def test_without_moments_weights_decide():
    network = chain(nn.Conv2d(3, 6, 1), nn.ReLU(), nn.Conv2d(6, 4, 1))
    assert eliminate_channels(network, {}).orders["0"].tolist() == rank_channels(network, "l2")["0"].tolist()


def test_errors_fall_with_every_channel_and_end_at_none():
    network = chain(nn.Conv2d(3, 6, 3, padding=1), nn.ReLU(), nn.Conv2d(6, 5, 3, padding=1))
    moments = input_moments(network, images())
    found = eliminate_channels(network, moments)
    errors, order = found.errors["0"], found.orders["0"].tolist()
    assert len(errors) == 7 and errors[6] == 0.0 and (errors.diff() <= 1e-12).all()
    # Without any input all of the signal is lost; in between it is the error of least squares.
    assert float(errors[0]) == pytest.approx(1.0, rel=1e-4)
    weight, known = network.module.get_submodule("2").weight, moments["2"]
    flat = weight.detach().double().reshape(5, -1)
    signal = float(((flat @ known.second) * flat).sum())
    assert float(errors[3]) == pytest.approx((error(weight, known, order[:3]) / signal) ** 0.5, rel=1e-3)


def test_amplitudes_add_up_over_the_readers():
    def stem_and(readers: int) -> list[float]:
        class Readers(nn.Module):
            def __init__(self) -> None:
                super().__init__()
                self.stem = nn.Conv2d(3, 4, 1, bias=False)
                self.heads = nn.ModuleList(nn.Conv2d(4, 2, 1) for _ in range(readers))

            def forward(self, x: torch.Tensor) -> torch.Tensor:
                x = self.stem(x)
                return torch.stack([head(x) for head in self.heads]).sum(0)

        torch.manual_seed(0)
        model = Readers().eval()
        for head in model.heads:
            head.load_state_dict(model.heads[0].state_dict())
        network = trace(model, torch.zeros(1, 3, 6, 6))
        return eliminate_channels(network, input_moments(network, images())).errors["stem"].tolist()

    assert stem_and(2) == pytest.approx([2 * one for one in stem_and(1)], rel=1e-6, abs=1e-9)

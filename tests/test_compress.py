"""Carrying a policy out: masked against sliced networks, costs against what the sliced network has."""

import math

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from amc.compress import ActivationQuantization, ChannelPruning, WeightQuantization, apply
from amc.costs.symbolic import symbolic_costs
from amc.graph import ChannelPad
from amc.knobs import BitsKnob, WidthKnob
from amc.models import list_models
from amc.network import Network, trace
from amc.policy import CompressionPolicy
from amc.pruning.importance import rank_channels
from amc.quantization.modules import ActivationQuantizer
from amc.space import Space


def space_of(network: Network, weight_bits=(2, 8, 32), activation_bits=(4, 8, 32)) -> Space:
    weights = BitsKnob("weight_bits", network, weight_bits)
    return Space(network, (WidthKnob(), weights, BitsKnob("activation_bits", network, activation_bits)))


def random_table(space: Space, seed: int) -> np.ndarray:
    draw = np.random.default_rng(seed)
    table = space.empty()
    for row in range(len(space.points)):
        for column in range(len(space.knobs)):
            if space.decider[row, column] == row:
                legal = space.legal(row, column)
                table = space.decide(table, row, column, int(draw.choice(legal)))
    return table.values


def pruned(network: Network, policy: CompressionPolicy) -> nn.Module:
    return apply(policy, network, [ChannelPruning(rank_channels(network))])


def masked_logits(network: Network, policy: CompressionPolicy, x: Tensor) -> Tensor:
    """The whole network with dropped channels set to 0 where they leave a layer or a batch norm."""
    kept = ChannelPruning(rank_channels(network)).kept(network, policy)
    model = network.copy()
    for group in network.groups:
        if group.name not in kept:
            continue
        dropped = torch.ones(group.channels, dtype=torch.bool)
        dropped[kept[group.name]] = False
        for member in group.members:
            if member.side == "in":
                continue
            positions = member.positions[dropped].flatten()

            def silence(_: nn.Module, __: object, output: Tensor, positions: Tensor = positions) -> Tensor:
                return output.index_fill(1, positions, 0.0)

            model.get_submodule(member.module).register_forward_hook(silence)
    with torch.no_grad():
        return model(x)


def counted_macs(model: nn.Module, x: Tensor) -> int:
    """Multiplications of convolutions and linear layers, counted while the model runs on one input."""
    total = 0

    def count(module: nn.Module, _: object, output: Tensor) -> None:
        nonlocal total
        positions = output[0, 0].numel() if isinstance(module, nn.Conv2d) else 1
        total += module.weight.numel() * positions

    for module in model.modules():
        if isinstance(module, nn.Conv2d | nn.Linear) and not isinstance(module, ChannelPad):
            module.register_forward_hook(count)
    with torch.no_grad():
        model(x)
    return total


def counted_parameters(model: nn.Module) -> int:
    pads = sum(m.weight.numel() for m in model.modules() if isinstance(m, ChannelPad))
    return sum(p.numel() for p in model.parameters()) - pads


@pytest.mark.parametrize("name", list_models())
def test_sliced_network_computes_what_the_masked_one_does_at_the_cost_that_is_claimed(name, traced):
    network = traced(name)
    space = space_of(network)
    costs = symbolic_costs(space)
    x = torch.randn(2, *network.example.shape[1:], generator=torch.Generator().manual_seed(1))
    for seed in range(3):
        table = random_table(space, seed)
        policy = space.policy(table)
        sliced = pruned(network, policy)
        with torch.no_grad():
            logits = sliced(x)
        expected = masked_logits(network, policy, x)
        assert (logits - expected).abs().max() <= 1e-4 * expected.abs().max().clamp_min(1)
        assert counted_macs(sliced, x[:1]) + network.fixed_macs == costs["macs"].of(table)
        assert counted_parameters(sliced) == costs["params"].of(table)
        assert costs["macs"].of(table) < network.macs


def test_nothing_pruned_is_the_network_itself(traced):
    network = traced("resnet20")
    space = space_of(network)
    x = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        same = pruned(network, space.policy(space.original()))(x)
        assert torch.equal(same, network.module(x))


def test_applying_leaves_the_network_untouched(traced):
    network = traced("concatnet")
    before = {key: value.clone() for key, value in network.module.state_dict().items()}
    space = space_of(network)
    knobs = space.knobs
    compressors = [
        ActivationQuantization(knobs[2]),
        WeightQuantization(knobs[1]),
        ChannelPruning(rank_channels(network)),
    ]
    model = apply(space.policy(space.smallest), network, compressors)
    with torch.no_grad():
        model(network.example)
    after = network.module.state_dict()
    assert list(after) == list(before) and all(torch.equal(after[key], before[key]) for key in before)
    points = [m for m in network.module.modules() if isinstance(m, ActivationQuantizer)]
    assert points and not any(point.enabled for point in points)


def test_kept_channels_are_the_most_important_in_their_order():
    conv = nn.Conv2d(1, 4, 1, bias=False)
    conv.weight.data = torch.tensor([1.0, -4.0, 2.0, 3.0]).reshape(4, 1, 1, 1)
    last = nn.Conv2d(4, 2, 1, bias=False)
    last.weight.data = torch.arange(8.0).reshape(2, 4, 1, 1)
    network = trace(nn.Sequential(conv, last, nn.Flatten()), torch.zeros(1, 1, 1, 1))
    policy = CompressionPolicy.from_json(
        {
            "format": "amc-policy",
            "version": 1,
            "network": network.fingerprint,
            "decisions": [
                {"point": "0", "operator": "original", "values": {"width": 2}},
                {"point": "1", "operator": "original", "values": {"width": 2}},
            ],
        }
    )
    ranking = {"0": torch.tensor([1, 3, 2, 0])}
    model = apply(policy, network, [ChannelPruning(ranking)])
    assert model.get_submodule("0").weight.flatten().tolist() == [-4.0, 3.0]
    assert model.get_submodule("1").weight.flatten().tolist() == [1.0, 3.0, 5.0, 7.0]


# ---- importance -----------------------------------------------------------------------------------------


def two_layers() -> Network:
    """Groups whose scores are easy: rows (1, 2, 3, 4) / 2.5, columns (4, 1, 1, 2) / 2."""
    conv, norm, last = nn.Conv2d(1, 4, 1, bias=False), nn.BatchNorm2d(4), nn.Conv2d(4, 1, 1, bias=False)
    conv.weight.data = torch.tensor([1.0, 2.0, -3.0, 4.0]).reshape(4, 1, 1, 1)
    norm.weight.data = torch.tensor([0.1, -0.9, 0.5, 0.3])
    last.weight.data = torch.tensor([4.0, -1.0, 1.0, 2.0]).reshape(1, 4, 1, 1)
    return trace(nn.Sequential(conv, norm, last), torch.zeros(1, 1, 2, 2))


@pytest.mark.parametrize(
    ("importance", "order"),
    [
        ("l1", [3, 0, 2, 1]),  # rows + columns: 2.4, 1.3, 1.7, 2.6
        ("l2", [0, 3, 2, 1]),  # squares, over 7.5 and 5.5: 3.04, 0.72, 1.38, 2.86
        ("bn", [1, 2, 3, 0]),
    ],
)
def test_importance_by_hand(importance, order):
    assert rank_channels(two_layers(), importance)["0"].tolist() == order


def test_taylor_is_the_weight_times_its_gradient():
    network = two_layers()
    batch = (torch.ones(1, 1, 2, 2), torch.zeros(1))

    def loss(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
        """Depends on channel 2 alone."""
        seen: list[Tensor] = []
        handle = model.get_submodule("2").register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
        model(x)
        handle.remove()
        return seen[0][:, 2].sum()

    assert rank_channels(network, "taylor", [batch], loss)["0"][0] == 2


# ---- costs by hand --------------------------------------------------------------------------------------


def small() -> tuple[Network, Space]:
    """Conv 3 -> 4 (3 x 3, batch norm) on 6 x 6 pixels, conv 4 -> 5 (1 x 1, bias), linear 5 -> 2."""
    model = nn.Sequential(
        nn.Conv2d(3, 4, 3, padding=1, bias=False),
        nn.BatchNorm2d(4),
        nn.Conv2d(4, 5, 1),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(5, 2),
    )
    network = trace(model, torch.zeros(1, 3, 6, 6))
    return network, space_of(network)


def test_costs_of_a_small_network_by_hand():
    _, space = small()
    costs = symbolic_costs(space)
    table = np.array([[3, 2, 8], [2, 8, 4], [2, 32, 32]])  # widths, weight bits, activation bits
    weights = [3 * 3 * 9, 3 * 2, 2 * 2]
    macs = [weights[0] * 36, weights[1] * 36, weights[2]]
    assert costs["macs"].of(table) == sum(macs)
    assert costs["params"].of(table) == sum(weights) + 2 * 3 + 2 + 2
    codes = math.ceil(81 * 2 / 8) + 6 + 4 * 4
    floats = (3 + 2) + (3 + 2 + 2)  # a scale a quantized channel; a bias a channel, batch norm folded in
    assert costs["size"].of(table) == codes + 4 * floats
    assert costs["bops"].of(table) == macs[0] * 16 + macs[1] * 32 + macs[2] * 1024


def test_batch_norm_that_cannot_be_folded_costs_two_numbers_a_channel():
    model = nn.Sequential(
        nn.BatchNorm2d(3), nn.Conv2d(3, 4, 1, bias=False), nn.ReLU(), nn.BatchNorm2d(4), nn.Flatten()
    )
    space = space_of(trace(model, torch.zeros(1, 3, 2, 2)))
    costs, table = symbolic_costs(space), space.original()
    assert costs["params"].of(table) == 12 + 2 * 3 + 2 * 4
    assert costs["size"].of(table) == 4 * (12 + 6 + 8)


def test_original_size_is_four_bytes_a_parameter_after_folding(traced):
    network = traced("resnet20")
    space = space_of(network)
    folded = sum(layer.weights + layer.out_channels for layer in network.layers)
    assert symbolic_costs(space)["size"].of(space.original()) == 4 * folded


@pytest.mark.parametrize("name", ["resnet20", "concatnet", "mobilenet_v2"])
def test_costs_grow_with_every_entry(name, traced):
    space = space_of(traced(name))
    costs = symbolic_costs(space)
    low, high = random_table(space, 0), random_table(space, 1)
    low, high = np.minimum(low, high), np.maximum(low, high)
    for cost in costs.values():
        assert cost.of(space.smallest) < cost.of(low) < cost.of(high) < cost.of(space.largest)

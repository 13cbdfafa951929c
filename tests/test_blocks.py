"""Leaving residual blocks out: which can go, what is left without them, and that every cost knows it."""

from dataclasses import replace

import numpy as np
import onnxruntime
import pytest
import torch
from torch import Tensor, nn

from amc.compress import ActivationQuantization, ChannelPruning, WeightQuantization, apply
from amc.costs.budget import parse_budget
from amc.costs.latency.features import LatencyFeatures
from amc.costs.latency.sampling import random_table
from amc.costs.symbolic import symbolic_costs
from amc.errors import UserError
from amc.export import export_onnx
from amc.groups import NORMS
from amc.knobs import BitsKnob, BlockKnob, WidthKnob
from amc.network import Network, trace
from amc.package import Architecture, Package, kept_by, load_package, save_package
from amc.package_form import packed_form
from amc.policy import REMOVED, LayerDecision
from amc.pruning.block_importance import block_changes, deepest_blocks
from amc.pruning.importance import rank_channels
from amc.quantization.modules import ActivationQuantizer
from amc.recovery.calibrate import calibrate
from amc.space import LEFT_OUT, Space
from envs.walk import Walk

WITH_BLOCKS = ("resnet20", "mobilenet_v2", "digitsnet")


def space_of(network: Network, bits=(8, 32), reference=None) -> Space:
    latency = min(bits)
    implied = ("activation_bits", dict(zip(sorted(bits), sorted(bits), strict=True)))
    return Space(
        network,
        (
            BlockKnob(network, reference),
            WidthKnob(),
            BitsKnob("weight_bits", network, bits, latency, implied),
            BitsKnob("activation_bits", network, bits, latency),
        ),
    )


def compressors_of(space: Space) -> tuple:
    return (
        ChannelPruning(rank_channels(space.network), space.knobs[1]),
        WeightQuantization(space.knobs[2]),
        ActivationQuantization(space.knobs[3]),
    )


def noise(network: Network, count: int = 4) -> Tensor:
    return torch.randn(count, *network.example.shape[1:], generator=torch.Generator().manual_seed(1))


def random_tables(space: Space, count: int) -> list[np.ndarray]:
    rng = np.random.default_rng(0)
    return [random_table(space, rng) for _ in range(count)]


@pytest.mark.parametrize(
    ("name", "count", "first"),
    [
        ("resnet20", 7, "layer1.0.conv1"),
        ("mobilenet_v2", 12, "features.1.conv.0.0"),
        ("digitsnet", 2, "block1.conv1"),
        ("vgg16", 0, None),
        ("plain20", 0, None),
        ("concatnet", 0, None),
    ],
)
def test_blocks_with_an_identity_shortcut_are_found(name, count, first, traced):
    blocks = traced(name).blocks
    assert len(blocks) == count
    assert (blocks[0].name if blocks else None) == first
    assert all(block.name == block.layers[0] for block in blocks)


class Nested(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.outer = nn.Conv2d(3, 3, 3, padding=1)
        self.inner = nn.Conv2d(3, 3, 1)
        self.head = nn.Conv2d(3, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(x)
        y = self.outer(x)
        y = y + self.inner(y)
        return self.head(x + y).mean((2, 3))


class ReadTwice(Nested):
    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(x)
        y = self.outer(x)
        return self.head(x + y).mean((2, 3)) + self.inner(y).mean()


def test_of_nested_blocks_the_inner_one_counts():
    assert [block.name for block in trace(Nested(), torch.zeros(1, 3, 8, 8)).blocks] == ["inner"]


def test_a_branch_that_is_read_elsewhere_stays():
    assert trace(ReadTwice(), torch.zeros(1, 3, 8, 8)).blocks == ()


@pytest.mark.parametrize("name", WITH_BLOCKS)
def test_without_a_block_is_as_if_it_added_nothing(name, traced):
    network = traced(name)
    silenced, wanted = network.copy(), [block.name for block in network.blocks[1:]]
    nodes = {node.name: node for node in network.module.graph.nodes}
    for block in network.blocks[1:]:
        targets = [str(nodes[n].target) for n in block.nodes if nodes[n].op == "call_module"]
        last = [t for t in targets if isinstance(silenced.get_submodule(t), NORMS)][-1]
        for tensor in silenced.get_submodule(last).parameters():
            tensor.data.zero_()
    x = noise(network)
    with torch.no_grad():
        torch.testing.assert_close(network.without(wanted).module(x), silenced(x), rtol=1e-4, atol=1e-5)


def test_what_becomes_idle_goes_too(traced):
    network = traced("resnet20")
    left = network.without(block.name for block in network.blocks)
    calls = [str(node.target) for node in left.module.graph.nodes]
    relus = [n for n in left.module.graph.nodes if n.target is torch.nn.functional.relu]
    assert len(relus) == 1 + 2 * 2, "the stem and the two blocks that change the shape"
    points = [p.name for p in left.points]
    assert [name for name in calls if name in points] == points
    behind = {node.args[0] for node in left.module.graph.nodes if str(node.target) in points}
    doubled = [n for n in behind if str(n.target) in points and "narrow" not in str(n.target)]
    narrow = [p for p in points if "narrow" in p]
    assert len(doubled) == len(narrow), "only a narrow point stands behind another point"


@pytest.mark.parametrize("name", WITH_BLOCKS)
def test_costs_count_what_is_left(name, traced):
    network = traced(name)
    space = space_of(network, bits=(8, 32))
    costs = symbolic_costs(space)
    pruning = ChannelPruning(rank_channels(network), space.knobs[1])
    for table in random_tables(space, 4):
        policy = space.policy(table)
        model = apply(policy, network, (pruning,))
        left = trace(model, network.example)
        assert costs["macs"].of(table) == left.macs
        assert costs["params"].of(table) == sum(p.numel() for p in model.parameters() if p.requires_grad)


@pytest.mark.parametrize("name", WITH_BLOCKS)
def test_tables_and_policies_are_two_ways_to_write_the_same(name, traced):
    space = space_of(traced(name))
    for table in random_tables(space, 20):
        np.testing.assert_array_equal(space.table(space.policy(table)), table)


def test_nothing_is_left_to_decide_about_a_block_that_is_gone(traced):
    network = traced("resnet20")
    space = space_of(network)
    block = network.blocks[0]
    row, column = space.row(block.name), space.column("block")
    partial = space.decide(space.empty(), row, column, LEFT_OUT)
    assert partial.decided[row].all()
    shared = space.row(block.layers[-1]), space.column("width")
    assert not partial.decided[shared], "its sum is read by the other blocks of the stage"


def test_costs_and_latency_features_fall_with_every_block(traced):
    space = space_of(traced("resnet20"))
    features, costs = LatencyFeatures(space, (8, 16)), symbolic_costs(space)
    table = space.largest
    for block in space.network.blocks:
        shorter = table.copy()
        shorter[space.row(block.name), space.column("block")] = LEFT_OUT
        assert all(cost.of(shorter) < cost.of(table) for cost in costs.values())
        assert (features.of(shorter) <= features.of(table) + 1e-9).all()
        table = shorter


def test_every_episode_keeps_the_budget_and_the_reference_keeps_its_blocks(traced):
    network = traced("resnet20")
    kept = {block.name for block in network.blocks[::2]}
    space = space_of(network, bits=(32,), reference=kept)
    costs = symbolic_costs(space)
    original = {name: cost.of(space.original()) for name, cost in costs.items()}
    budget = parse_budget("macs=0.3", costs, original)
    walk = Walk(space, (budget,), budget.cost.knobs, costs["macs"])
    reference = space.table(walk.reference_policy())
    assert set(space.left_out(reference)) == {block.name for block in network.blocks} - kept
    rng, depths = np.random.default_rng(0), set()
    for _ in range(30):
        walk.reset()
        done = False
        while not done:
            _, _, done = walk.step(rng.uniform(-1, 1, walk.action_size))
        table = walk.partial.values
        assert 0.93 * budget.limit <= budget.cost.of(table) <= budget.limit
        depths.add(len(space.left_out(table)))
    assert len(depths) > 2


# Random weights amplify what differs by one code; with all blocks it is twice as much.
@pytest.mark.parametrize(("bits", "tolerance"), [((32,), 1e-4), ((7, 32), 0.3)])
@pytest.mark.parametrize("name", WITH_BLOCKS)
def test_networks_without_blocks_run_outside_of_torch(name, bits, tolerance, traced, tmp_path):
    network = traced(name)
    space = space_of(network, bits)
    table = next(table for table in random_tables(space, 20) if space.left_out(table))
    model = apply(space.policy(table), network, compressors_of(space))
    calibrate(model, [noise(network, 16)])
    path = export_onnx(model, network.example, tmp_path / "model.onnx").path
    x = noise(network)
    said = onnxruntime.InferenceSession(str(path)).run(None, {"input": x.numpy()})[0]
    with torch.no_grad():
        expected = model(x).numpy()
    assert np.linalg.norm(said - expected) <= tolerance * np.linalg.norm(expected)


def test_a_package_without_blocks_gives_the_same_logits(traced, tmp_path):
    network = traced("resnet20")
    space = space_of(network, bits=(4, 32))
    policy = space.policy(random_tables(space, 5)[-1])
    assert policy.removed
    compressors = compressors_of(space)
    module = apply(policy, network, compressors)
    calibrate(module, [noise(network, 16)])
    kept = kept_by(compressors, network, policy)
    save_package(tmp_path, Package(module, policy, kept, Architecture("resnet20", 10, (3, 32, 32))), network)
    loaded = load_package(tmp_path)
    with torch.no_grad():
        expected = packed_form(module, network)(noise(network))
        torch.testing.assert_close(loaded.module(noise(network)), expected, rtol=0, atol=0)


def test_half_a_block_cannot_go(traced):
    space = space_of(traced("resnet20"))
    policy = space.policy(space.largest)
    rows = [
        LayerDecision(d.point, operator=REMOVED) if d.point == "layer1.0.conv2" else d
        for d in policy.decisions
    ]
    with pytest.raises(UserError, match=r"leaves out layer1\.0\.conv2; layers can go only with all others"):
        space.table(replace(policy, decisions=tuple(rows)))


def test_blocks_that_change_little_go_first(traced):
    network = traced("resnet20")
    module = network.copy()
    for name in ("layer1.1.bn2", "layer3.2.bn2"):
        for tensor in module.get_submodule(name).parameters():
            tensor.data.zero_()
    quiet = replace(network, module=module)
    changes = block_changes(quiet, [noise(network, 8)])
    assert set(sorted(changes, key=lambda name: changes[name])[:2]) == {"layer1.1.conv1", "layer3.2.conv1"}
    assert max(changes["layer1.1.conv1"], changes["layer3.2.conv1"]) < 1e-5
    kept = deepest_blocks(quiet, 0.5, [noise(network, 8)])
    assert len(kept) == 2 + 1 + 1
    assert not {"layer1.1.conv1", "layer3.2.conv1"} & kept


def test_no_quantization_point_is_left_without_a_tensor(traced):
    network = traced("resnet20")
    space = space_of(network, bits=(4, 8))
    policy = space.policy(random_tables(space, 4)[-1])
    model = apply(policy, network, compressors_of(space))
    calibrate(model, [noise(network, 8)])
    called = {str(node.target) for node in model.graph.nodes if node.op == "call_module"}
    points = {n for n, m in model.named_modules() if isinstance(m, ActivationQuantizer)}
    assert points == {n for n in called if n.startswith("quantize_")}

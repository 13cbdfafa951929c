"""Fine-grained pruning: exact counts, zeros that stay, and an agent that chooses densities."""

from pathlib import Path

import numpy as np
import pytest
import torch

from amc.compress import apply
from amc.errors import UserError
from amc.knobs import WidthKnob
from amc.policy import CompressionPolicy, LayerDecision
from amc.pruning.fine_grained import (
    DensityKnob,
    FineGrainedPruning,
    hold_zeros,
    kept_weights,
    magnitude_mask,
    prune_weights,
)
from amc.quantization.registry import WEIGHT_QUANTIZERS
from amc.recovery.fine_tune import fine_tune
from amc.space import Space
from amc.training import Recipe
from envs.problem_config import ProblemConfig
from tests.test_env import make_problem
from tests.test_run import tiny_task


def nonzeros(model: torch.nn.Module, layers: list[str]) -> int:
    return sum(int(model.get_submodule(name).get_parameter("weight").count_nonzero()) for name in layers)


@pytest.mark.parametrize(
    ("total", "density", "kept"), [(100, 37, 37), (99, 50, 49), (3, 5, 1), (1, 5, 1), (0, 50, 0), (7, 100, 7)]
)
def test_count_is_rounded_down_but_never_to_nothing(total: int, density: int, kept: int):
    assert kept_weights(total, density) == kept


def test_the_largest_magnitudes_stay():
    weight = torch.tensor([[0.5, -3.0], [2.0, -0.1]])
    assert magnitude_mask(weight, 50).tolist() == [[False, True], [True, False]]


def test_of_equal_magnitudes_the_first_stay():
    weight = torch.ones(4, 25)
    weight[1::2] = -1.0
    assert magnitude_mask(weight, 30).reshape(-1).nonzero().reshape(-1).tolist() == list(range(30))


def test_a_later_stage_prunes_only_more():
    layer = torch.nn.Sequential(torch.nn.Linear(20, 20))
    prune_weights(layer, {"0": 50})
    before = layer[0].weight == 0
    prune_weights(layer, {"0": 20})
    assert int((layer[0].weight != 0).sum()) == 80 and bool(layer[0].weight[before].eq(0).all())


def test_held_zeros_stay_exactly_zero_and_others_train():
    layer = torch.nn.Linear(10, 10)
    prune_weights(torch.nn.ModuleDict({"layer": layer}), {"layer": 30})
    before = layer.weight.detach().clone()
    handles = hold_zeros(layer)
    optimizer = torch.optim.SGD(layer.parameters(), 0.1, momentum=0.9, weight_decay=1e-2, nesterov=True)
    for _ in range(5):
        optimizer.zero_grad()
        layer(torch.randn(8, 10)).square().sum().backward()
        optimizer.step()
    assert torch.equal(layer.weight == 0, before == 0)
    assert bool((layer.weight != before)[before != 0].all())
    for handle in handles:
        handle.remove()
    layer(torch.randn(8, 10)).square().sum().backward()
    optimizer.step()
    assert int((layer.weight == 0).sum()) == 0


def test_nonzeros_of_a_policy_are_those_of_its_network(traced):
    network = traced("digitsnet")
    problem_space = Space(network, (WidthKnob(), DensityKnob()))
    draw = np.random.default_rng(0).integers(5, 101, len(network.layers))
    table = problem_space.largest.copy()
    table[:, problem_space.column("density")] = draw
    model = apply(problem_space.policy(table), network, [FineGrainedPruning()])
    from amc.costs.symbolic import symbolic_costs

    names = [layer.name for layer in network.layers]
    assert symbolic_costs(problem_space)["nonzeros"].of(table) == nonzeros(model, names)


def test_a_budget_on_nonzeros_makes_densities_the_only_choice():
    problem = make_problem("nonzeros=0.2")
    walk = problem.walk()
    assert problem.live >= {"density"} and walk.action_size == 1
    layers = [layer.name for layer in problem.network.layers]
    draw = np.random.default_rng(0)
    budget, seen = problem.budgets[0], set()
    for _ in range(5):
        walk.reset()
        for _ in range(walk.length):
            walk.step(draw.uniform(-1, 1, 1))
        policy = walk.policy()
        model = problem.evaluator.compressed(policy)
        assert nonzeros(model, layers) == problem.evaluator.costs_of(policy)["nonzeros"] <= budget.limit
        assert all(
            policy[layer.name].values["width"] == layer.out_channels for layer in problem.network.layers
        )
        seen.add(tuple(policy.values("density").values()))
    assert len(seen) > 1


def test_the_uniform_policy_has_one_density():
    problem = make_problem("nonzeros=0.5")
    assert set(problem.walk().reference_policy().values("density").values()) == {50}


def test_other_problems_know_no_density():
    problem = make_problem("macs=0.5")
    policy = problem.walk().reference_policy()
    assert policy.values("density") == {} and "nonzeros" not in problem.evaluator.costs_of(policy)
    with pytest.raises(UserError, match="no cost 'nonzeros'"):
        problem.walk(["nonzeros=0.2"])


def test_zeros_survive_fine_tuning_and_codes():
    problem = make_problem("nonzeros=0.3", weight_bits=(8,), activation_bits=(8,))
    policy = problem.walk().reference_policy()
    model = problem.evaluator.compressed(policy)
    layers = [layer.name for layer in problem.network.layers]
    before = {name: model.get_submodule(name).get_parameter("weight").detach().clone() for name in layers}
    fine_tune(model, problem.network.copy(), tiny_task(), Recipe(epochs=1, batch_size=20, lr=0.05))
    for name, old in before.items():
        layer = model.get_submodule(name)
        assert bool((layer.weight[old == 0] == 0).all()) and not torch.equal(layer.weight, old)
        assert bool((layer.quantizer(layer.weight)[old == 0] == 0).all())


def test_a_density_that_means_nothing_is_refused():
    network = make_problem("macs=0.5").network
    decisions = tuple(LayerDecision(layer.name, {"density": 101}) for layer in network.layers)
    with pytest.raises(UserError, match="101 % of the weights"):
        apply(CompressionPolicy(network.fingerprint, decisions), network, [FineGrainedPruning()])


def test_masks_are_in_no_file(tmp_path: Path):
    problem = make_problem("nonzeros=0.3")
    model = problem.evaluator.compressed(problem.walk().reference_policy())
    assert not any(name.endswith("mask") for name in model.state_dict())


@pytest.mark.parametrize("bits", [2, 3, 8])
@pytest.mark.parametrize("name", WEIGHT_QUANTIZERS)
def test_quantized_zeros_stay_zero_or_the_quantizer_says_so(name: str, bits: int):
    weight = torch.randn(8, 4, 3, 3, generator=torch.Generator().manual_seed(0))
    zeros = ~magnitude_mask(weight, 50)
    kind = WEIGHT_QUANTIZERS[name]
    values = kind.fitted(weight.masked_fill(zeros, 0.0), bits)(weight.masked_fill(zeros, 0.0))
    assert kind.keeps_zeros == bool((values[zeros] == 0).all())


def test_codes_that_would_bring_pruned_weights_back_are_refused():
    with pytest.raises(UserError, match="--weight-quantizer lq has no code for zero"):
        ProblemConfig(budget=("nonzeros=0.2",), weight_bits=(4,), weight_quantizer="lq")
    assert ProblemConfig(budget=("nonzeros=0.2",), weight_bits=(4,), weight_quantizer="kmeans")

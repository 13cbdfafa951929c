"""Operators under a latency budget: what the predictor knows of them, where a formula is the latency."""

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import tests.test_run as runs
from amc.compress import apply
from amc.costs.latency.cost import LatencyCost
from amc.costs.latency.features import LAYER_FEATURES, LatencyFeatures
from amc.costs.latency.fitting import _name
from amc.costs.latency.predictor import LatencyPredictor, Sample
from amc.costs.latency.sampling import random_table
from amc.decomposition.operator import Operator, convolution_obstacle
from amc.decomposition.registry import OPERATORS, get_operator
from amc.decomposition.shapes import OperatorShapes, shaped
from amc.graph import module_of
from amc.network import Network
from amc.quantization.modules import ActivationQuantizer
from amc.space import Partial, Space
from amc.targets import Profile
from envs.operators import make_operator_knobs
from envs.problem import Problem
from envs.problem_config import ProblemConfig
from tests import formula_target
from tests.formula_target import SMALL, FormulaTarget, make, target_of
from tests.operator_pieces import compressors, mixed_network, space_of
from tests.test_run import config, same, start

# Found by name in the module that uses them.
_surroundings, _own_cache = runs._surroundings, formula_target._own_cache

FAKE = f"{__name__}:PartsTarget"
DECOMPOSITIONS = ("filter-groups", "channel-svd", "spatial-svd")


class PartsTarget(FormulaTarget):
    """Every convolution costs its weights, and the parts of a chain run in the layer's format."""

    name = "parts"
    profile = Profile(width_multiple=1)

    def export(self, module: Any, example: torch.Tensor, path: Path) -> Any:
        """Write the latency itself."""
        nodes = [node for node in module.graph.nodes if isinstance(module_of(node), ActivationQuantizer)]
        quantized = {str(user.target) for node in nodes for user in node.users}
        cost = 0.0
        for name, layer in module.named_modules():
            if isinstance(layer, nn.Conv2d | nn.Linear):
                integer = any(name == each or name.startswith(f"{each}.") for each in quantized)
                cost += layer.weight.numel() * (1 / 3 if integer else 1.0)
                cost += 20.0
        path.write_text(json.dumps(cost))
        return type("Exported", (), {"exporter": "amc", "unsupported": ""})()


@pytest.fixture(scope="module")
def network() -> Network:
    return mixed_network()


@pytest.fixture(scope="module")
def problem(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Problem]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("AMC_CACHE_DIR", str(tmp_path_factory.mktemp("cache")))
        patch.chdir(runs.ROOT)
        # Layers have more options than without operators.
        patch.setattr("amc.costs.latency.sampling.MOST_SAMPLES", 120)
        made = make("latency=0.3", target=FAKE, operators=DECOMPOSITIONS)
    yield made
    made.close()


def tables(space: Space, count: int, seed: int = 0) -> list[np.ndarray]:
    rng = np.random.default_rng(seed)
    return [random_table(space, rng) for _ in range(count)]


def random_tables(problem: Problem, episodes: int) -> list[np.ndarray]:
    walk, rng, found = problem.walk(), np.random.default_rng(0), []
    for _ in range(episodes):
        walk.reset()
        for _ in range(walk.length):
            walk.step(rng.uniform(-1, 1, walk.action_size))
        found.append(problem.space.table(walk.policy()))
    return found


def test_the_predictor_knows_what_replaces_layers(problem: Problem):
    assert problem.latency is not None and problem.latency.predictor.mape < 0.03
    assert any("3 of 4 layers may be replaced" in note for note in problem.notes)
    drawn = np.stack([sample.table for sample in problem.latency.samples])[..., 0]
    assert {0, 1, 2, 3} == {*drawn.reshape(-1).tolist()} and 0.1 < (drawn == 0).all(axis=1).mean() < 0.5


def test_every_episode_keeps_the_budget_and_chooses_operators(problem: Problem):
    assert problem.latency is not None
    cost, chosen = problem.latency.cost, set[int]()
    for table in random_tables(problem, 40):
        assert cost.of(table) <= problem.budgets[0].limit * (1 + 1e-9)
        chosen |= {*table[:, 0].tolist()}
    assert len(chosen) >= 3


def test_predictions_are_those_of_what_is_measured(problem: Problem, tmp_path: Path):
    """The policies of a search: really fitted modules, whose channels and bits are all different."""
    assert problem.latency is not None and problem.meter is not None
    errors = []
    for table in random_tables(problem, 12):
        model = problem.evaluator.compressed(problem.space.policy(table))
        target_of(problem).export(model, problem.network.example, tmp_path / "policy")
        files = [problem.meter.reference, tmp_path / "policy"]
        errors.append(problem.latency.predictor(table) / target_of(problem).measure(files)[1].ratio - 1.0)
    assert np.abs(errors).mean() < 0.05


def test_would_be_bests_are_measured_and_a_cut_search_goes_on(tmp_path: Path):
    asked = {**SMALL, "target": FAKE, "operators": ("filter-groups",)}
    settings = replace(config(8), problem=ProblemConfig(budget=("latency=0.4",), **asked))
    whole, cut = start(tmp_path / "whole", settings), start(tmp_path / "cut", settings)
    whole.search()
    cut.search([runs.InterruptAt(4)])
    runs.load(tmp_path / "cut").search()
    assert same(tmp_path / "cut", tmp_path / "whole")
    best = whole.log.best()
    assert best is not None and best.latency_source == "measured" and best.feasible
    assert any(decision.replaced for row in whole.log.rows for decision in row.policy.decisions)


def test_operators_where_latency_is_minimised():
    made = make(target=FAKE, goal="cost", max_drop=50.0, operators=("filter-groups",))
    walk = made.walk()
    assert "operator" in {made.space.knobs[column].name for column in walk.columns}
    (table,) = random_tables(made, 1)
    (found,) = made.evaluator([made.space.policy(table)])
    assert found.latency_source == "measured"


def test_clustered_kernels_leave_the_choice_under_latency_alone(network: Network):
    asked = ProblemConfig(budget=("latency=0.5",), operators=("clustered-kernels", "filter-groups"))
    knobs, notes = make_operator_knobs(asked, network)
    assert knobs and knobs[0].names == ("filter-groups",)
    assert notes[0] == "The operator clustered-kernels cannot lower latency and takes no part."
    assert make_operator_knobs(replace(asked, operators=("clustered-kernels",)), network)[0] == ()


def test_an_operator_without_parts_lowers_no_latency(network: Network, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(OPERATORS["clustered-kernels"], "lowers", Operator.lowers)
    asked = ProblemConfig(budget=("latency=0.5",), operators=("clustered-kernels",))
    assert make_operator_knobs(asked, network)[0] == ()


def test_codebooks_under_size_and_latency_run_as_float_layers(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("amc.costs.latency.sampling.MOST_SAMPLES", 80)
    made = make("latency=0.5", "size=0.3", target=FAKE, operators=("clustered-kernels", "filter-groups"))
    seen = 0
    for table in random_tables(made, 20):
        assert all(budget.cost.of(table) <= budget.limit * (1 + 1e-9) for budget in made.budgets)
        books = table[:, 0] == 1
        seen += int(books.sum())
        assert (table[books, made.space.column("weight_bits")] == 32).all()
    assert seen and made.latency is not None and made.latency.predictor.mape < 0.05


def test_bits_that_follow_the_input_spare_what_has_none(monkeypatch: pytest.MonkeyPatch):
    """Under latency one decision serves weights and input; an operator without weights keeps 32 bits."""
    monkeypatch.setattr(OPERATORS["clustered-kernels"], "lowers", frozenset({"macs"}))
    made = make("latency=0.6", "macs=0.9", target=FAKE, operators=("clustered-kernels",))
    space, row = made.space, 1
    bits, inputs = space.column("weight_bits"), space.column("activation_bits")
    for order in (("operator", "activation_bits"), ("activation_bits", "operator")):
        partial = space.empty()
        for name in order:
            partial = space.decide(partial, row, space.column(name), 1 if name == "operator" else 8)
        assert partial.values[row, [bits, inputs]].tolist() == [32, 8] and partial.decided[row, bits]


@pytest.mark.parametrize("name", [n for n in OPERATORS if not get_operator(n).obstacle(nn.Conv2d(6, 8, 3))])
def test_shapes_for_measuring_are_those_of_the_fit(name: str):
    operator = get_operator(name)
    conv = nn.Conv2d(6, 8, 3, stride=2, padding=1)
    for amount in operator.amounts(conv):
        found, fitted = shaped(operator, conv, amount), operator.fit(conv, amount)
        assert str(found) == str(fitted)
        assert {k: v.shape for k, v in found.state_dict().items()} == {
            k: v.shape for k, v in fitted.state_dict().items()
        }
        torch.manual_seed(0)
        assert found(torch.randn(2, 6, 9, 9)).isfinite().all()


def test_measuring_leaves_layers_of_codebooks_as_they_are(network: Network):
    space = space_of(network, ("clustered-kernels", "filter-groups"))
    table = space.original()
    for row, value in (("inner.0", 1), ("wide.0", 2)):
        table[space.row(row), 0] = value
    parts = [OperatorShapes() if hasattr(c, "replaces") else c for c in compressors(network)]
    model = apply(space.policy(table), network, parts)
    assert type(model.get_submodule("inner.0")) is nn.Conv2d
    assert type(model.get_submodule("wide.0")).__name__ == "Chain"


def test_features_grow_with_every_width_and_parts_have_classes_of_their_own(network: Network):
    space = space_of(network, tuple(OPERATORS), (8, 32), (8, 32))
    features, plain = LatencyFeatures(space, (4, 8)), LatencyFeatures(space_of(network, ()), (4, 8))
    assert features.size > plain.size
    width = space.column("width")
    for table in tables(space, 30):
        before = features.of(table)
        for row in np.flatnonzero(space.decider[:, width] == np.arange(len(space.points))).tolist():
            wider = table.copy()
            wider[space.decider[:, width] == row, width] = space.legal(row, width)[-1]
            assert (features.of(wider) >= before - 1e-6).all()


def formula(space: Space) -> LatencyPredictor:
    """Fitted to latencies that are sums over layers, different for every operator and amount."""
    features, rng = LatencyFeatures(space, (1, 1)), np.random.default_rng(3)
    macs = np.arange(features.size) % LAYER_FEATURES == 0
    truth = np.where(features.specific & macs, rng.uniform(0.5, 1.0, features.size), 0.0)
    drawn = tables(space, 80)
    whole = float(features.of(space.original()) @ truth)
    return LatencyPredictor(features, [Sample(t, float(features.of(t) @ truth) / whole) for t in drawn])


def test_bounds_are_the_extremes_of_all_operators(network: Network):
    """In one format throughout there are no borders, and completions differ in operators alone."""
    space = space_of(network, ("filter-groups", "spatial-svd"))
    cost, rng = LatencyCost(space, formula(space), 1.0), np.random.default_rng(1)
    rows = [space.row("inner.0"), space.row("wide.0")]
    for _ in range(3):
        partial = space.empty()
        for row, column in np.ndindex(space.decider.shape):
            free = row in rows and space.knobs[column].name in ("operator", "amount")
            if not free and not partial.decided[row, column] and space.decider[row, column] == row:
                value = int(rng.choice(space.legal(row, column, partial)))
                partial = space.decide(partial, row, column, value)
        found = [cost.of(each.values) for each in completions(space, partial, rows)]
        assert cost.lower_bound(partial) == pytest.approx(min(found))
        assert cost.upper_bound(partial) == pytest.approx(max(found))


def completions(space: Space, partial: Partial, rows: list[int]) -> list[Partial]:
    found = [partial]
    for row in rows:
        for name in ("operator", "amount"):
            column = space.column(name)
            found = [
                space.decide(each, row, column, value) if not each.decided[row, column] else each
                for each in found
                for value in (space.legal(row, column, each) if not each.decided[row, column] else (0,))
            ]
    return found


def test_prices_follow_what_the_predictor_learns(network: Network):
    space = space_of(network, ("filter-groups",))
    cost, partial = LatencyCost(space, formula(space), 1.0), space.empty()
    for row in np.flatnonzero(
        space.decider[:, space.column("width")] == np.arange(len(space.points))
    ).tolist():
        width = space.column("width")
        partial = space.decide(partial, row, width, int(space.largest[row, width]))
    before = cost.cheapest(partial)
    assert before[:, 0].any()
    for _ in range(40):
        cost.predictor.add(before, 5.0)
    assert not np.array_equal(cost.cheapest(partial), before)


def test_samples_of_other_operators_are_others(network: Network):
    names = {_name(network, space_of(network, (each,))) for each in ("channel-svd", "spatial-svd")}
    assert len(names) == 2


def test_layers_that_no_operator_fits_are_never_replaced(network: Network):
    space = space_of(network, DECOMPOSITIONS)
    fixed = [
        row
        for row, point in enumerate(space.points)
        if convolution_obstacle(network.module.get_submodule(point.name)) is not None
    ]
    for table in tables(space, 40):
        assert (table[fixed, 0] == 0).all()

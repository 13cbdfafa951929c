"""Where several operators may replace layers, a search first tries each of them everywhere."""

import numpy as np
import pytest
import torch

from agents.config import AgentConfig
from agents.episode import play_sequence
from agents.searcher import make_searcher
from amc.costs.symbolic import symbolic_costs
from amc.evaluate import Evaluation
from amc.knobs import BitsKnob, WidthKnob
from amc.models import build_model
from amc.network import Network, trace
from amc.quantization.uniform import NOT_QUANTIZED
from amc.reference import replaced_everywhere
from amc.space import Space
from envs.walk import Walk
from tests.operator_pieces import ALL, SIZE_BITS, mixed_network, space_of, walk_under

BOTH_KINDS = ("filter-groups", "clustered-kernels")


@pytest.fixture(scope="module")
def network() -> Network:
    return mixed_network()


def test_each_operator_is_tried_wherever_it_applies(network: Network):
    space = space_of(network)
    walk = walk_under(space, macs=0.7)
    assert len(walk.openings) == len(ALL)
    for value, name in enumerate(ALL, start=1):
        policy = space.policy(replaced_everywhere(space, space.empty(), walk.budgets, value))
        offering = {point.name for row, point in enumerate(space.points) if space.levels[row, value]}
        assert {decision.point for decision in policy.decisions if decision.operator == name} == offering
        assert all(decision.operator in (name, "original") for decision in policy.decisions)


@pytest.mark.parametrize(
    "budgets", [{"macs": 0.7}, {"macs": 0.3}, {"size": 0.1}, {"size": 0.12, "macs": 0.4}]
)
def test_openings_keep_their_budgets_and_use_them_up(network: Network, budgets: dict[str, float]):
    space = space_of(network, weight_bits=SIZE_BITS if "size" in budgets else (NOT_QUANTIZED,))
    walk, shares = walk_under(space, **budgets), []
    for actions in walk.openings:
        table = space.table(play_sequence(walk, actions).policy)
        used = [budget.cost.of(table) / budget.limit for budget in walk.budgets]
        assert max(used) <= 1.0
        shares.append(max(used))
    assert np.mean(shares) > 0.8


def test_channels_stay_where_an_operator_keeps_the_budget_alone(network: Network):
    space = space_of(network, ("filter-groups",))
    whole = space.largest[:, space.column("width")]
    for share, stay in ((0.7, True), (0.2, False)):
        walk = walk_under(space, macs=share)
        table = replaced_everywhere(space, space.empty(), walk.budgets, 1)
        assert (table[:, space.column("width")] == whole).all() == stay
        assert symbolic_costs(space)["macs"].of(table) <= walk.budgets[0].limit


@pytest.mark.parametrize("budgets", [{"macs": 0.4}, {"size": 0.08}], ids=str)
def test_an_episode_follows_an_opening_but_for_what_rounding_leaves(budgets: dict[str, float]):
    """Every walk uses its budget up: at the end of it the last layers take what the table leaves."""
    network = trace(build_model("resnet20").eval(), torch.zeros(1, 3, 32, 32))
    space = space_of(network, BOTH_KINDS, SIZE_BITS if "size" in budgets else (NOT_QUANTIZED,))
    walk = walk_under(space, **budgets)
    for value, actions in enumerate(walk.openings, start=1):
        wanted = replaced_everywhere(space, walk._start, walk.budgets, value)
        followed = space.table(play_sequence(walk, actions).policy)
        assert (followed[:-2] == wanted[:-2]).all()
        assert (followed[:, 0] == value).sum() >= len(network.layers) - 3


def test_without_operators_there_is_no_opening(network: Network):
    bits = [BitsKnob(f"{what}_bits", network, (NOT_QUANTIZED,)) for what in ("weight", "activation")]
    assert walk_under(Space(network, (WidthKnob(), *bits)), macs=0.5).openings == []


@pytest.mark.parametrize("algorithm", ["ddpg", "sac", "random", "bayes", "cbo"])
def test_searchers_propose_the_openings_after_the_reference_policy(
    network: Network, algorithm: str, monkeypatch: pytest.MonkeyPatch
):
    """Those of the beginning: a latency predictor that has learned would give others."""
    if algorithm in ("bayes", "cbo"):
        pytest.importorskip("botorch")
    walk = walk_under(space_of(network), macs=0.5)
    wanted = [walk.reference_policy(), *(play_sequence(walk, each).policy for each in walk.openings)]
    searcher = make_searcher(walk, AgentConfig(algorithm=algorithm, hidden_sizes=(8,)), 20)
    monkeypatch.setattr(Walk, "openings", [])
    proposed = []
    for reward in range(len(wanted) + 1):
        proposed += searcher.ask(1)
        costs = {"macs": walk.budgets[0].cost.of(walk.space.table(proposed[-1]))}
        searcher.tell([Evaluation(proposed[-1], 0.1 * reward, costs, 0.0)], [0.1 * reward])
    assert proposed[:-1] == wanted and proposed[-1] not in wanted

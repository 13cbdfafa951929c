"""Greedy descent: what it measures, where it lowers bits, that budgets hold, that it ends and resumes."""

from pathlib import Path

import numpy as np
import pytest

from agents.greedy import POWERS, RUNGS, entry_of
from amc.costs.budget import parse_budget
from amc.costs.symbolic import symbolic_costs
from amc.errors import UserError
from amc.evaluate import Evaluation
from amc.knobs import BitsKnob, WidthKnob
from amc.network import Network
from amc.policy import CompressionPolicy
from amc.space import Space
from envs.walk import Walk
from tests.synthetic_search import Sensitivities, advance, continued, digests, new, width_walk


def bits_walk(
    network: Network, *budgets: str, activations: tuple[int, ...] = (8,), widths: bool = False
) -> Walk:
    choices = tuple(range(2, 9))
    knobs = (
        WidthKnob(1),
        BitsKnob("weight_bits", network, choices),
        BitsKnob("activation_bits", network, activations),
    )
    space = Space(network, knobs)
    costs = symbolic_costs(space)
    original = {name: cost.of(space.original()) for name, cost in costs.items()}
    parsed = [parse_budget(text, costs, original) for text in budgets]
    live = {"weight_bits", "activation_bits", *(["width"] if widths else [])}
    return Walk(space, parsed, live, costs["macs"])


class RoundingLoss:
    """Score = 1 - sum of s 4^-bits over all bits of all layers, with one s a layer."""

    def __init__(self, walk: Walk):
        self.walk = walk
        self.s = np.exp(np.random.default_rng(1).normal(0, 1.5, len(walk.space.points)))

    def __call__(self, policy: CompressionPolicy) -> Evaluation:
        table = self.walk.space.table(policy)
        columns = [self.walk.space.column(f"{what}_bits") for what in ("weight", "activation")]
        loss = 0.1 * (self.s[:, None] * 4.0 ** -table[:, columns]).sum()
        costs = {budget.cost.name: budget.cost.of(table) for budget in self.walk.budgets}
        return Evaluation(policy, float(1 - loss), costs, 0.0)


def feasible(walk: Walk, evaluation: Evaluation) -> bool:
    table = walk.space.table(evaluation.policy)
    return all(budget.cost.of(table) <= budget.limit for budget in walk.budgets)


@pytest.mark.parametrize(
    ("budgets", "activations", "widths"),
    [(["size=0.11"], (8,), False), (["bops=0.012"], tuple(range(2, 9)), False), (["size=0.06"], (8,), True)],
)
def test_it_beats_the_uniform_policy_within_the_budget(traced, budgets, activations, widths):
    walk = bits_walk(traced("resnet20"), *budgets, activations=activations, widths=widths)
    evaluate = RoundingLoss(walk)
    if widths:
        rounding = evaluate
        column, largest = walk.space.column("width"), walk.space.largest

        def evaluate(policy):  # as many points for channels as for bits
            found, table = rounding(policy), walk.space.table(policy)
            lost = 0.02 * (rounding.s * (1 - table[:, column] / largest[:, column])).sum()
            return Evaluation(policy, found.score - lost, found.costs, 0.0)

    done = advance(new(walk, "greedy", evaluations=200), evaluate, [1] * 200)
    assert done[0].policy == walk.reference_policy()
    assert not feasible(walk, done[1]) and done[1].policy == walk.space.policy(walk.space.largest)
    descents = done[-len(POWERS) :]
    assert all(feasible(walk, evaluation) for evaluation in descents)
    assert descents[0].score > done[0].score
    limit = walk.budgets[0].limit
    assert all(walk.budgets[0].cost.of(walk.space.table(d.policy)) > 0.97 * limit for d in descents)


def test_every_decision_is_probed_alone(traced):
    walk = bits_walk(traced("digitsnet"), "size=0.1")
    done = advance(new(walk, "greedy"), RoundingLoss(walk), [1] * 40)
    probes = done[2 : -len(POWERS)]
    tables = np.stack([walk.space.table(probe.policy) for probe in probes])
    changed = tables != walk.space.largest
    assert len(probes) == walk.length and (changed.sum(axis=(1, 2)) == 1).all()
    assert changed.any(axis=0).sum() == len(probes) and set(tables[changed]) == {2}


def test_it_ends_and_resumes_with_several_proposals_at_once(traced, tmp_path: Path):
    walk = bits_walk(traced("digitsnet"), "size=0.1")
    evaluate = RoundingLoss(walk)
    searcher = new(walk, "greedy")
    whole = digests(advance(searcher, evaluate, [1] * 60))
    assert len(whole) == 2 + walk.length + len(POWERS) and searcher.ask(1) == []
    first = new(walk, "greedy")
    begun = digests(advance(first, evaluate, [3, 2]))
    rest = advance(continued(first, new(walk, "greedy"), tmp_path), evaluate, [4] * 20)
    assert begun + digests(rest) == whole


def test_widths_are_probed_at_half(traced):
    walk = width_walk(traced("resnet20"), "macs=0.5")
    done = advance(new(walk, "greedy"), Sensitivities(walk), [1] * 60)
    assert all(feasible(walk, descent) for descent in done[-len(POWERS) :])
    column = walk.space.column("width")
    probe = walk.space.table(done[2].policy)[:, column] / walk.space.largest[:, column]
    assert probe.min() == pytest.approx(0.5, abs=0.06)


def test_descents_leave_no_room_for_a_single_channel(traced):
    """Rungs lie several channels apart, and the rest of a budget is spent between them."""
    walk = width_walk(traced("resnet20"), "macs=0.5")
    searcher, (budget,) = new(walk, "greedy"), walk.budgets
    done = advance(searcher, Sensitivities(walk), [1] * 60)
    for descent in done[-len(POWERS) :]:
        table = walk.space.table(descent.policy)
        assert budget.cost.of(table) > 0.99 * budget.limit
        for entry in searcher._entries:
            legal = walk.space.legal(entry.row, entry.column)
            step = legal.index(int(table[entry.row, entry.column])) + 1
            if step < len(legal):
                raised, tied = table.copy(), walk.space.decider[:, entry.column] == entry.row
                raised[tied, entry.column] = legal[step]
                assert budget.cost.of(raised) > budget.limit


def test_entries_by_hand():
    bits = entry_of(0, 1, "weight_bits", (2, 3, 4))
    assert bits.values == (2, 3, 4) and bits.probe == 0
    np.testing.assert_allclose(bits.growth, [1, (1 / 64 - 1 / 256) / (1 / 16 - 1 / 256), 0])
    width = entry_of(0, 0, "width", tuple(range(7, 65)))
    assert len(width.values) == RUNGS and width.values[0] == 7 and width.values[-1] == 64
    assert abs(width.values[width.probe] - 32) <= 3 and width.growth[width.probe] == 1


def test_too_few_evaluations_are_said_at_once(traced):
    walk = bits_walk(traced("digitsnet"), "size=0.1")
    probes = 2 + walk.length
    with pytest.raises(UserError, match=f"measures {probes} policies.*{probes + 1} at least, not {probes}"):
        new(walk, "greedy", evaluations=probes)
    assert len(new(walk, "greedy", evaluations=probes + 1).ask(1)) == 1


def test_it_needs_a_budget(traced):
    network = traced("digitsnet")
    space = Space(network, (WidthKnob(1),))
    with pytest.raises(UserError, match="descends to a budget"):
        new(Walk(space, [], {"width"}, symbolic_costs(bits_walk(network).space)["macs"]), "greedy")

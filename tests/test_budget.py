"""Budgets: how they are written, what is refused, and that bounds and the reference policy keep them."""

import re

import numpy as np
import pytest
import torch
from torch import nn

from amc.costs.budget import Budget, check_reachable, parse_budget
from amc.costs.symbolic import SymbolicCost, symbolic_costs
from amc.errors import UserError
from amc.knobs import BitsKnob, WidthKnob
from amc.network import trace
from amc.reference import complete_uniformly
from amc.space import Space

ORIGINAL = {"macs": 40e6, "params": 270e3, "size": 1e6, "bops": 41e9}
COSTS = dict.fromkeys(ORIGINAL)


def resnet20(traced, weight_bits=(2, 4, 6, 8), activation_bits=(4, 8), multiple: int = 1) -> Space:
    network = traced("resnet20")
    bits = BitsKnob("weight_bits", network, weight_bits)
    return Space(network, (WidthKnob(multiple), bits, BitsKnob("activation_bits", network, activation_bits)))


def budgets_of(space: Space, *texts: str) -> list[Budget]:
    costs = symbolic_costs(space)
    original = {name: cost.of(space.original()) for name, cost in costs.items()}
    return [parse_budget(text, costs, original) for text in texts]


# ---- writing one ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "limit"),
    [
        *(("macs=0.5", 20e6), ("macs=1", 40e6), ("macs=1e-6", 40.0), ("MACs=0.25", 10e6)),
        *(("macs=20M", 20e6), ("macs=2e7", 20e6), ("macs=0.02G", 20e6), ("params=100k", 100e3)),
        *(("size=100KB", 100e3), ("size=100KiB", 102_400.0), ("size=0.5MB", 500e3), ("size=900B", 900.0)),
        *(("flops=0.5", 20e6), ("flops=20M", 10e6), ("bytes=0.1", 100e3), ("parameters=0.1", 27e3)),
        *((" bops=1.5G ", 1.5e9), ("macs=90M", 40e6)),  # no looser than the original
    ],
)
def test_forms_of_a_budget(text, limit):
    assert parse_budget(text, COSTS, ORIGINAL).limit == pytest.approx(limit)


def test_fraction_is_of_the_original():
    assert parse_budget("size=250KB", COSTS, ORIGINAL).fraction == pytest.approx(0.25)


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("macs=0", "a fraction of the original's macs lies above 0 and at most 1"),
        ("macs=2", "a fraction of the original's macs lies above 0 and at most 1"),
        ("macs=-0.5", "a fraction of the original's macs lies above 0 and at most 1"),
        ("macs=0M", "a budget must be above 0"),
        ("macs=-3M", "a budget must be above 0"),
        *(
            (text, "is not a budget; write")
            for text in ("macs", "0.5", "macs=", "macs=half", "macs=50%", "=1")
        ),
        ("macs=1.2.3", "is not a number with a known unit"),
        ("macs=3GB", "is not a number with a known unit"),
        ("energy=0.5", "There is no cost 'energy' to put a budget on; there are macs, params, size, bops"),
    ],
)
def test_what_is_refused(text, sentence):
    with pytest.raises(UserError, match=sentence):
        parse_budget(text, COSTS, ORIGINAL)


def test_unknown_cost_by_name_is_refused(traced):
    with pytest.raises(UserError, match="There is no cost 'energy'"):
        SymbolicCost("energy", resnet20(traced))


@pytest.mark.parametrize("name", ["macs", "params", "size", "bops"])
def test_unreachable_budget_is_refused_with_the_smallest_value_that_is_not(name, traced):
    space = resnet20(traced)
    (budget,) = budgets_of(space, f"{name}=1e-6")
    least = budget.cost.of(space.smallest)
    said = re.escape(f"cannot be reached: the smallest legal network costs {least:.6g} ")
    with pytest.raises(UserError, match=said):
        check_reachable([budget], space)
    check_reachable([Budget(budget.cost, least, budget.original)], space)
    with pytest.raises(UserError):
        check_reachable([Budget(budget.cost, least - 1, budget.original)], space)


# ---- bounds ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["resnet20", "concatnet", "mobilenet_v2"])
def test_bounds_hold_for_random_completions_and_meet_at_the_end(name, traced):
    network = traced(name)
    bits = BitsKnob("weight_bits", network, (2, 8, 32))
    space = Space(network, (WidthKnob(), bits, BitsKnob("activation_bits", network, (4, 8))))
    costs, draw = symbolic_costs(space), np.random.default_rng(0)
    partial = space.empty()
    last = {key: (cost.lower_bound(partial), cost.upper_bound(partial)) for key, cost in costs.items()}
    for row in range(len(space.points)):
        for column in range(len(space.knobs)):
            if partial.decided[row, column]:
                continue
            value = int(draw.choice(space.legal(row, column)))
            partial = space.decide(partial, row, column, value)
            for key, cost in costs.items():
                low, high = cost.lower_bound(partial), cost.upper_bound(partial)
                assert last[key][0] <= low <= high <= last[key][1]
                last[key] = low, high
    assert partial.decided.all()
    assert all(low == high == costs[key].of(partial.values) for key, (low, high) in last.items())


# ---- knobs ----------------------------------------------------------------------------------------------


def widths(*arguments: float) -> tuple[int, ...]:
    network = trace(nn.Sequential(nn.Conv2d(1, 10, 1), nn.Conv2d(10, 2, 1)), torch.zeros(1, 1, 2, 2))
    return Space(network, (WidthKnob(*arguments),)).legal(0, 0)


def test_legal_widths_by_hand():
    assert widths() == tuple(range(1, 11))
    assert widths(4) == (4, 8, 10)
    assert widths(1, 3) == tuple(range(3, 11))
    assert widths(4, 5) == (8, 10)
    assert widths(1, 1, 0.75) == (8, 9, 10)
    assert widths(16) == (10,)


@pytest.mark.parametrize("arguments", [(0,), (1, 0), (1, 1, -0.1), (1, 1, 1.5)])
def test_impossible_widths_are_refused(arguments):
    with pytest.raises(UserError):
        WidthKnob(*arguments)


@pytest.mark.parametrize("choices", [(), (1,), (8, 9), (16,), (0,)])
def test_impossible_bits_are_refused(choices, traced):
    with pytest.raises(UserError, match="Bits must be 2 to 8, or 32"):
        BitsKnob("weight_bits", traced("resnet20"), choices)


# ---- the reference policy -------------------------------------------------------------------------------


@pytest.mark.parametrize("multiple", [1, 4])
@pytest.mark.parametrize(
    "texts",
    [("macs=0.5",), ("macs=0.3",), ("params=0.5",), ("size=0.1",), ("bops=0.01",), ("macs=0.5", "size=0.1")],
)
def test_reference_policy_keeps_every_budget_and_uses_one(texts, multiple, traced):
    space = resnet20(traced, multiple=multiple)
    budgets = budgets_of(space, *texts)
    table = complete_uniformly(space, space.empty(), budgets)
    used = [budget.cost.of(table) / budget.limit for budget in budgets]
    assert max(used) <= 1.0
    assert max(used) >= 0.95


def test_reference_policy_is_uniform_in_the_widths(traced):
    space = resnet20(traced)
    table = complete_uniformly(space, space.empty(), budgets_of(space, "macs=0.5"))
    full = space.original()[:, 0]
    prunable = [row for row in range(len(full)) if len(space.legal(row, 0)) > 1]
    ratios = table[prunable, 0] / full[prunable]
    assert ratios.max() - ratios.min() <= 1 / 16
    assert (table[:, 1:] == space.largest[:, 1:]).all()


def test_reference_policy_without_budgets(traced):
    space = resnet20(traced)
    table = complete_uniformly(space, space.empty(), [], unbounded=0.75)
    assert table[0].tolist() == [12, 8, 8]


def test_reference_bits_are_those_asked_for(traced):
    network = traced("resnet20")
    knobs = (WidthKnob(), BitsKnob("weight_bits", network, (2, 4, 7, 8), reference=7))
    space = Space(network, knobs)
    assert set(space.at_fraction([0.5, 0.1])[:, 1]) == {7}
    assert set(space.at_fraction([0.5, 1.0])[:, 1]) == {7}


def test_reference_policy_completes_what_is_decided(traced):
    space = resnet20(traced)
    budgets = budgets_of(space, "macs=0.5")
    partial = space.decide(space.empty(), 0, 0, 4)
    table = complete_uniformly(space, partial, budgets)
    assert table[0, 0] == 4
    assert 0.97 <= budgets[0].cost.of(table) / budgets[0].limit <= 1

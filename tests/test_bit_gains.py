"""Bits of the reference policy: where they buy most accuracy for what they cost."""

import pytest
import torch

from amc.knobs import BitsKnob
from amc.quantization.bit_gains import gains, input_errors, weight_errors
from amc.quantization.registry import ACTIVATION_QUANTIZERS, WEIGHT_QUANTIZERS
from envs.problem import Problem, build_problem
from envs.problem_config import ProblemConfig
from tests.test_run import tiny_model, tiny_task

BITS = (2, 3, 4, 8)


def made(*budget: str, **settings: object) -> Problem:
    config = ProblemConfig(budget=budget, reward_images=20, calibration_images=40, **settings)
    return build_problem(tiny_model(), tiny_task(), config)


def knob_of(problem: Problem, name: str) -> BitsKnob:
    return problem.space.knobs[problem.space.column(name)]


def bits_of(problem: Problem, policy: object) -> dict[str, int]:
    return policy.values("weight_bits")


def test_gains_are_errors_saved_by_unit_and_never_rise():
    assert gains([0.8, 0.4, 0.3, 0.02], (2, 3, 4, 8), 10.0) == pytest.approx([0.04, 0.01, 0.007])
    # A bit is no reason to take another one that buys more by itself; an error that rises buys nothing.
    assert gains([0.8, 0.7, 0.3, 0.4], (2, 3, 4, 5), 1.0) == pytest.approx([0.1, 0.1, 0.0])


def test_errors_fall_with_bits_and_floats_have_none(traced):
    network = traced("digitsnet")
    for kind in (WEIGHT_QUANTIZERS["uniform"], WEIGHT_QUANTIZERS["kmeans"]):
        found = weight_errors(network, kind, (2, 4, 8, 32))
        assert list(found) == [layer.name for layer in network.layers]
        assert all(two > four > eight >= 0.0 == floats for two, four, eight, floats in found.values())
    images = torch.randn(4, *network.example.shape[1:])
    reads = input_errors(network, ACTIVATION_QUANTIZERS["uniform"], (2, 4, 32), images)
    assert list(reads) == [layer.name for layer in network.layers]
    assert all(two > four > 0.0 == floats for two, four, floats in reads.values())


def test_the_reference_policy_has_bits_where_they_buy_most():
    problem = made("size=0.11", freeze=("*",), weight_bits=BITS)
    knob = knob_of(problem, "weight_bits")
    chosen = bits_of(problem, problem.walk().reference_policy())
    taken, refused = [], []
    for name, bought in knob.gains.items():
        steps = BITS.index(chosen[name])
        taken += bought[:steps]
        refused += bought[steps:]
    assert taken and refused and min(taken) >= max(refused)
    assert len(set(chosen.values())) > 1
    # Bytes as in the budget, and a smaller error than the same bits everywhere come to.
    size = problem.costs["size"]
    policies = problem.walk().reference_policy(), problem.uniform_policy()
    assert all(size.of(problem.space.table(policy)) <= problem.budgets[0].limit for policy in policies)
    errors = weight_errors(problem.network, WEIGHT_QUANTIZERS["uniform"], BITS)
    lost = [
        sum(errors[name][BITS.index(bits)] for name, bits in bits_of(problem, policy).items())
        for policy in policies
    ]
    assert lost[0] < lost[1]


def test_bit_operations_price_weights_and_inputs_alike():
    problem = made("bops=0.02", freeze=("*",), weight_bits=BITS, activation_bits=BITS)
    weights, inputs = (knob_of(problem, f"{what}_bits") for what in ("weight", "activation"))
    first = problem.network.layers[0]
    errors = weight_errors(problem.network, WEIGHT_QUANTIZERS["uniform"], BITS)[first.name]
    assert weights.gains[first.name] == gains(errors, BITS, first.macs)
    # A tensor that several layers read has one decision, for all of them.
    decide = {inputs.decided_at(point) for point in problem.space.points}
    assert set(inputs.gains) == decide
    readers = [layer for layer in problem.network.layers if layer.input_tensor == first.input_tensor]
    assert min(inputs.gains[first.name]) > 0 and len(readers) == 1
    levels = sorted(gain for knob in (weights, inputs) for each in knob.gains.values() for gain in each)
    assert list(weights._levels) == list(inputs._levels) == levels


def test_bits_that_a_runtime_or_a_person_has_settled_stay():
    settled = made("macs=0.5")
    assert not knob_of(settled, "weight_bits").gains and not knob_of(settled, "activation_bits").gains
    ends = made("size=0.2", weight_bits=BITS, full_precision="ends")
    chosen = bits_of(ends, ends.walk().reference_policy())
    names = [layer.name for layer in ends.network.layers]
    assert chosen[names[0]] == chosen[names[-1]] == 32 and max(chosen[name] for name in names[1:-1]) <= 8
    uniform = made("size=0.11", freeze=("*",), weight_bits=BITS, reference="uniform")
    assert not knob_of(uniform, "weight_bits").gains
    assert uniform.walk().reference_policy() == uniform.uniform_policy()

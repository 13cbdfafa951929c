"""Where the time of an evaluation goes: parts of what the evaluator really does, and no more."""

from collections.abc import Callable
from typing import Any

import pytest
import torch

import amc.evaluate
from amc.compress import ChannelPruning, apply
from amc.policy import CompressionPolicy
from amc.recovery.calibrate import calibrate
from envs.problem import Problem
from scripts.evaluation_phases import LEAST_SQUARES, REST, Stopwatch, phases_of
from tests.operator_pieces import BOTH, compressors, mixed_network, policy_with
from tests.test_env import make_problem


class Clock:
    """Stands still unless it is told to go on."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now

    def slow(self, seconds: float, call: Callable[..., Any]) -> Callable[..., Any]:
        """A call that takes so long."""

        def slowed(*arguments: Any, **named: Any) -> Any:
            self.now += seconds
            return call(*arguments, **named)

        return slowed


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    """Every step of an evaluation takes seconds of its own."""
    clock = Clock()
    for seconds, name in ((1, "inference_form"), (2, "calibrate"), (4, "fold_norms"), (8, "apply")):
        monkeypatch.setattr(amc.evaluate, name, clock.slow(seconds, getattr(amc.evaluate, name)))
    return clock


def slowed(problem: Problem, clock: Clock) -> Problem:
    """Refits of 32 s, scores of 16 s and costs of 64 s."""
    evaluator = problem.evaluator
    evaluator.compressors = tuple(
        each.refitting(clock.slow(32, each.reconstruction))
        if isinstance(each, ChannelPruning) and each.reconstruction
        else each
        for each in evaluator.compressors
    )
    evaluator.task.score = clock.slow(16, evaluator.task.score)  # type: ignore[method-assign]
    (cost,) = [each for name, each in evaluator.costs.items() if name == "macs"]
    evaluator.costs = {"macs": SlowCost(cost, clock)}
    return problem


class SlowCost:
    """A cost that takes a minute."""

    def __init__(self, cost: Any, clock: Clock):
        self.name, self.knobs, self.of = cost.name, cost.knobs, clock.slow(64, cost.of)


def three(problem: Problem) -> list[CompressionPolicy]:
    """Policies that lose channels."""
    walk = problem.walk()
    found = [walk.reference_policy()]
    for draw in (-1.0, 0.5):
        walk.reset()
        for _ in range(walk.length):
            walk.step([draw] * walk.action_size)
        found.append(walk.policy())
    assert len({policy.digest() for policy in found}) == 3
    return found


def test_an_outer_part_stands_still_while_an_inner_one_runs() -> None:
    clock = Clock()
    watch = Stopwatch(clock)
    with watch("outer"):
        clock.now += 1
        with pytest.raises(ValueError), watch("inner"):
            clock.now += 2
            raise ValueError
        clock.now += 4
    clock.now += 8
    with watch("inner"):
        clock.now += 16
    assert watch.seconds == {"outer": 5, "inner": 18}


def test_parts_add_up_to_the_whole_and_a_renormalized_network_is_not_calibrated(clock: Clock) -> None:
    problem = slowed(make_problem("macs=0.5", reconstruct="asymmetric"), clock)
    policies = three(problem)
    clock.now = 0.0
    found = phases_of(problem.evaluator, policies, clock)
    wanted = {LEAST_SQUARES: 32, "inference form": 1, "fold norms": 4, "scoring": 16, REST: 8 + 64}
    assert {part: ms for part, ms in found.items() if ms} == {part: 1e3 * s for part, s in wanted.items()}
    assert "calibration" not in found
    assert sum(found.values()) * len(policies) == pytest.approx(1e3 * clock.now)


@pytest.mark.parametrize(
    ("budget", "reconstruct", "again"),
    [
        ("macs=0.5", "none", True),
        ("macs=0.5", "symmetric", True),
        ("size=0.2", "symmetric", True),
        ("nonzeros=0.5", "asymmetric", True),
        ("size=0.2", "asymmetric", False),
    ],
)
def test_what_nobody_has_renormalized_is_calibrated(
    clock: Clock, budget: str, reconstruct: str, again: bool
) -> None:
    """Or what has lost single weights since; bits are there when layers are refitted."""
    problem = slowed(make_problem(budget, reconstruct=reconstruct), clock)
    found = phases_of(problem.evaluator, three(problem), clock)
    assert found.get("calibration") == (2e3 if again else None)


def test_it_is_calibrated_and_scored_in_the_arithmetic_of_the_evaluator(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    problem = make_problem("macs=0.5", reconstruct="none", precision="bfloat16")
    rounded: list[bool] = []

    def heard(call: Callable[..., Any]) -> Callable[..., Any]:
        def hear(*arguments: Any) -> Any:
            rounded.append(torch.is_autocast_enabled("cpu"))
            return call(*arguments)

        return hear

    monkeypatch.setattr(amc.evaluate, "calibrate", heard(calibrate))
    monkeypatch.setattr(problem.evaluator.task, "score", heard(problem.evaluator.task.score))
    phases_of(problem.evaluator, three(problem)[:2])
    assert rounded == [True] * 4


def test_operators_have_a_part_of_their_own() -> None:
    network, clock = mixed_network(), Clock()
    pieces = compressors(network)
    for seconds, piece in zip((1, 2, 4, 8), pieces, strict=True):
        piece.apply = clock.slow(seconds, piece.apply)
    watch = Stopwatch(clock)
    apply(policy_with(network, BOTH), network, pieces, watch)
    assert watch.seconds == {"copy and slice": 1, "operator fits": 2, "quantization": 12}

"""Episodes under latency budgets: what is measured, and what the judge makes of it."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import tests.test_run as runs
from amc.errors import UserError
from envs.compression_env import CompressionEnv
from envs.judge import Judge
from envs.problem import Problem
from tests import formula_target
from tests.formula_target import FormulaTarget, make, target_of

# Found by name in the module that uses them.
_surroundings, _own_cache = runs._surroundings, formula_target._own_cache
problem = formula_target.problem


def play(env: CompressionEnv, actions: Sequence[np.ndarray], **reset: Any) -> tuple[float, Any]:
    env.reset(**reset)
    last: Any = None
    for action in actions:
        last = env.step(action)
    assert last[2]
    return last[1], last[4]["evaluation"]


def test_the_environment_measures_would_be_bests_and_keeps_their_rewards(monkeypatch: pytest.MonkeyPatch):
    made = make("latency=0.4")
    env, rng, target = CompressionEnv(made), np.random.default_rng(0), target_of(made)
    monkeypatch.setattr(FormulaTarget, "excess", 1.1)
    assert made.latency is not None
    kept_below = made.latency.kept_below(made.budgets[0].limit)
    best, told = -np.inf, dict[str, float]()
    for _ in range(12):
        before = target.single
        reward, evaluation = play(env, [rng.uniform(-1, 1, 2) for _ in range(made.walk().length)])
        if evaluation.latency_source == "measured" and not evaluation.cached:
            assert target.single == before + 1
        else:
            assert target.single == before and reward <= best
        if evaluation.latency_source == "predicted" or evaluation.costs["latency"] <= kept_below:
            best = max(best, reward)
        told[evaluation.policy.digest()] = reward
    assert 0 < target.single < 12


@pytest.mark.parametrize(("share", "keeps"), [(0.97, True), (0.99, False)])
def test_a_measurement_just_below_the_budget_does_not_keep_it(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, share: float, keeps: bool
):
    with monkeypatch.context() as apart:  # or the judge would take this measurement from the cache
        apart.setenv("AMC_CACHE_DIR", str(tmp_path / "apart"))
        made = make("latency=0.4")
    assert made.latency is not None
    policy, limit = made.walk().reference_policy(), made.budgets[0].limit
    takes = made.latency.measure(made.evaluator([policy])[0]).costs["latency"]
    monkeypatch.setattr(FormulaTarget, "excess", share * limit / takes)
    assert (Judge(make("latency=0.4"))(policy)[1] > -1) == keeps


def test_instructions_repeat_so_that_their_budget_is_used_up(monkeypatch: pytest.MonkeyPatch):
    made = make("latency=0.4")
    assert made.latency is not None
    monkeypatch.setattr(FormulaTarget, "unit", "instructions")
    assert made.latency.kept_below(1.0) == 1.0


def test_a_policy_that_missed_is_penalised_again(monkeypatch: pytest.MonkeyPatch):
    made = make("latency=0.4")
    monkeypatch.setattr(FormulaTarget, "excess", 1.5)
    judge, policy = Judge(made), made.walk().reference_policy()
    assert made.latency is not None
    first, reward = judge(policy)
    learned = len(made.latency.predictor.errors)
    again, reward_again = judge(policy)
    assert reward == reward_again < -1 and again.costs == first.costs and again.cached
    assert len(made.latency.predictor.errors) == learned and target_of(made).single == 1


def test_another_latency_budget_for_one_episode(problem: Problem):
    env = CompressionEnv(problem)
    zeros = [np.zeros(2, np.float32)] * problem.walk().length
    reward, evaluation = play(env, zeros, options={"budget": "latency=0.5"})
    assert reward == 0.0
    _, own = play(env, zeros)
    original = problem.original_costs["latency"]
    assert own.costs["latency"] <= 0.3 * original < evaluation.costs["latency"] <= 0.5 * original


def test_a_latency_budget_needs_a_problem_that_has_one():
    env = CompressionEnv(make("macs=0.5"))
    with pytest.raises(UserError, match="when the problem itself has a latency budget"):
        env.reset(options={"budget": "latency=0.5"})


def test_two_budgets_hold_together():
    made = make("latency=0.5", "macs=0.4")
    walk, rng = made.walk(), np.random.default_rng(0)
    for _ in range(20):
        walk.reset()
        for _ in range(walk.length):
            walk.step(rng.uniform(-1, 1, walk.action_size))
        table = made.space.table(walk.policy())
        assert all(budget.cost.of(table) <= budget.limit for budget in made.budgets)

"""The balanced reference policy: about the same predicted error in all layers."""

import numpy as np
import pytest

from agents.config import AgentConfig
from agents.searcher import with_reference
from amc.errors import UserError
from envs.problem import Problem, build_problem
from envs.problem_config import ProblemConfig
from envs.reference import settle_reference, start_from
from tests.test_run import tiny_model, tiny_task

SMALL = {"reward_images": 60, "calibration_images": 40}


def made(**settings: object) -> Problem:
    return build_problem(
        tiny_model(), tiny_task(), ProblemConfig(**{"budget": ("macs=0.4",), **SMALL, **settings})
    )


def errors_of(problem: Problem, policy: object) -> dict[str, tuple[float, float]]:
    """Of every group: the error that the policy accepts, and the one with a channel more."""
    knob = problem.space.knobs[problem.space.column("width")]
    widths = policy.values("width")
    return {
        name: (curve[widths[name]], curve[min(widths[name] + 1, len(curve) - 1)])
        for name, curve in knob.errors.items()
    }


def test_no_layer_accepts_an_error_that_another_would_have_avoided():
    problem = made()
    assert problem.reference_name == "balanced"
    found = errors_of(problem, problem.walk().reference_policy())
    level = max(error for error, _ in found.values())
    # At the next larger error every layer would have to fit, so none has fewer channels than that asks for.
    ranks = sorted(
        e for curve in problem.space.knobs[problem.space.column("width")].errors.values() for e in curve
    )
    above = ranks[min(np.searchsorted(ranks, level, side="right"), len(ranks) - 1)]
    assert all(error <= above for error, _ in found.values())


def test_it_uses_the_budget_and_is_no_uniform_policy():
    problem = made()
    policy, uniform = problem.walk().reference_policy(), problem.uniform_policy()
    limit = problem.budgets[0].limit
    costs = [problem.evaluator.costs_of(each)["macs"] for each in (policy, uniform)]
    assert all(0.8 * limit < cost <= limit for cost in costs)
    plain = made(reference="uniform")
    assert plain.reference_name == "uniform"
    assert plain.walk().reference_policy() == uniform == plain.uniform_policy() != policy


def test_all_that_fraction_zero_keeps_is_the_smallest_and_one_the_largest():
    space = made().space
    names = len(space.knobs)
    assert (space.at_fraction([0.0] * names) == space.smallest).all()
    assert (space.at_fraction([1.0] * names) == space.largest).all()


@pytest.mark.parametrize("settings", [{"importance": "l2"}, {"operators": ("filter-groups",)}])
def test_without_predicted_errors_there_is_none(settings: dict):
    assert not ProblemConfig(budget=("macs=0.4",), **settings).balanced
    with pytest.raises(UserError, match="--reference balanced needs the errors"):
        ProblemConfig(budget=("macs=0.4",), reference="balanced", **settings)


def test_rules_begin_at_their_own_policy():
    problem = ProblemConfig(budget=("macs=0.4",))
    assert with_reference(problem, "deep").reference == "uniform"
    assert with_reference(problem, "balanced").reference == "balanced"
    assert with_reference(problem, AgentConfig().algorithm) is problem
    uniform = ProblemConfig(budget=("macs=0.4",), reference="uniform")
    with pytest.raises(UserError, match="--algorithm balanced begins at the balanced policy"):
        with_reference(uniform, "balanced")


@pytest.mark.parametrize("better", ["uniform", "balanced"])
@pytest.mark.parametrize("budget", ["macs=0.4", "macs=0.3..0.6"])
def test_a_search_starts_from_the_better_one_where_that_is_left_open(
    better: str, budget: str, monkeypatch: pytest.MonkeyPatch
):
    problem = made(budget=(budget,), levels=5)
    level = ("macs=0.6",) if ".." in budget else None
    both = {
        "balanced": problem.walk(level).reference_policy(),
        "uniform": problem.uniform_policy(level),
    }
    scored = []

    def score(policy: object, split: str) -> float:
        scored.append(split)
        return float(policy == both[better])

    monkeypatch.setattr(problem.evaluator, "searched", lambda policy: policy)
    monkeypatch.setattr(problem.task, "score", score)
    settle_reference(problem)
    assert scored == ["reward"] * (6 if level else 2)
    assert problem.reference_name == better and problem.walk(level).reference_policy() == both[better]
    assert problem.uniform_policy(level) == both["uniform"]
    assert any("starts from the uniform policy" in note for note in problem.notes) == (better == "uniform")
    again = made(budget=(budget,), levels=5)
    start_from(again, problem.reference_name)  # as a resumed run does
    assert again.walk(level).reference_policy() == both[better]
    settle_reference(problem)  # it is not left open any more
    assert len(scored) == (6 if level else 2)


@pytest.mark.parametrize(
    "settings", [{"reference": "uniform"}, {"reference": "balanced"}, {"budget": (), "goal": "cost"}]
)
def test_what_is_asked_for_is_not_settled(settings: dict[str, object], monkeypatch: pytest.MonkeyPatch):
    problem = made(**({"minimize": "macs"} if "goal" in settings else {}), **settings)
    monkeypatch.setattr(problem.evaluator, "searched", lambda policy: pytest.fail("was asked"))
    name = problem.reference_name
    settle_reference(problem)
    assert problem.reference_name == name

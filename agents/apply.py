"""An exported actor applied to a network: one walk, one evaluation, and how sure the critic was."""

import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from agents.actor_file import ActorFile
from agents.outcome import ACTOR, Outcome
from agents.report_data import cost_name
from agents.run_config import problem_from
from amc.costs.budget import parse_budget
from amc.errors import UserError
from amc.policy import CompressionPolicy
from amc.tasks import score_and_further
from envs.budget_range import is_range
from envs.problem import Problem
from envs.problem_config import ProblemConfig


@dataclass(frozen=True)
class Applied:
    """What an actor made of a network.

    Attributes:
        policy: its policy.
        outcomes: original, reference policy and the actor's, on both splits.
        expected: the score on the reward split that the critic expected; None where its training's rewards
            do not tell one.
        usual_error: how far it was off, in score, on the evaluations that it learned from; None likewise.
        seconds: that the actor took to decide.
    """

    policy: CompressionPolicy
    outcomes: tuple[Outcome, ...]
    expected: float | None
    usual_error: float | None
    seconds: float

    @property
    def gain(self) -> float:
        """By how much the actor's score is above the reference policy's, on the reward split."""
        return self.outcomes[2].reward_score - self.outcomes[1].reward_score

    def to_json(self) -> dict[str, Any]:
        """The figures, without the seconds."""
        return {
            "policy": self.policy.digest(),
            "outcomes": [each.to_json() for each in self.outcomes],
            "expected_score": self.expected,
            "usual_error": self.usual_error,
            "measured_score": self.outcomes[2].reward_score,
        }


def problem_settings(actor: ActorFile, budgets: Sequence[str], **anew: Any) -> ProblemConfig:
    """What an actor was trained for, under other budgets; what the texts alone show to be wrong is refused.

    Args:
        actor: the exported actor.
        budgets: such as macs=0.43, one for each cost that it knows.
        **anew: settings of the network at hand, such as `freeze` or `target`.

    Raises:
        UserError: the actor knows no such budgets, or its contract has settings that this release lacks.
    """
    legal = actor.contract["legal_budgets"]
    if not legal:
        raise UserError(f"{actor.path} was trained without a budget (--goal cost) and cannot be given one.")
    known, asked = [each["cost"] for each in legal], [cost_name(text) for text in budgets]
    if asked != known:
        raise UserError(
            f"This actor knows budgets of {' and '.join(known)}: give "
            f"--budget {' '.join(f'{name}=...' for name in known)}."
        )
    if any(is_range(text) for text in budgets):
        raise UserError("An actor decides for one budget at a time: give a value and not a range.")
    for text, each in zip(budgets, legal, strict=True):
        share = parse_budget(text, {each["cost"]: None}, {each["cost"]: 1.0}).limit  # type: ignore[dict-item]
        if share < 1.0 and not each["lowest"] - 1e-6 <= share <= each["highest"] + 1e-6:
            raise UserError(
                f"{text} lies outside of what this actor was trained for: {each['cost']} from "
                f"{each['lowest']:.4g} to {each['highest']:.4g} of the original's."
            )
    settings = problem_from(actor.contract["problem"], str(actor.path))
    return replace(settings, budget=tuple(budgets), **anew)


def apply_actor(actor: ActorFile, problem: Problem) -> Applied:
    """Let an actor decide, and evaluate its policy beside the reference policy.

    Raises:
        UserError: the actor does not fit the problem.
    """
    walk = problem.walk()
    actor.check(walk)
    started = time.perf_counter()
    episode = actor.decide(walk)
    seconds = time.perf_counter() - started
    reference = walk.reference_policy()
    found = problem.evaluator([reference, episode.policy])
    original = problem.network.copy().to(problem.evaluator.device)
    before, task = problem.original_score, problem.task
    test, further = score_and_further(task, original, "test")
    outcomes = [Outcome("original", None, before, test, dict(problem.original_costs), further=further)]
    for name, each in zip((problem.reference_name, ACTOR), found, strict=True):
        test, further = score_and_further(task, problem.evaluator.compressed(each.policy), "test")
        outcomes.append(Outcome(name, each.policy, each.score, test, dict(each.costs), further=further))
    scale = _scale(actor.contract["critic"]["reward"], before, found[0].score)
    if scale is None:
        return Applied(episode.policy, tuple(outcomes), None, None, seconds)
    expected = found[0].score + scale * actor.expected_reward(episode)
    error = scale * actor.contract["critic"]["mean_error"]
    return Applied(episode.policy, tuple(outcomes), min(max(expected, 0.0), 1.0), error, seconds)


def _scale(reward: dict[str, Any], original: float, reference: float) -> float | None:
    """Score behind one unit of reward."""
    if reward["kind"] == "share":
        return max(original - reference, float(reward["scale"]))
    return float(reward["scale"]) if reward["kind"] == "score" else None

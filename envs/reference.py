"""Where a search starts, where the settings leave it open."""

from collections.abc import Sequence
from dataclasses import replace

from amc.policy import CompressionPolicy
from envs.problem import Problem
from envs.problem_config import Reference


def settle_reference(problem: Problem) -> None:
    """Let a problem start from the balanced or from the uniform policy, whichever scores better; in place.

    The errors behind the balanced one are those of channels, and of one layer at a time: where a budget
    leaves few channels, or bits decide, one keep ratio for all can be better. Of a range of budgets both ends
    and the middle are asked.
    """
    config = problem.config
    if config.reference != "auto" or problem.reference_name == "uniform" or config.goal == "cost":
        return
    levels: list[Sequence[str] | None] = [*problem.cases.values()] or [None]
    asked = [levels[place] for place in sorted({0, len(levels) // 2, len(levels) - 1})]

    def score(policy: CompressionPolicy) -> float:
        return problem.task.score(problem.evaluator.searched(policy), "reward")

    balanced = sum(score(problem.walk(level).reference_policy()) for level in asked) / len(asked)
    uniform = sum(score(problem.uniform_policy(level)) for level in asked) / len(asked)
    start_from(problem, "uniform" if uniform > balanced else "balanced")
    if uniform > balanced:
        problem.notes += (
            f"The search starts from the uniform policy: it scores {uniform:.2%}, the balanced one "
            f"{balanced:.2%}.",
        )


def start_from(problem: Problem, reference: Reference) -> None:
    """Let a problem whose settings leave it open start from this policy; in place."""
    if problem.config.reference != "auto":
        return
    problem.config = replace(problem.config, reference=reference)
    if reference == "uniform":
        problem.space = problem.uniform_space

"""`Judge`: from a finished policy to its evaluation and reward, under one problem's goal and budgets."""

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any, Protocol

from amc.evaluate import Evaluation
from amc.policy import CompressionPolicy
from envs.latency_budget import Confirmation
from envs.reward import Reward
from envs.walk import Walk


class ProblemLike(Protocol):
    """What the environment asks of `envs.problem.Problem`."""

    @property
    def evaluator(self) -> Any:
        """Scores a list of policies."""

    def walk(self, budgets: Sequence[str] | None = None) -> Walk:
        """A fresh decision process."""

    def make_reward(self, budgets: Sequence[str] | None = None) -> Reward:
        """The reward of the problem's goal."""

    def confirmation(self, budgets: Sequence[str] | None = None) -> Confirmation | None:
        """What measures would-be bests under a latency budget, or None."""


class Judge:
    """Evaluates policies, the reference policy first.

    Args:
        problem: what is compressed.
        budgets: the budgets in force, where they are not the problem's own.
    """

    def __init__(self, problem: ProblemLike, budgets: Sequence[str] | None = None):
        self._problem, self._budgets = problem, budgets
        self._reward, self._confirmation = problem.make_reward(budgets), problem.confirmation(budgets)
        self._best = -math.inf
        self._referenced = False
        self._measured: dict[str, Evaluation] = {}

    def __call__(self, policy: CompressionPolicy) -> tuple[Evaluation, float]:
        """A policy's evaluation and its reward.

        Under a latency budget a policy that would be the best is measured first, and the predictor learns
        from it; met again, it has the same reward.
        """
        evaluate = self._problem.evaluator
        if not self._referenced:
            reference = self._problem.walk(self._budgets).reference_policy()
            self._reward.set_reference(evaluate([reference])[0])
            self._referenced = True
        known = self._measured.get(policy.digest())
        if known is not None:
            return replace(known, seconds=0.0, cached=True), self._reward(known)
        evaluation: Evaluation = evaluate([policy])[0]
        if self._confirmation is None or self._reward(evaluation) <= self._best:
            return evaluation, self._reward(evaluation)
        return self._confirmed(evaluation, self._confirmation)

    def _confirmed(self, evaluation: Evaluation, confirmation: Confirmation) -> tuple[Evaluation, float]:
        """A would-be best with its measured latency, and its reward."""
        measured = confirmation.measure(evaluation)
        confirmation.learn(measured)
        self._measured[measured.policy.digest()] = measured
        reward = self._reward(measured)
        if confirmation.keeps(measured):
            self._best = max(self._best, reward)
        return measured, reward

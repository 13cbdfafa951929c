"""Rewards: one number for a finished policy, paid at the last step of the episode."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol

from amc.errors import UserError
from amc.evaluate import Evaluation
from envs.problem_config import ProblemConfig

SCORE_SCALE = 0.1
"""Ten points of accuracy are worth one unit of reward under a budget."""

DROP_SCALE = 0.01
"""Beyond the allowed drop one point of accuracy outweighs one halving of the cost."""

LEAST_LOSS = 0.02
"""What the reference policy has at least lost, as far as rewards at many levels are concerned."""

NANOSECONDS_PER_MS = 1e6

ROUNDING = 1e-9
"""Far less than one image of a reward split: a loss of exactly the allowed drop is within it."""

MISS, MISS_SCALE = 1.0, 0.1
"""A network that was measured above the latency budget loses 1, and 1 more for every 10 % above it."""


class Reward(Protocol):
    """Turns an evaluation into the number to maximise."""

    def set_reference(self, evaluation: Evaluation) -> None:
        """Hear of the reference policy's evaluation before the first reward is asked for."""

    def __call__(self, evaluation: Evaluation) -> float:
        """The reward of an evaluation; the same for the same evaluation."""


@dataclass
class LatencyLimit:
    """Another reward, less a penalty where a *measured* latency misses the budget.

    Predictions are no reason for a penalty: they keep the budget by construction.

    Attributes:
        reward: of the goal.
        limit: the latency budget, in the target's unit.
    """

    reward: Reward
    limit: float

    def set_reference(self, evaluation: Evaluation) -> None:
        """Pass the reference policy's evaluation on."""
        self.reward.set_reference(evaluation)

    def __call__(self, evaluation: Evaluation) -> float:
        """The reward of an evaluation."""
        reward = self.reward(evaluation)
        if keeps_latency(evaluation, self.limit):
            return reward
        return reward - MISS - (evaluation.costs["latency"] / self.limit - 1.0) / MISS_SCALE


def keeps_latency(evaluation: Evaluation, limit: float) -> bool:
    """Whether no measurement says that an evaluated policy takes longer than `limit`."""
    return evaluation.latency_source in ("", "predicted") or evaluation.costs["latency"] <= limit


def least_score(original_score: float, max_drop: float) -> float:
    """The lowest score that is within a drop of the original's, all of them in [0, 1]."""
    return original_score - max_drop - ROUNDING


class ScoreReward:
    """Under a budget: (score - score of the reference policy) / 0.1.

    Every executed policy keeps the budget, so only the score is left to reward; centring it on the
    reference policy keeps the critic's targets near zero.
    """

    def __init__(self) -> None:
        self._reference: float | None = None

    def set_reference(self, evaluation: Evaluation) -> None:
        """Note the reference policy's score."""
        self._reference = evaluation.score

    def __call__(self, evaluation: Evaluation) -> float:
        """The reward of an evaluation."""
        if self._reference is None:
            raise RuntimeError("the reference policy has to be evaluated first")
        return (evaluation.score - self._reference) / SCORE_SCALE


@dataclass
class ShareReward:
    """At many levels of a budget: the share of the reference policy's loss that is won back.

    (score - score of the reference policy) / (score of the original - score of the reference policy). At
    every level 0 is the reference policy and 1 the original's score, so that rewards can be compared; a loss
    below two points counts as two, or the noise of a loose budget would outweigh the rest.

    Attributes:
        original_score: the uncompressed network's on the reward split, in [0, 1].
    """

    original_score: float
    _reference: float | None = None

    def set_reference(self, evaluation: Evaluation) -> None:
        """Note the reference policy's score."""
        self._reference = evaluation.score

    def __call__(self, evaluation: Evaluation) -> float:
        """The reward of an evaluation."""
        if self._reference is None:
            raise RuntimeError("the reference policy has to be evaluated first")
        return (evaluation.score - self._reference) / max(self.original_score - self._reference, LEAST_LOSS)


@dataclass
class CostReward:
    """For the smallest network within a drop: log2(cost of the original / cost) - excess drop / 0.01.

    It shows the way back to the drop and does not forbid: a network that loses more and is small enough can
    have the higher reward. Which network is the best of a search is decided beside it, by `least_score`.

    Attributes:
        cost: name of the minimised cost.
        original_cost: the uncompressed network's, in the cost's unit.
        original_score: the uncompressed network's score on the reward split, in [0, 1].
        max_drop: largest drop of the score that costs nothing, in [0, 1].
    """

    cost: str
    original_cost: float
    original_score: float
    max_drop: float

    def set_reference(self, evaluation: Evaluation) -> None:
        """Nothing: the uncompressed network is the reference."""

    def __call__(self, evaluation: Evaluation) -> float:
        """The reward of an evaluation."""
        excess = max(0.0, self.original_score - evaluation.score - self.max_drop)
        return math.log2(self.original_cost / evaluation.costs[self.cost]) - excess / DROP_SCALE


@dataclass
class PaperReward:
    """AMC's accuracy-guaranteed reward: -error x log(cost) (He et al., ECCV 2018, section 3.4).

    The cost is an absolute count (MACs, parameters, bytes, nanoseconds), so that its logarithm is
    positive: in milliseconds below 1 the product would pay for wrong answers. It knows no allowed drop.

    Attributes:
        cost: name of the minimised cost.
    """

    cost: str

    def set_reference(self, evaluation: Evaluation) -> None:
        """Nothing: the reward is absolute."""

    def __call__(self, evaluation: Evaluation) -> float:
        """The reward of an evaluation, at most 0."""
        count = evaluation.costs[self.cost] * (NANOSECONDS_PER_MS if self.cost == "latency" else 1.0)
        if count <= 1.0:
            raise UserError(f"--reward paper needs {self.cost} above 1 as an absolute count, not {count:g}.")
        return -(1.0 - evaluation.score) * math.log(count)


def goal_reward(config: ProblemConfig, original_score: float, original_costs: Mapping[str, float]) -> Reward:
    """The reward of the configured goal, whatever latencies may be measured.

    Args:
        config: what is wanted.
        original_score: the uncompressed network's on the reward split, in [0, 1].
        original_costs: its costs by name.
    """
    if config.shares:
        return ShareReward(original_score)
    if config.goal == "accuracy":
        return ScoreReward()
    if config.reward == "paper":
        return PaperReward(config.minimize)
    return CostReward(config.minimize, original_costs[config.minimize], original_score, config.max_drop / 100)


def reward_notes(config: ProblemConfig) -> tuple[str, ...]:
    """What a person should know about the reward before the search."""
    if config.goal != "cost" or config.reward != "paper":
        return ()
    return (
        f"--reward paper pays for accuracy and {config.minimize} alone and knows no allowed drop; --max-drop "
        f"{config.max_drop:g} decides which of the networks that it leads to is handed over.",
    )

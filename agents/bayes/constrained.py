"""`cbo`: constraint-aware compression (Chen, Tung, Vedula and Mori, ECCV 2018)."""

import math

from agents.bayes.free_box import FreeBox
from agents.bayes.searcher import BayesSearcher
from agents.config import AgentConfig
from agents.episode import WalkLike
from agents.searcher import Searcher, register_searcher
from amc.errors import UserError
from amc.evaluate import Evaluation
from envs.walk import Walk


@register_searcher("cbo", extra="bayes", package="botorch", goals=("accuracy",))
def _constrained(walk: WalkLike, config: AgentConfig, budget_evaluations: int) -> Searcher:
    """Learns the score and every budgeted cost as unknown functions of what is kept.

    It is the score that is maximised and not the reward, which falls where a measured latency misses its
    budget: the limit is the constraint's business. A cost enters as log(cost / limit), in which products of
    widths are sums, and its noise is fitted.

    Raises:
        UserError: there is no budget to learn.
    """
    if not isinstance(walk, Walk):
        raise TypeError("cbo needs the walk of a network, whose policies it decides without bounds")
    limits = {budget.cost.name: budget.limit for budget in walk.budgets}
    if not limits:
        raise UserError("The searcher cbo learns to keep a budget; give it one, such as --budget macs=0.5.")

    def outcomes(evaluation: Evaluation, reward: float) -> list[float]:
        costs = evaluation.costs
        return [evaluation.score, *(math.log(costs[name] / limit) for name, limit in limits.items())]

    return BayesSearcher(FreeBox(walk), outcomes, config, budget_evaluations)

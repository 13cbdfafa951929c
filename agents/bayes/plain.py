"""`bayes`: Bayesian optimisation over the budget-relative actions of an episode."""

from agents.bayes.searcher import BayesSearcher
from agents.box import ActionBox
from agents.config import AgentConfig
from agents.episode import WalkLike
from agents.searcher import Searcher, register_searcher


@register_searcher("bayes", extra="bayes", package="botorch")
def _bayes(walk: WalkLike, config: AgentConfig, budget_evaluations: int) -> Searcher:
    return BayesSearcher(ActionBox(walk), lambda evaluation, reward: [reward], config, budget_evaluations)

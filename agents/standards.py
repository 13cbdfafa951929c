"""By what a search judges policies: one standard, or one for each case that it plays in turn."""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Protocol

from agents.log import Row
from amc.errors import UserError
from amc.evaluate import Evaluation


class Reward(Protocol):
    """Turns an evaluation into the number to maximise."""

    def set_reference(self, evaluation: Evaluation) -> None:
        """Hear of the reference policy's evaluation, before the first reward is asked for."""

    def __call__(self, evaluation: Evaluation) -> float:
        """The reward; the same for the same evaluation."""


class Latency(Protocol):
    """What a search under a latency budget needs besides predictions."""

    def measure(self, evaluation: Evaluation) -> Evaluation:
        """The same evaluation with a measured latency."""

    def keeps(self, evaluation: Evaluation) -> bool:
        """Whether no measurement says that the evaluation misses the budget."""

    def learn(self, evaluation: Evaluation) -> None:
        """Hear of every evaluation, in the order of the log."""


@dataclass(frozen=True)
class Standard:
    """How policies are judged.

    Attributes:
        reward: the number to maximise; its reference is the first policy that is judged.
        latency: under a latency budget; what would be the best is measured before its reward is stored.
        limits: cost name to the most that it may be; a policy that costs more is never the best.
        least_score: a policy that scores less is never the best, however high its reward is.
        smallest: name of the cost that the best policy has least of; "" where the highest reward is the best.
    """

    reward: Reward
    latency: Latency | None = None
    limits: Mapping[str, float] = field(default_factory=dict)
    least_score: float = -math.inf
    smallest: str = ""

    def feasible(self, evaluation: Evaluation) -> bool:
        """Whether nothing says that an evaluated policy misses a budget, or loses too much of the score."""
        return self._miss(evaluation) == (0.0, 0.0)

    def leads(self, evaluation: Evaluation, reward: float, best: Row | None) -> bool:
        """Whether an evaluation is better than the best so far of its case.

        As long as nothing is feasible, the nearest to the budgets leads (of one latency budget the fastest),
        and among those that keep them the highest score.
        """
        if best is None:
            return True
        if self.feasible(evaluation) != best.feasible:
            return not best.feasible
        if not best.feasible:
            return self._miss(evaluation) < self._miss(best.evaluation)
        if self.smallest:
            return evaluation.costs[self.smallest] < best.costs[self.smallest]
        return reward > best.reward

    def _miss(self, evaluation: Evaluation) -> tuple[float, float]:
        """The worst missed budget, as a multiple of its limit, and the score that is missing; 0 for none."""
        costs = evaluation.costs
        missed = {name for name, limit in self.limits.items() if costs[name] > limit}
        if self.latency is not None and not self.latency.keeps(evaluation):
            missed.add("latency")
        worst = max((costs[name] / self.limits.get(name, 1.0) for name in missed), default=0.0)
        return worst, max(0.0, self.least_score - evaluation.score)


@dataclass(frozen=True)
class Cases:
    """The cases of a search, such as the levels of a range of budgets.

    Attributes:
        standards: how each is judged, by its name.
        of: number of an evaluation, from 0, to the case that it belongs to.
    """

    standards: Mapping[str, Standard]
    of: Callable[[int], str]

    def at(self, index: int) -> tuple[str, Standard]:
        """Name and standard of an evaluation."""
        name = self.of(index)
        return name, self.standards[name]


def one_case(standard: Standard) -> Cases:
    """A search that has a single standard; its case has no name."""
    return Cases({"": standard}, lambda index: "")


def check_enough(evaluations: int, cases: int) -> None:
    """Refuse a search that would not get beyond the reference policies of its cases.

    Raises:
        UserError: says how many evaluations it takes.
    """
    if evaluations <= cases:
        raise UserError(
            f"--evaluations {evaluations} are too few for {cases} levels: the reference policy of each is "
            f"evaluated first, so give at least {2 * cases}, or fewer --levels."
        )

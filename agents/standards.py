"""By what a search judges policies: one standard, or one for each case that it plays in turn."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Protocol

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
    """

    reward: Reward
    latency: Latency | None = None
    limits: Mapping[str, float] = field(default_factory=dict)

    def feasible(self, evaluation: Evaluation) -> bool:
        """Whether nothing says that an evaluated policy misses a budget."""
        within = all(evaluation.costs[name] <= limit for name, limit in self.limits.items())
        return within and (self.latency is None or self.latency.keeps(evaluation))


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

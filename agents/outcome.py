"""What a search led to: the rows of the before/after table."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from agents.search import SearchResult
from amc.policy import CompressionPolicy

ACTOR = "actor"
"""Name of the policy that a trained actor gives without noise and without any search."""


@dataclass(frozen=True)
class Outcome:
    """One network of the before/after table.

    Attributes:
        name: "original", "uniform", "balanced" or the searcher's name.
        policy: its policy; None for the uncompressed network.
        reward_score, test_score: scores on the two splits, in [0, 1].
        costs: cost name to absolute value.
        case: the budgets that it was made for, where a search has several levels of them.
        further: what else the task measures on the test split, by name.
    """

    name: str
    policy: CompressionPolicy | None
    reward_score: float
    test_score: float
    costs: dict[str, float]
    case: str = ""
    further: Mapping[str, float] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        """The figures, without the policy; a case and further figures only where there are any."""
        rare = ("case", "further")
        figures = {name: value for name, value in vars(self).items() if name != "policy"}
        return {name: value for name, value in figures.items() if value or name not in rare}


def final_figures(result: SearchResult, outcomes: Sequence[Outcome]) -> dict[str, float]:
    """What the hyper-parameter table of TensorBoard compares."""
    best = result.best
    if best is None:
        return {}
    own = [each for each in outcomes if each.case == best.case and each.name != ACTOR][-1]
    tests = {f"test_score/{_label(each)}": each.test_score for each in outcomes if each is not own}
    figures = {"reward": best.reward, "score": best.score, "test_score": own.test_score}
    return {**figures, **tests, **best.costs}


def _label(outcome: Outcome) -> str:
    return f"{outcome.case.replace('=', '')}/{outcome.name}" if outcome.case else outcome.name

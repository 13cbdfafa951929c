"""What a search led to: the rows of the before/after table."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from agents.search import SearchResult
from amc.policy import CompressionPolicy

ORIGINAL = "original"
"""Name of the uncompressed network."""
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
        latency: milliseconds, measured beside the others at the end of a search that counts no latency;
            None where it was not. Of a search that does, `costs` has it.
        latency_source: whether that was "measured" or "unreliable"; "" without it.
        further: what else the task measures on the test split, by name.
    """

    name: str
    policy: CompressionPolicy | None
    reward_score: float
    test_score: float
    costs: dict[str, float]
    case: str = ""
    latency: float | None = None
    latency_source: str = ""
    further: Mapping[str, float] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        """The figures, without the policy and without what was not asked for."""
        optional = ("case", "latency", "latency_source", "further")
        left_out = {"policy", *(name for name in optional if not vars(self)[name])}
        return {name: value for name, value in vars(self).items() if name not in left_out}


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

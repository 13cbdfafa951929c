"""What a search led to: the rows of the before/after table."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from agents.search import SearchResult
from amc.policy import CompressionPolicy


@dataclass(frozen=True)
class Outcome:
    """One network of the before/after table.

    Attributes:
        name: "original", "uniform" or the searcher's name.
        policy: its policy; None for the uncompressed network.
        reward_score, test_score: scores on the two splits, in [0, 1].
        costs: cost name to absolute value.
    """

    name: str
    policy: CompressionPolicy | None
    reward_score: float
    test_score: float
    costs: dict[str, float]

    def to_json(self) -> dict[str, Any]:
        """The figures, without the policy."""
        return {name: value for name, value in vars(self).items() if name != "policy"}


def final_figures(result: SearchResult, outcomes: Sequence[Outcome]) -> dict[str, float]:
    """What the hyper-parameter table of TensorBoard compares."""
    best = result.best
    if best is None:
        return {}
    tests = {f"test_score/{outcome.name}": outcome.test_score for outcome in outcomes[:-1]}
    own = {"reward": best.reward, "score": best.score, "test_score": outcomes[-1].test_score}
    return {**own, **tests, **best.costs}

"""Latency under a budget: predicted for every policy, measured for those that would become the best."""

import copy
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

from amc.costs.latency.cost import LatencyCost
from amc.costs.latency.fitting import make_predictor, sample_latencies
from amc.costs.latency.predictor import LatencyPredictor, Sample
from amc.costs.latency.sampling import Progress
from amc.errors import UserError
from amc.evaluate import Evaluation, Evaluator
from amc.targets import Target
from amc.targets.meter import LatencyMeter
from amc.targets.protocol import NOISE_FLOOR
from envs.problem_config import is_latency
from envs.reward import keeps_latency

ENOUGH_POLICIES = 100
"""Unseen policies from which on their mean error is taken as it stands."""
MOSTLY_LAYERS = 0.5
"""Share of a budget that the narrowest layers use, from which on it is their number that costs time."""


@dataclass(frozen=True)
class PredictorFigures:
    """How good a latency predictor is when a search begins.

    Attributes:
        policies: measured random policies, each of which was predicted by a fit that had not seen it.
        mape: mean absolute relative error of those predictions.
        margin: what is kept free below the budget, as a fraction of a prediction near it.
    """

    policies: int
    mape: float
    margin: float

    @property
    def few(self) -> bool:
        """Whether there are too few policies to take the error as it stands."""
        return self.policies < ENOUGH_POLICIES

    def to_json(self) -> dict[str, Any]:
        """The fields as JSON types."""
        return asdict(self)

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> "PredictorFigures":
        """Rebuild figures; raises KeyError, TypeError or ValueError if `data` are none."""
        return cls(int(data["policies"]), float(data["mape"]), float(data["margin"]))


class LatencyBudget:
    """What a search under a latency budget knows of latencies, and how it learns more.

    Args:
        evaluator: builds the networks to measure; told to note predictions in its evaluations.
        meter: measures them.
        predictor: fitted to random policies.
        samples: those policies; a resumed run starts from them again.

    Attributes:
        cost: what bounds the decisions of an episode.
    """

    def __init__(
        self, evaluator: Evaluator, meter: LatencyMeter, predictor: LatencyPredictor, samples: list[Sample]
    ):
        self.evaluator, self.meter, self.samples = evaluator, meter, samples
        self.cost = LatencyCost(evaluator.space, copy.copy(predictor), meter.original)
        self._fitted = predictor
        evaluator.predict_latency = self.cost.predict

    @property
    def predictor(self) -> LatencyPredictor:
        """The predictor behind the cost."""
        return self.cost.predictor

    def measure(self, evaluation: Evaluation) -> Evaluation:
        """The same evaluation with a measured latency."""
        model = self.evaluator.searched(evaluation.policy)
        timing = self.meter.timing(evaluation.policy, model)
        costs = {**evaluation.costs, "latency": timing.ratio * self.meter.original}
        source = "measured" if timing.reliable else "unreliable"
        # Not "cached", even if its score was: the latency is news.
        return replace(evaluation, costs=costs, latency_source=source, cached=False)

    def restart(self) -> None:
        """Forget what was learned: a search that goes on in the same process learns its log again."""
        self.cost.predictor = copy.copy(self._fitted)

    def learn(self, evaluation: Evaluation) -> None:
        """Let the predictor learn from an evaluation, if its latency was measured and is new.

        From an unreliable measurement, too, by which the policy was judged as well: a search on a busy
        machine would else propose what misses its budget again and again. To be called for every evaluation
        of a log in its order: a resumed search then bounds its decisions as the uninterrupted one would.
        """
        if evaluation.latency_source in ("measured", "unreliable") and not evaluation.cached:
            table = self.evaluator.space.table(evaluation.policy)
            self.predictor.add(table, evaluation.costs["latency"] / self.meter.original)

    def margin(self, limit: float) -> float:
        """What is kept free below a limit in the target's unit, as a fraction of a prediction near it."""
        ratio = limit / self.meter.original
        return self.predictor.bound(ratio) / ratio - 1.0

    def kept_below(self, limit: float) -> float:
        """What a measurement has to stay below, so that the file keeps the limit on another day, too.

        Two measurements of the same network differ by up to `NOISE_FLOOR` where time is counted.
        """
        return limit / (1.0 + NOISE_FLOOR) if self.meter.target.unit == "ms" else limit

    def figures(self, limit: float) -> PredictorFigures:
        """How good the predictor is near a limit in the target's unit."""
        return PredictorFigures(len(self.samples), self.predictor.mape, self.margin(limit))

    def note(self, limit: float) -> str:
        """The same for a person."""
        figures, target = self.figures(limit), self.meter.target
        note = (
            f"Latency on {target.name} is predicted from {figures.policies} measured random policies; on "
            f"policies that the fit had not seen its mean error is {figures.mape:.1%}, and the budget is "
            f"kept with a margin of {figures.margin:.1%}."
        )
        doubt = (
            f" Fewer than {ENOUGH_POLICIES} policies say little about that error: there were no others, or "
            "no time for them."
        )
        return note + (doubt if figures.few else "") + self._about_depth(limit)

    def _about_depth(self, limit: float) -> str:
        space = self.evaluator.space
        least = self.cost.lower_bound(space.empty()) / limit
        if least < MOSTLY_LAYERS or not space.could_drop_blocks:
            return ""
        return (
            f" The narrowest layers use {least:.0%} of it already: what costs time here is their number, and "
            "--drop-blocks lets whole residual blocks go."
        )


@dataclass(frozen=True)
class Confirmation:
    """A latency budget's limit, and what tells whether it is kept.

    Attributes:
        latency: measures and learns.
        limit: what a measurement has to stay below, in the target's unit.
    """

    latency: LatencyBudget
    limit: float

    def measure(self, evaluation: Evaluation) -> Evaluation:
        """The same evaluation with a measured latency."""
        return self.latency.measure(evaluation)

    def keeps(self, evaluation: Evaluation) -> bool:
        """Whether no measurement says that the evaluation misses the budget."""
        return keeps_latency(evaluation, self.limit)

    def learn(self, evaluation: Evaluation) -> None:
        """Let the predictor learn from it."""
        self.latency.learn(evaluation)


def make_latency_budget(
    evaluator: Evaluator, meter: LatencyMeter, samples: Sequence[Sample], progress: Progress
) -> LatencyBudget:
    """Fit a predictor, to the given samples or to new ones.

    Raises:
        UserError: the target cannot measure enough random policies.
    """
    space, target = evaluator.space, meter.target
    if not samples:
        samples = sample_latencies(
            evaluator.network, space, evaluator.compressors, target, meter.reference, progress
        )
    return LatencyBudget(evaluator, meter, make_predictor(space, target, samples), list(samples))


def check_unit(budgets: Sequence[str], target: Target) -> None:
    """Refuse a budget in milliseconds on a target that counts something else.

    Raises:
        UserError: names the budget.
    """
    for text in budgets:
        if is_latency(text) and text.strip().endswith("s") and target.unit != "ms":
            raise UserError(
                f"{target.name} counts {target.unit}, not time, so {text!r} means nothing there; write a "
                "fraction of the original's, such as latency=0.25."
            )

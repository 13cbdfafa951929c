"""A monotone predictor of whole-network latency, and how far it can be trusted."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from scipy.optimize import nnls
from scipy.stats import t as student_t

from amc.costs.latency.features import LatencyFeatures

FOLDS = 10
CONFIDENCE = 0.95
NEIGHBOURS = 50
"""Samples of about the same latency that tell how far a prediction can be trusted. Errors are not the same
everywhere: with blocks left out of a ResNet-56, 95 % of all policies need a margin of 14 %, but those
at 0.15 to 0.25 of its latency one of 5 %, and under a budget in that range the rest would be wasted."""
OWN_SAMPLES = 3
"""Measured policies of a search after which these alone tell how far its next one may be off. They lie where
the search looks, and there the fit is off by about the same each time: under 0.2 of a ResNet-56's latency its
would-be bests took 5 % less than predicted, and kept 10 % free for the scatter of the random policies."""
SMALLEST_FIT = 20
"""Samples below which a fit means nothing."""
SPECIFIC_PENALTIES = (0.0, 10.0)
"""How much a class of layers must explain to deviate from its kind. The classes have more features than there
are samples. Where measurements are exact, as counted instructions are, they had better be free; where these
scatter, free ones learn the noise: penalized, the mean error on unseen policies falls from 6.8 to 5.9 % on
MobileNet-V2. Penalties from 6 to 30 do the same."""


@dataclass(frozen=True, eq=False)
class Sample:
    """One measured policy.

    Attributes:
        table: int64 [points, knobs].
        ratio: its latency divided by the uncompressed network's.
    """

    table: np.ndarray
    ratio: float

    def to_json(self) -> dict[str, Any]:
        """The fields as JSON types."""
        return {"table": self.table.tolist(), "ratio": self.ratio}

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> "Sample":
        """Rebuild a sample; raises KeyError, TypeError or ValueError if `data` is not one."""
        return cls(np.array(data["table"], dtype=np.int64), float(data["ratio"]))


class LatencyPredictor:
    """Latency of policies as a fraction of the uncompressed network's, fitted to measured networks.

    A non-negative ridge regression of relative errors: with features that grow with every width, so do its
    predictions, and the cheapest completion of a partial policy is the one with the smallest widths. The
    penalty is the one of `SPECIFIC_PENALTIES` that predicts unseen samples best.

    Args:
        features: of the space's policies.
        samples: measured random policies.

    Attributes:
        errors: prediction / measurement - 1 of every sample, by a fit that has not seen it: the samples
            it was made of are dealt into ten folds, later ones are predicted before they join.
        weights: of the features, [features]; another array after every sample that joins.
    """

    def __init__(self, features: LatencyFeatures, samples: Sequence[Sample]):
        if len(samples) < SMALLEST_FIT:
            raise ValueError(f"{len(samples)} samples are too few for a fit")
        self.features = features
        self._rows = np.stack([features.of(sample.table) for sample in samples])
        self._ratios = np.array([sample.ratio for sample in samples])
        choices = [np.where(features.specific, penalty, 0.0) for penalty in SPECIFIC_PENALTIES]
        unseen = [self._unseen_errors(penalties) for penalties in choices]
        best = int(np.argmin([np.abs(errors).mean() for errors in unseen]))
        self._penalties, self.errors = choices[best], unseen[best]
        self._own: tuple[float, ...] = ()
        self.weights = fit(self._rows, self._ratios, self._penalties)

    def __call__(self, table: np.ndarray) -> float:
        """The predicted fraction of a complete table [points, knobs]."""
        return float(self.features.of(table) @ self.weights)

    def add(self, table: np.ndarray, ratio: float) -> None:
        """Learn from another measured policy; its error before that counts as one on an unseen policy."""
        row = self.features.of(table)
        error = float(row @ self.weights / ratio - 1.0)
        self.errors, self._own = np.append(self.errors, error), (*self._own, error)
        for stale in ("_bounds", "_own_margin"):
            self.__dict__.pop(stale, None)
        self._rows, self._ratios = np.vstack([self._rows, row]), np.append(self._ratios, ratio)
        self.weights = fit(self._rows, self._ratios, self._penalties)

    @property
    def mape(self) -> float:
        """Mean absolute relative error on unseen policies."""
        return float(np.abs(self.errors).mean())

    @property
    def margin(self) -> float:
        """By which fraction a measurement exceeds its prediction at most, in 95 % of unseen policies."""
        return _margin(self.errors)

    def bound(self, ratio: float) -> float:
        """What a measurement stays below in 95 % of the unseen policies with about this prediction.

        Grows with the prediction, so that the cheapest completion has the lowest bound, too. From
        `OWN_SAMPLES` added policies on, it is the upper end of the one-sided prediction interval of a normal
        distribution with their mean and deviation.
        """
        if len(self._own) >= OWN_SAMPLES:
            return ratio * (1.0 + self._own_margin)
        predicted, bounds = self._bounds
        if ratio <= predicted[0]:
            return float(ratio * bounds[0] / predicted[0])
        if ratio >= predicted[-1]:
            return float(ratio * bounds[-1] / predicted[-1])
        return float(np.interp(ratio, predicted, bounds))

    @cached_property
    def _own_margin(self) -> float:
        return _interval(np.array(self._own))

    @cached_property
    def _bounds(self) -> tuple[np.ndarray, np.ndarray]:
        """Predictions for unseen samples, rising, and the bounds there."""
        order = np.argsort(self._ratios * (1.0 + self.errors))
        predicted, errors = (self._ratios * (1.0 + self.errors))[order], self.errors[order]
        # Neighbours in rank: near each other where there are many samples, and never too few.
        first = np.clip(np.arange(len(order)) - NEIGHBOURS // 2, 0, max(0, len(order) - NEIGHBOURS))
        margins = np.array([_margin(errors[start : start + NEIGHBOURS]) for start in first])
        return predicted, np.maximum.accumulate(predicted * (1.0 + margins))

    def _unseen_errors(self, penalties: np.ndarray) -> np.ndarray:
        fold = np.arange(len(self._ratios)) % FOLDS
        errors = np.empty(len(self._ratios))
        for number in range(FOLDS):
            unseen = fold == number
            weights = fit(self._rows[~unseen], self._ratios[~unseen], penalties)
            errors[unseen] = self._rows[unseen] @ weights / self._ratios[unseen] - 1.0
        return errors


def _margin(errors: np.ndarray) -> float:
    return max(0.0, float(np.quantile(_excess(errors), CONFIDENCE)))


def _interval(errors: np.ndarray) -> float:
    excess, number = _excess(errors), len(errors)
    scale = excess.std(ddof=1) * (1.0 + 1.0 / number) ** 0.5
    return float(excess.mean() + student_t.ppf(CONFIDENCE, number - 1) * scale)


def _excess(errors: np.ndarray) -> np.ndarray:
    """By which fractions measurements exceed their predictions."""
    return 1.0 / (1.0 + errors) - 1.0


def fit(rows: np.ndarray, ratios: np.ndarray, penalties: np.ndarray) -> np.ndarray:
    """Non-negative weights that minimise the squared relative errors plus a ridge penalty.

    Args:
        rows: features of the samples, [samples, features].
        ratios: what was measured, [samples], all above 0.
        penalties: [features]; a feature that adds c to the prediction where it is largest costs as much as
            one sample with a relative error of c times its penalty.

    Returns:
        [features]; 0 for features that are 0 in every sample.
    """
    scale = rows.max(axis=0)
    scale[scale == 0] = 1.0
    ridge = np.diag(penalties)[penalties > 0]
    system = np.vstack([rows / scale / ratios[:, None], ridge])
    wanted = np.concatenate([np.ones(len(ratios)), np.zeros(len(ridge))])
    weights, _ = nnls(system, wanted, maxiter=50 * rows.shape[1])
    return np.asarray(weights / scale)

"""The non-negative ridge regression behind the latency predictor."""

from typing import Any

import numpy as np
import pytest

from amc.costs.latency.predictor import SPECIFIC_PENALTIES, LatencyPredictor, Sample, fit


def test_fit_by_hand():
    rows = np.array([[1.0, 0.0, 0.0], [0.0, 2.0, 0.0], [1.0, 2.0, 0.0]])
    free = np.zeros(3)
    assert fit(rows, np.array([3.0, 4.0, 7.0]), free) == pytest.approx([3.0, 2.0, 0.0])
    assert (fit(rows, np.array([3.0, 4.0, 1.0]), free) >= 0).all()


def test_a_penalized_weight_by_hand():
    """The least of (w / 2 - 1)^2 + (w - 1)^2 + (3 w)^2: the feature is 1 where it is largest."""
    assert fit(np.array([[1.0], [1.0]]), np.array([2.0, 1.0]), np.array([3.0])) == pytest.approx(
        [1.5 / 10.25]
    )


class Rows:
    """Tables that are their own features: thirty classes, and last their kind, which adds them up."""

    specific = np.array([True] * 30 + [False])

    def of(self, table: np.ndarray) -> np.ndarray:
        return table


def tables(count: int, seed: int) -> np.ndarray:
    """Uniform sizes of the classes times one of the whole; [count, 31]."""
    rng = np.random.default_rng(seed)
    classes = rng.uniform(0.1, 1.0, (count, 30)) * rng.uniform(0.2, 1.0, (count, 1))
    return np.column_stack([classes, classes.sum(axis=1)])


def predictor(costs: np.ndarray, noise: float) -> LatencyPredictor:
    """Fitted to 60 measurements of tables whose classes cost so much, [30]."""
    seen: Any = tables(60, seed=0)
    errors = noise * np.random.default_rng(1).normal(size=60)
    ratios = (seen[:, :30] @ costs) * (1.0 + errors)
    samples = [Sample(table, float(ratio)) for table, ratio in zip(seen, ratios, strict=True)]
    features: Any = Rows()
    return LatencyPredictor(features, samples)


def true_error(fitted: LatencyPredictor, costs: np.ndarray) -> float:
    """The mean absolute relative error on 200 other tables, against latencies without noise."""
    return float(np.mean([abs(fitted(t) / (t[:30] @ costs) - 1) for t in tables(200, seed=2)]))


def test_exact_measurements_tell_what_each_class_costs():
    costs = np.linspace(0.2, 1.8, 30) / 30
    exact = predictor(costs, noise=0.0)
    assert exact.mape < 1e-6 and true_error(exact, costs) < 1e-6


def test_classes_do_not_learn_the_noise(monkeypatch: pytest.MonkeyPatch):
    costs = np.full(30, 1 / 30)
    chosen = predictor(costs, noise=0.08)
    monkeypatch.setattr("amc.costs.latency.predictor.SPECIFIC_PENALTIES", SPECIFIC_PENALTIES[:1])
    free = predictor(costs, noise=0.08)
    assert chosen.mape < 0.9 * free.mape
    assert true_error(chosen, costs) < 0.5 * true_error(free, costs)

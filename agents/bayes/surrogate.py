"""Gaussian processes over proposals, one for each outcome, and the acquisition that they give."""

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch.nn.utils import parameters_to_vector, vector_to_parameters

Acquisition = Any
"""BoTorch's acquisition function: points [m, 1, d] in the unit box to values [m]."""

FIRST_STEPS, STEPS = 50, 10
"""L-BFGS steps of the first fit, and of each further one, which starts from the one before."""

CLIMB = 10
"""L-BFGS steps up the acquisition; rounding to legal values hides more."""


class Surrogate:
    """Matern 5/2 processes with one length scale a variable, fitted by maximum a posteriori.

    The prior of the length scales grows with the square root of the dimension (Hvarfner, Hellsten and Nardi,
    ICML 2024), without which 16 to 60 variables are taken for noise. The noise is fitted too.

    Args:
        inputs: float64 [n, d] in [-1, 1], n at least 2.
        outcomes: float64 [n, 1 + c]: what to maximise, then what must not exceed 0.
        start: the `parameters` of an earlier fit with the same d and c.
    """

    def __init__(self, inputs: np.ndarray, outcomes: np.ndarray, start: np.ndarray | None = None):
        self._mean, spread = outcomes.mean(axis=0), outcomes.std(axis=0)
        self._spread = np.where(spread > 1e-9, spread, 1.0)
        self._inputs = _unit(inputs)
        self._outcomes = torch.from_numpy((outcomes - self._mean) / self._spread)
        starts = [None] * outcomes.shape[1] if start is None else list(start)
        columns = zip(self._outcomes.T, starts, strict=True)
        self._processes = [_fitted(self._inputs, column, each) for column, each in columns]

    @property
    def parameters(self) -> np.ndarray:
        """What was fitted: noise, mean and length scales of each process [1 + c, 2 + d]."""
        vectors = [parameters_to_vector(process.parameters()) for process in self._processes]
        return torch.stack(vectors).detach().numpy()

    @property
    def scales(self) -> np.ndarray:
        """Length scales of what is maximised [d], with a geometric mean of 1."""
        scales = self._processes[0].covar_module.lengthscale.detach().numpy().reshape(-1)
        return np.exp(np.log(scales) - np.log(scales).mean())

    def believe(self, vector: np.ndarray) -> None:
        """Take a proposal [d] that is still being evaluated for as good as expected, as of now.

        Its uncertainty is then gone, and the next proposal of a batch looks elsewhere (the "kriging
        believer" of Ginsbourger, Le Riche and Carraro, 2010).
        """
        point = _unit(vector[None])
        with torch.no_grad():
            expected = [process.posterior(point).mean.reshape(1) for process in self._processes]
        self._inputs = torch.cat([self._inputs, point])
        self._outcomes = torch.cat([self._outcomes, torch.stack(expected, dim=1)])
        for process, column in zip(self._processes, self._outcomes.T, strict=True):
            process.set_train_data(self._inputs, column, strict=False)

    def acquisition(self) -> Acquisition:
        """Log expected improvement on the best feasible point, times the probability of being feasible.

        The probability alone as long as no point is feasible.
        """
        limits = -self._mean[1:] / self._spread[1:]
        feasible = (self._outcomes[:, 1:] <= torch.from_numpy(limits)).all(dim=1)
        best = self._outcomes[feasible, 0].max() if feasible.any() else None
        return _acquisition(self._processes, best, limits)


def maximise(acquisition: Acquisition, starts: np.ndarray, low: np.ndarray, high: np.ndarray) -> np.ndarray:
    """Candidates in a box, best first: the starts, and what gradients make of the best four of them.

    Args:
        acquisition: of one point.
        starts: float64 [m, d] in [-1, 1].
        low, high: float64 [d], the box.
    """
    from botorch.generation.gen import gen_candidates_scipy

    points = _unit(starts)
    with torch.no_grad():
        values = acquisition(points[:, None])
    best = points[values.topk(min(4, len(points))).indices]
    bounds = (_unit(low), _unit(high))
    with _quiet():
        climbed, reached = gen_candidates_scipy(
            best[:, None], acquisition, *bounds, options={"maxiter": CLIMB}
        )
    everything = torch.cat([climbed[:, 0].detach(), points])
    order = torch.cat([reached.detach(), values]).argsort(descending=True, stable=True)
    return everything[order].numpy() * 2.0 - 1.0


def _acquisition(processes: list[Any], best: torch.Tensor | None, limits: np.ndarray) -> Acquisition:
    """The acquisition of processes whose first is maximised and whose others must not exceed `limits`."""
    from botorch.acquisition.analytic import (
        LogConstrainedExpectedImprovement,
        LogExpectedImprovement,
        LogProbabilityOfFeasibility,
    )
    from botorch.models import ModelListGP

    constraints: Any = {index: (None, float(limit)) for index, limit in enumerate(limits, start=1)}
    if best is None:
        return LogProbabilityOfFeasibility(ModelListGP(*processes), constraints)
    if not constraints:
        return LogExpectedImprovement(processes[0], best)
    return LogConstrainedExpectedImprovement(ModelListGP(*processes), best, 0, constraints)


@contextmanager
def _quiet() -> Iterator[None]:
    """Without BoTorch's warnings: a fit or a climb that stops early has still brought something."""
    from botorch.exceptions.warnings import BotorchWarning

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", BotorchWarning)
        yield


def _unit(vectors: np.ndarray) -> torch.Tensor:
    return torch.from_numpy((np.asarray(vectors, dtype=np.float64) + 1.0) / 2.0)


def _fitted(inputs: torch.Tensor, outcomes: torch.Tensor, start: np.ndarray | None) -> Any:
    from botorch.models import SingleTaskGP
    from botorch.models.utils.gpytorch_modules import get_covar_module_with_dim_scaled_prior
    from botorch.optim.fit import fit_gpytorch_mll_scipy
    from gpytorch.mlls import ExactMarginalLogLikelihood

    kernel = get_covar_module_with_dim_scaled_prior(ard_num_dims=inputs.shape[1], use_rbf_kernel=False)
    with _quiet():
        process = SingleTaskGP(inputs, outcomes[:, None], covar_module=kernel, outcome_transform=None)
    if start is not None:
        vector_to_parameters(torch.from_numpy(start), process.parameters())
    likelihood = ExactMarginalLogLikelihood(process.likelihood, process)
    likelihood.train()
    with _quiet():
        fit_gpytorch_mll_scipy(likelihood, options={"maxiter": FIRST_STEPS if start is None else STEPS})
    process.eval()
    return process

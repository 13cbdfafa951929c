"""A Gaussian process over the executed actions of whole episodes: what a policy will probably be worth."""

import math

import numpy as np
import torch
from torch import Tensor

SCALES = (1.0, 2.0, 4.0, 8.0)
"""Length scales to choose from, in standard deviations of an action times the root of their number."""

NOISES = (0.01, 0.05, 0.2)
"""Variances of the noise to choose from, as shares of the process's own."""

LEVEL_SCALES = (0.25, 1.0, 4.0)
"""Length scales to choose from for the levels that episodes were played at, in their standard deviations."""

JITTER = 1e-6


class GaussianProcess:
    """Matern 5/2 with one length scale; scale and noise are those of the largest likelihood on a grid.

    A grid instead of gradients: a fit at 400 episodes takes a tenth of a second on one core, needs no
    start and cannot fail. Entries that never changed (dead knobs, the last layer's remainder) are left out.

    Args:
        actions: executed, [n, d], n at least 1.
        values: what they were worth, [n].
        levels: at what budgets, [n, b], where these differ. Episodes at near levels then tell of each other
            as far as the likelihood says; everything that is asked about lies at the level `at` [b].
        at: see `levels`.
    """

    def __init__(
        self,
        actions: np.ndarray,
        values: np.ndarray,
        levels: np.ndarray | None = None,
        at: np.ndarray | None = None,
    ):
        inputs = torch.from_numpy(actions.astype(np.float64))
        spread = inputs.std(dim=0, correction=0)
        self._moving = spread > 1e-6
        self._centre, self._spread = inputs.mean(dim=0), spread[self._moving]
        self._inputs = self._standard(inputs)
        self._set_levels(len(values), levels, at)
        targets = torch.from_numpy(values.astype(np.float64))
        self._level = float(targets.mean())
        self._unit = max(float(targets.std(correction=0)), JITTER)
        self._targets = (targets - self._level) / self._unit
        here = torch.isclose(self._levels, self._at).all(dim=1)
        self.best = float((targets[here] if here.any() else targets).max())
        reaches = LEVEL_SCALES if self._levels.shape[1] else LEVEL_SCALES[:1]
        grid = [(scale, noise, reach) for scale in SCALES for noise in NOISES for reach in reaches]
        self._scale, self._noise, self._reach = max(grid, key=lambda choice: self._likelihood(*choice))
        self._solve()

    def _set_levels(self, n: int, levels: np.ndarray | None, at: np.ndarray | None) -> None:
        """Levels [n, b] and the one asked about [1, b], in standard deviations; b is 0 without any."""
        self._levels, self._at = torch.zeros(n, 0).double(), torch.zeros(1, 0).double()
        if levels is None or at is None:
            return
        known, asked = (torch.from_numpy(each.astype(np.float64)) for each in (levels, at[None]))
        spread = known.std(dim=0, correction=0)
        moving = spread > 1e-6
        self._levels, self._at = known[:, moving] / spread[moving], asked[:, moving] / spread[moving]

    def believe(self, actions: np.ndarray) -> None:
        """Take an episode [d] that is still open for as good as expected, so that the next one differs.

        The "kriging believer" of Ginsbourger, Le Riche and Carraro (2010).
        """
        point = self._standard(torch.from_numpy(actions.astype(np.float64))[None])
        expected, _ = self._predict(point)
        self._inputs = torch.cat([self._inputs, point])
        self._levels = torch.cat([self._levels, self._at])
        self._targets = torch.cat([self._targets, expected])
        self._solve()

    def expected(self, actions: np.ndarray) -> np.ndarray:
        """What episodes [m, d] are probably worth, [m]."""
        mean, _ = self._predict(self._standard(torch.from_numpy(actions.astype(np.float64))))
        result: np.ndarray = mean.numpy() * self._unit + self._level
        return result

    def improvement(self, actions: np.ndarray) -> np.ndarray:
        """Expected improvement over the best value at the level that is asked about, [m] for [m, d]."""
        mean, deviation = self._predict(self._standard(torch.from_numpy(actions.astype(np.float64))))
        gain = mean - (self.best - self._level) / self._unit
        z = gain / deviation
        density = torch.exp(-0.5 * z**2) / math.sqrt(2.0 * math.pi)
        result: np.ndarray = (gain * torch.special.ndtr(z) + deviation * density).numpy() * self._unit
        return result

    def _standard(self, inputs: Tensor) -> Tensor:
        return (inputs - self._centre)[:, self._moving] / self._spread

    def _kernel(self, left: Tensor, right: Tensor, scale: float) -> Tensor:
        reach = scale * math.sqrt(max(1, left.shape[1]))
        return _matern(torch.cdist(left, right), reach)

    def _factor(self, scale: float, noise: float, reach: float) -> Tensor:
        n = len(self._inputs)
        kernel = self._kernel(self._inputs, self._inputs, scale)
        kernel = kernel * _matern(torch.cdist(self._levels, self._levels), reach)
        return torch.linalg.cholesky(kernel + (noise + JITTER) * torch.eye(n, dtype=torch.float64))

    def _likelihood(self, scale: float, noise: float, reach: float) -> float:
        """Logarithm of the likelihood, with the process's own variance at its best."""
        factor, n = self._factor(scale, noise, reach), len(self._targets)
        weights = torch.cholesky_solve(self._targets[:, None], factor)[:, 0]
        variance = max(float(self._targets @ weights) / n, JITTER)
        return -0.5 * n * math.log(variance) - float(factor.diagonal().log().sum())

    def _solve(self) -> None:
        self._cholesky = self._factor(self._scale, self._noise, self._reach)
        self._weights = torch.cholesky_solve(self._targets[:, None], self._cholesky)[:, 0]
        self._variance = max(float(self._targets @ self._weights) / len(self._targets), JITTER)

    def _predict(self, inputs: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and standard deviation, in standardised units."""
        kernel = self._kernel(inputs, self._inputs, self._scale)
        kernel = kernel * _matern(torch.cdist(self._at, self._levels), self._reach)
        reduced = torch.linalg.solve_triangular(self._cholesky, kernel.T, upper=False)
        left = (1.0 - (reduced**2).sum(dim=0)).clamp_min(JITTER)
        return kernel @ self._weights, (left * self._variance).sqrt()


def _matern(distance: Tensor, reach: float) -> Tensor:
    """Matern 5/2; 1 at distance 0."""
    far = math.sqrt(5.0) * distance / reach
    return (1.0 + far + far**2 / 3.0) * torch.exp(-far)

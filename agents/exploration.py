"""Exploration noise: a truncated normal whose sigma falls over the evaluation budget."""

from dataclasses import dataclass

import numpy as np
import torch


@dataclass(frozen=True)
class Exploration:
    """Which noise the n-th episode of a search gets (one episode is one evaluation).

    stable-baselines3 has no schedule for action noise (SB3 #846), and a decay per step or per episode ends
    long before or long after the search does; this one is tied to the evaluations that may be spent.

    Attributes:
        evaluations: the budget.
        warmup: episodes drawn around the reference policy (action zero); the first is exactly that.
        sigma_start: standard deviation during the warm-up and at its end, on the action scale -1 to 1.
        sigma_end: standard deviation from `settled` evaluations before the end.
        settled: evaluations at the end that keep `sigma_end`.
        references: episodes at the start that play exactly the reference policy, one for each case of a
            search; the warm-up counts from the last of them.
    """

    evaluations: int = 200
    warmup: int = 20
    sigma_start: float = 0.3
    sigma_end: float = 0.05
    settled: int = 10
    references: int = 1

    @property
    def _drawn(self) -> int:
        """Episodes that the actor has no part in."""
        return max(1, self.warmup) + self.references - 1

    def warming_up(self, episode: int) -> bool:
        """Whether an episode (counted from 0) is drawn around the reference policy; the first always is."""
        return episode < self._drawn

    def sigma(self, episode: int) -> float:
        """Standard deviation of an episode (counted from 0); 0 for the reference policies at the start."""
        if episode < self.references:
            return 0.0
        warmup = self.warmup + self.references - 1
        decaying = max(1, self.evaluations - self.settled - warmup)
        progress = min(1.0, max(0, episode - warmup) / decaying)
        return self.sigma_start * (self.sigma_end / self.sigma_start) ** progress


def truncated_normal(rng: np.random.Generator, mean: np.ndarray, sigma: float) -> np.ndarray:
    """Draw from a normal distribution conditioned on [-1, 1].

    Adding Gaussian noise and clipping puts a third of the probability on the bounds when the mean is near
    them (SB3 #1749); the truncated normal has no atoms. Drawn by inverting the distribution function, so
    each draw uses exactly one uniform number per entry.

    Args:
        rng: source of the uniform numbers.
        mean: centre, any shape, entries in [-1, 1].
        sigma: standard deviation before truncation; 0 returns the mean.

    Returns:
        float32 array of the mean's shape.
    """
    if sigma == 0.0:
        return mean.astype(np.float32)
    centre = torch.as_tensor(mean, dtype=torch.float64)
    lower, upper = (torch.special.ndtr((bound - centre) / sigma) for bound in (-1.0, 1.0))
    probability = lower + (upper - lower) * torch.from_numpy(rng.random(mean.shape))
    draw = centre + sigma * torch.special.ndtri(probability)
    return draw.clamp(-1.0, 1.0).numpy().astype(np.float32)

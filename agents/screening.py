"""Screening: many noisy episodes, of which only the most promising one is played and evaluated."""

from collections.abc import Iterator

import numpy as np

from agents.exploration import truncated_normal
from agents.gaussian_process import GaussianProcess

ELITE_SHARE = 0.5
"""Share of the candidates around the best episodes so far; the others lie around the actor's own walk."""

ELITES = 5

TRIES = 8
"""Candidates, from the best on, among which one is looked for that has not been executed yet."""


def draw_candidates(
    rng: np.random.Generator,
    own: np.ndarray,
    told: np.ndarray,
    values: np.ndarray,
    count: int,
    sigma: float,
    categorical: np.ndarray,
) -> np.ndarray:
    """Action sequences around the actor's own walk and around the best episodes.

    They are drawn without walking: noise does not hear what earlier decisions were rounded to, and so a
    candidate costs next to nothing. Falling noise leaves no choice between unordered values once the
    actor stands at a bound, so about one entry of each categorical knob is drawn anew, whatever sigma is.

    Args:
        rng: source of the noise.
        own: what the actor would do, [T, K].
        told: executed actions of the episodes so far, [n, T, K].
        values: what they were worth, [n].
        count: how many to draw.
        sigma: standard deviation of the noise.
        categorical: which entries of an action stand for values without an order, bool [K].

    Returns:
        float32 [count, T, K] in [-1, 1].
    """
    around_best = int(count * ELITE_SHARE)
    best = told[np.argsort(-values, kind="stable")[:ELITES]]
    chosen = best[rng.integers(len(best), size=around_best)]
    centres = np.concatenate([np.repeat(own[None], count - around_best, axis=0), chosen])
    candidates = truncated_normal(rng, centres, sigma)
    if categorical.any():
        anew = categorical & (rng.random(candidates.shape) < 1 / candidates.shape[1])
        candidates[anew] = rng.uniform(-1.0, 1.0, int(anew.sum()))
    return candidates


def most_promising(candidates: np.ndarray, process: GaussianProcess) -> Iterator[np.ndarray]:
    """The first candidates [T, K] by expected improvement, best first; at most `TRIES` of them.

    Args:
        candidates: action sequences, [m, T, K].
        process: what is known of the episodes so far, and believed of those that are still open.
    """
    gains = process.improvement(candidates.reshape(len(candidates), -1))
    return iter(candidates[np.argsort(-gains, kind="stable")[:TRIES]])

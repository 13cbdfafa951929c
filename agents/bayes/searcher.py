"""Bayesian optimisation behind the searchers' protocol: `bayes`, and the base of `cbo`."""

from collections import deque
from collections.abc import Callable, Sequence
from itertools import chain
from typing import Protocol

import numpy as np

from agents.bayes.surrogate import Surrogate, maximise
from agents.bayes.trust_region import TrustRegion
from agents.box import Point
from agents.config import AgentConfig
from agents.searcher import State
from agents.threads import one_thread
from amc.evaluate import Evaluation
from amc.policy import CompressionPolicy

CANDIDATES = 512
"""Points at which the acquisition is evaluated before the best of them are climbed from."""

CHANGED = 20
"""Variables, on average, in which a candidate differs from the best point (TuRBO's perturbation)."""

TRIES = 16
"""Candidates, from the best on, among which one is looked for that has not been proposed yet."""


class Box(Protocol):
    """What is searched: vectors in [-1, 1] that stand for policies."""

    size: int
    uniform: Point
    openings: list[Point]

    def play(self, vector: np.ndarray) -> Point:
        """The policy of a vector, and the vector that was executed."""

    def draw(self, rng: np.random.Generator, sigma: float) -> Point:
        """Draw around the reference policy."""


Outcomes = Callable[[Evaluation, float], list[float]]
"""An evaluation and its reward to what is maximised, then what must not exceed 0."""


class BayesSearcher:
    """Gaussian processes in a trust region around the best point.

    The first proposals are the reference policy, the walk's openings and draws around the former. Each
    further one maximises the (constrained) log expected improvement of processes that are fitted to all
    evaluations; proposals that are still open count as evaluated, with what is expected of them. What is
    learned from is the executed vector. A policy is proposed again only if no other candidate is left.

    Args:
        box: what is searched.
        outcomes: what is learned from an evaluation.
        config: seed, first draws and their sigma.
        budget_evaluations: evaluations that the whole search may spend.
    """

    def __init__(self, box: Box, outcomes: Outcomes, config: AgentConfig, budget_evaluations: int):
        self._box, self._judge = box, outcomes
        self._exploration = config.exploration(budget_evaluations)
        self._rng = np.random.default_rng(config.seed)
        self._region = TrustRegion(box.size)
        self._open: deque[np.ndarray] = deque()
        self._vectors: list[np.ndarray] = []
        self._outcomes: list[list[float]] = []
        self._fitted: np.ndarray | None = None

    def ask(self, n: int) -> list[CompressionPolicy]:
        """Propose `n` policies; the very first is the reference policy."""
        with one_thread():
            points, surrogate = [], None
            for _ in range(n):
                if self._warming_up():
                    point = self._first_draw()
                else:
                    surrogate = surrogate or self._surrogate()
                    point = self._candidate(surrogate)
                    surrogate.believe(point.vector)
                self._open.append(point.vector)
                points.append(point)
        return [point.policy for point in points]

    def _warming_up(self) -> bool:
        """Whether to draw; a process needs two points at least."""
        asked = len(self._vectors) + len(self._open)
        return asked < self._exploration.warmup or len(self._vectors) < 2

    def _first_draw(self) -> Point:
        first = [self._box.uniform, *self._box.openings]
        asked = len(self._vectors) + len(self._open)
        return (
            first[asked] if asked < len(first) else self._box.draw(self._rng, self._exploration.sigma_start)
        )

    def _surrogate(self) -> Surrogate:
        surrogate = Surrogate(np.array(self._vectors), np.array(self._outcomes), self._fitted)
        self._fitted = surrogate.parameters
        for vector in self._open:
            surrogate.believe(vector)
        return surrogate

    def _candidate(self, surrogate: Surrogate) -> Point:
        centre = self._vectors[leader(np.array(self._outcomes))]
        low, high = self._region.box(centre, surrogate.scales)
        starts = self._starts(centre, low, high)
        return self._first_new(maximise(surrogate.acquisition(), starts, low, high))

    def _starts(self, centre: np.ndarray, low: np.ndarray, high: np.ndarray) -> np.ndarray:
        """Points in the region that differ from its centre in some variables [CANDIDATES, d]."""
        shape = (CANDIDATES, len(centre))
        changed = self._rng.random(shape) < CHANGED / len(centre)
        changed[np.arange(CANDIDATES), self._rng.integers(len(centre), size=CANDIDATES)] = True
        return np.where(changed, self._rng.uniform(low, high, shape), centre)

    def _first_new(self, ordered: np.ndarray) -> Point:
        """The first candidate whose policy has not been proposed yet; the very first if all have been."""
        known = {vector.tobytes() for vector in (*self._vectors, *self._open)}
        first = self._box.play(ordered[0])
        points = chain([first], map(self._box.play, ordered[1:TRIES]))
        return next((point for point in points if point.vector.tobytes() not in known), first)

    def tell(self, evaluations: Sequence[Evaluation], rewards: Sequence[float]) -> None:
        """Take over the outcomes of the oldest open proposals."""
        for evaluation, reward in zip(evaluations, rewards, strict=True):
            self._vectors.append(self._open.popleft())
            self._outcomes.append(self._judge(evaluation, reward))
            if len(self._outcomes) > self._exploration.warmup:
                self._region.hear(leader(np.array(self._outcomes)) == len(self._outcomes) - 1)

    def metrics(self, index: int) -> dict[str, float]:
        """Length of the trust region."""
        return {"trust_region": self._region.length}

    def state_dict(self) -> State:
        """Everything evaluated, the generator, the trust region and the last fit.

        Raises:
            RuntimeError: a proposal has not been told yet.
        """
        if self._open:
            raise RuntimeError("a searcher can be saved only when every proposal has been told")
        return {
            "vectors": np.array(self._vectors),
            "outcomes": np.array(self._outcomes),
            "rng": self._rng.bit_generator.state,
            "region": self._region.state_dict(),
            "fitted": self._fitted,
        }

    def load_state_dict(self, state: State) -> None:
        """Continue where `state_dict` was taken.

        Raises:
            ValueError: the state is of a search of another size.
        """
        vectors = np.array(state["vectors"])
        if vectors.shape[1:] != (self._box.size,):
            raise ValueError(f"its proposals have shape {vectors.shape[1:]}, not ({self._box.size},)")
        self._vectors, self._outcomes = list(vectors), np.array(state["outcomes"]).tolist()
        self._rng.bit_generator.state = state["rng"]
        self._region.load_state_dict(state["region"])
        self._fitted = None if state["fitted"] is None else np.array(state["fitted"])
        self._open.clear()


def leader(outcomes: np.ndarray) -> int:
    """The best feasible row of [n, 1 + c], the earliest of equals; the nearest to feasible if none is."""
    missed = np.maximum(outcomes[:, 1:], 0.0).sum(axis=1)
    values = outcomes[:, 0] if missed.min() == 0.0 else -missed
    return int(np.where(missed == missed.min(), values, -np.inf).argmax())

"""Evolution: CMA-ES with a diagonal covariance over all actions of an episode."""

from collections.abc import Sequence

import numpy as np
from cmaes import SepCMA

from agents.box import ActionBox
from agents.config import AgentConfig
from agents.episode import WalkLike
from agents.searcher import State, register_searcher
from amc.evaluate import Evaluation
from amc.policy import CompressionPolicy


@register_searcher("evolution")
class EvolutionSearcher:
    """Separable CMA-ES (Ros and Hansen, PPSN 2008) from the reference policy with the agent's first sigma.

    A full covariance of 16 to 60 variables cannot be learned from 100 to 200 evaluations; a diagonal one
    learns (d + 2) / 3 times faster. Populations have 4 + 3 ln d members, the usual smallest size. The
    uniform policy, the mean of the first population, is its first member.

    Proposals may be open beyond the end of a population: they are drawn from the distribution as it is then,
    and counted to the next population.
    """

    def __init__(self, walk: WalkLike, config: AgentConfig, budget_evaluations: int):
        self._box, self._config = ActionBox(walk), config
        self._clear()

    def _clear(self) -> None:
        # The library wants two variables at least; one that is ignored does no harm.
        size = max(2, self._box.size)
        self._strategy = SepCMA(
            mean=np.zeros(size),
            sigma=self._config.sigma_start,
            bounds=np.tile([-1.0, 1.0], (size, 1)),
            seed=self._config.seed,
        )
        self._vectors: list[np.ndarray] = []
        self._generations: list[int] = []
        self._rewards: list[float] = []

    def ask(self, n: int) -> list[CompressionPolicy]:
        """Draw `n` policies; the very first is the reference policy."""
        return [self._box.play(self._draw()[: self._box.size]).policy for _ in range(n)]

    def _draw(self) -> np.ndarray:
        vector = self._strategy.ask() if self._vectors else self._strategy.mean.copy()
        self._vectors.append(vector)
        self._generations.append(self._strategy.generation)
        return vector

    def tell(self, evaluations: Sequence[Evaluation], rewards: Sequence[float]) -> None:
        """Move the distribution each time a population is complete."""
        self._rewards += [float(reward) for reward in rewards]
        while len(self._rewards) >= (self._strategy.generation + 1) * self._strategy.population_size:
            self._advance()

    def _advance(self) -> None:
        count = self._strategy.population_size
        members = slice(self._strategy.generation * count, (self._strategy.generation + 1) * count)
        pairs = zip(self._vectors[members], self._rewards[members], strict=True)
        self._strategy.tell([(vector, -reward) for vector, reward in pairs])

    def metrics(self, index: int) -> dict[str, float]:
        """The population that the evaluation belongs to."""
        return {"generation": float(index // self._strategy.population_size)}

    def state_dict(self) -> State:
        """The rewards, and from which population's distribution each proposal was drawn.

        Raises:
            RuntimeError: a proposal has not been told yet.
        """
        if len(self._rewards) < len(self._vectors):
            raise RuntimeError("a searcher can be saved only when every proposal has been told")
        return {
            "rewards": np.array(self._rewards, dtype=np.float64),
            "generations": np.array(self._generations, dtype=np.int64),
        }

    def load_state_dict(self, state: State) -> None:
        """Repeat all draws and updates, which takes milliseconds: the library can only be saved by pickle."""
        self._clear()
        self._rewards = [float(reward) for reward in state["rewards"]]
        for generation in state["generations"]:
            while self._strategy.generation < generation:
                self._advance()
            self._draw()
        self.tell([], [])

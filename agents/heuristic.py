"""AMC's hand-made policies "shallow" and "deep" (He et al., ECCV 2018, section 4.1), as short searches."""

from collections.abc import Sequence

import numpy as np

from agents.config import AgentConfig
from agents.episode import WalkLike, play
from agents.searcher import Searcher, State, register_searcher
from amc.evaluate import Evaluation
from amc.policy import CompressionPolicy

SLOPES = tuple(step / 8 for step in range(9))
"""From the uniform policy (slope 0) to the steepest ramp, which begins at an end of what is feasible."""


class RampSearcher:
    """Proposes actions that change linearly with depth, one policy for each slope of `SLOPES`.

    The paper does not say how much more the favoured layers were pruned. A search therefore tries eight
    slopes after the uniform policy, so that each heuristic is represented by its best member, and ends.
    With slope s the action goes from -s at the pruned end of the network to s at the other; all
    knobs of a decision share it.

    Args:
        walk: the decisions to make.
        direction: 1 to prune shallow layers more, -1 to prune deep ones more.
    """

    def __init__(self, walk: WalkLike, direction: float):
        self._walk, self._direction = walk, direction
        self._asked = 0

    def ask(self, n: int) -> list[CompressionPolicy]:
        """The next `n` slopes, as far as there are any left."""
        slopes = SLOPES[self._asked : self._asked + max(n, 0)]
        self._asked += len(slopes)
        return [self._ramp(slope) for slope in slopes]

    def _ramp(self, slope: float) -> CompressionPolicy:
        depth = np.linspace(-1.0, 1.0, self._walk.length) if self._walk.length > 1 else np.zeros(1)
        levels = iter(self._direction * slope * depth)
        size = self._walk.action_size
        return play(self._walk, lambda observation: np.full(size, next(levels), dtype=np.float32)).policy

    def tell(self, evaluations: Sequence[Evaluation], rewards: Sequence[float]) -> None:
        """There is nothing to learn."""

    def metrics(self, index: int) -> dict[str, float]:
        """The slope."""
        return {"slope": SLOPES[index]}

    def state_dict(self) -> State:
        """How many slopes have been proposed."""
        return {"asked": self._asked}

    def load_state_dict(self, state: State) -> None:
        """Continue where `state_dict` was taken."""
        self._asked = int(state["asked"])


@register_searcher("shallow", reference="uniform")
def _shallow(walk: WalkLike, config: AgentConfig, budget_evaluations: int) -> Searcher:
    return RampSearcher(walk, direction=1.0)


@register_searcher("deep", reference="uniform")
def _deep(walk: WalkLike, config: AgentConfig, budget_evaluations: int) -> Searcher:
    return RampSearcher(walk, direction=-1.0)

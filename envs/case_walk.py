"""`CaseWalk`: one decision process that plays several cases, such as the levels of a range of budgets."""

from collections.abc import Mapping

import numpy as np

from amc.errors import UserError
from amc.policy import CompressionPolicy
from envs.observation import Layout
from envs.walk import Walk


class CaseWalk:
    """Plays the walk of one case at a time; all have the same observation and the same action.

    Episode by episode the cases are balanced: first each of them once, in order, then rounds in which each
    comes once, shuffled. Which case an episode plays depends on its number and the seed alone, so that a
    resumed search plays the same.

    Args:
        walks: a walk for each case, by its name; their layouts are widened to one that fits all.
        seed: of the shuffled rounds.

    Attributes:
        case: the one that is played now.
        length: decisions of its episodes.
        longest: decisions of the longest episode of all cases.

    Raises:
        UserError: the cases decide about different knobs.
    """

    def __init__(self, walks: Mapping[str, Walk], seed: int):
        self.walks, self._seed = dict(walks), seed
        self.names = tuple(self.walks)
        self._networks = {name: walk.space.network.fingerprint for name, walk in self.walks.items()}
        layouts = [walk.layout for walk in self.walks.values()]
        knobs = {walk.knob_names for walk in self.walks.values()}
        if len(knobs) != 1:
            raise UserError("What is trained together needs the same knobs everywhere.")
        layout = Layout(
            max(each.steps for each in layouts),
            len(knobs.pop()),
            max(each.budgets for each in layouts),
            layouts[0].kind,
        )
        for walk in self.walks.values():
            walk.layout = layout
        self.longest = max(walk.length for walk in self.walks.values())
        self.choose(self.names[0])

    def case_of(self, episode: int) -> str:
        """The case that an episode (from 0) plays."""
        block, place = divmod(episode, len(self.names))
        if block == 0:
            return self.names[place]
        return self.names[np.random.default_rng((self._seed, block)).permutation(len(self.names))[place]]

    def choose(self, case: str) -> None:
        """Play another case from the next `reset` on."""
        self.case, self._walk = case, self.walks[case]
        self.length, self.action_size = self._walk.length, self._walk.action_size

    def same_network(self, case: str) -> bool:
        """Whether a case is about the network that is played now, so that its episodes can be compared."""
        return self._networks[case] == self._networks[self.case]

    def fractions(self, case: str) -> np.ndarray:
        """The budgets of a case as shares of the original's cost, [budgets]."""
        return np.array([budget.fraction for budget in self.walks[case].budgets])

    @property
    def observation_size(self) -> int:
        """Entries of an observation."""
        return self._walk.observation_size

    @property
    def categorical(self) -> np.ndarray:
        """Which entries of an action stand for values without an order, bool [K]."""
        return self._walk.categorical

    @property
    def openings(self) -> list[np.ndarray]:
        """None: the first episodes play every case once, and what one teaches the others learn, too."""
        return []

    @property
    def alive(self) -> slice:
        """Entries of an observation that say which entries of the action mean something now."""
        return self._walk.alive

    def reset(self) -> np.ndarray:
        """Start an episode of the chosen case; the first observation [observation_size]."""
        return self._walk.reset()

    def step(self, action: np.ndarray) -> tuple[np.ndarray, np.ndarray, bool]:
        """Decide the current point; see `Walk.step`."""
        return self._walk.step(action)

    def policy(self) -> CompressionPolicy:
        """The policy of the finished episode."""
        return self._walk.policy()

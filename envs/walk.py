"""`Walk`: the decision process of one episode in closed form, without any evaluation.

The environment steps it for stable-baselines3; searchers step it directly and score many finished policies
together.
"""

from collections.abc import Callable, Collection, Sequence
from functools import cached_property

import numpy as np

from amc.costs.budget import Budget
from amc.costs.symbolic import Cost
from amc.policy import CompressionPolicy
from amc.reference import complete_uniformly, replaced_everywhere
from amc.space import Partial, Space
from envs.bounding import UNORDERED, Range, feasible_range
from envs.observation import Kind, Layout, decided_fractions, layer_features
from envs.summary import Summary


class Walk:
    """Decides a policy point by point, so that every budget holds whatever the actions are.

    Args:
        space: the legal policies of the network.
        budgets: what every policy keeps; may be empty where a cost is minimised instead.
        live: names of the knobs that an active cost depends on; the others are dead at their most
            accurate value.
        progress: the cost behind the "reduced" and "rest" features.
        unbounded_keep: keep ratio of the reference policy where no budget depends on the widths.
        layout: sizes of the observation; by default those of this network.
        observation: whether it tells every decision, or a summary that fits any network.

    Attributes:
        length: decisions of an episode; points without any live knob are not visited.
        columns: the knobs that are alive somewhere, as columns of a policy's table.
        action_size: entries of an action, one for each of them.
        layout: sizes of the observation; may be replaced by that of a longer walk.
    """

    def __init__(
        self,
        space: Space,
        budgets: Sequence[Budget],
        live: Collection[str],
        progress: Cost,
        unbounded_keep: float = 0.9,
        layout: Layout | None = None,
        observation: Kind = "positions",
    ):
        self.space, self.budgets, self.progress = space, tuple(budgets), progress
        self.unbounded_keep = unbounded_keep
        self._start = _with_dead_knobs(space, live)
        open_entries = ~self._start.decided & (space.decider == np.arange(len(space.points))[:, None])
        self.rows = [int(row) for row in np.flatnonzero(open_entries.any(axis=1))]
        self.length = len(self.rows)
        # Knobs that are alive nowhere take no part in the action: the critic would have to learn from
        # few episodes that they mean nothing, and an actor drifts along them meanwhile.
        self.columns = [int(column) for column in np.flatnonzero(open_entries.any(axis=0))]
        self.action_size = len(self.columns)
        self.layout = layout or Layout(self.length, self.action_size, max(1, len(self.budgets)), observation)
        self._features = layer_features(space.network.layers)
        self._whole = max(progress.of(space.largest), 1e-12)
        self.reset()

    @property
    def knob_names(self) -> tuple[str, ...]:
        """Names of the action's entries."""
        return tuple(self.space.knobs[column].name for column in self.columns)

    @property
    def observation_size(self) -> int:
        """Entries of an observation."""
        return self.layout.size

    @property
    def alive(self) -> slice:
        """Entries of an observation that say which entries of the action mean something now."""
        return self.layout.slice("alive")

    @property
    def categorical(self) -> np.ndarray:
        """Which entries of an action stand for values without an order, bool [action_size]."""
        return np.array([name in UNORDERED for name in self.knob_names], dtype=bool)

    def reset(self) -> np.ndarray:
        """Start an episode; the first observation [observation_size]."""
        self.position = 0
        self.partial = self._start
        self._previous = np.zeros(self.action_size, dtype=np.float32)
        self._reference = self._complete()
        return self._observe()

    def step(self, action: np.ndarray) -> tuple[np.ndarray, np.ndarray, bool]:
        """Decide the current point.

        Args:
            action: [action_size] in [-1, 1]; entries of dead knobs are ignored.

        Returns:
            The next observation, the executed action (what the decided values stand for; 0 for dead
            entries), and whether the episode is complete.
        """
        return self._decide(lambda entry, limits: limits.value(float(np.clip(action[entry], -1.0, 1.0))))

    def follow(self, table: np.ndarray) -> np.ndarray:
        """The actions of the episode that comes nearest to a table [points, knobs]; ends the one in progress.

        Returns:
            float32 [length, action_size].
        """
        self.reset()

        def wanted(entry: int, limits: Range) -> int:
            return limits.nearest(int(table[self.rows[self.position], self.columns[entry]]))

        return np.stack([self._decide(wanted)[1] for _ in self.rows])

    @property
    def openings(self) -> list[np.ndarray]:
        """Actions [length, action_size] that are worth a try first: each operator wherever it applies.

        Noise around the reference policy, which replaces nothing, hardly ever draws one operator everywhere.
        """
        if not self.space.chooses:
            return []
        tables = (
            replaced_everywhere(self.space, self._start, self.budgets, operator, self.unbounded_keep)
            for operator in range(1, self.space.levels.shape[1])
        )
        return [self.follow(table) for table in tables]

    def _decide(self, choose: Callable[[int, Range], int]) -> tuple[np.ndarray, np.ndarray, bool]:
        """Decide the current point; `choose` gives the value of an entry of the action within its range."""
        row = self.rows[self.position]
        executed = np.zeros(self.action_size, dtype=np.float32)
        for entry, column in enumerate(self.columns):
            if self._open(row, column):
                limits = self._range(row, column)
                value = choose(entry, limits)
                executed[entry] = limits.action(value)
                self.partial = self.space.decide(self.partial, row, column, value)
                if value != self._reference[row, column]:
                    self._reference = self._complete()
        self.position += 1
        self._previous = executed
        return self._observe(), executed, self.position == self.length

    def policy(self) -> CompressionPolicy:
        """The policy of the finished episode."""
        if not self.partial.decided.all():
            raise RuntimeError("the episode is not finished: step until done")
        return self.space.policy(self.partial.values)

    def reference_policy(self) -> CompressionPolicy:
        """The policy of the action that is zero everywhere; ends the episode in progress."""
        self.reset()
        for _ in range(self.length):
            self.step(np.zeros(self.action_size))
        return self.policy()

    def _complete(self) -> np.ndarray:
        return complete_uniformly(self.space, self.partial, self.budgets, self.unbounded_keep)

    def _open(self, row: int, column: int) -> bool:
        return not self.partial.decided[row, column] and self.space.decider[row, column] == row

    def _range(self, row: int, column: int) -> Range:
        reference = int(self._reference[row, column])
        return feasible_range(self.space, self.partial, self.budgets, row, column, reference)

    def _observe(self) -> np.ndarray:
        finished = self.position == self.length
        alive = np.zeros(self.action_size)
        features = np.zeros(self._features.shape[1])
        if not finished:
            row = self.rows[self.position]
            features = self._features[row]
            alive = np.array([self._open(row, column) for column in self.columns], dtype=np.float64)
        upper = self.progress.upper_bound(self.partial) / self._whole
        lower = self.progress.lower_bound(self.partial) / self._whole
        return self.layout.join(
            layer=features,
            # A predicted latency may exceed that of the largest network.
            progress=np.clip([1.0 - upper, upper - lower], 0.0, 1.0),
            previous=(self._previous + 1.0) / 2.0,
            alive=alive,
            budget=np.array([budget.fraction for budget in self.budgets] or [1.0]),
            **(self._positions() if self.layout.kind == "positions" else self._summed_up()),
        )

    def _positions(self) -> dict[str, np.ndarray]:
        one_hot = np.zeros(self.length)
        one_hot[self.position : self.position + 1] = 1.0
        decided = decided_fractions(self.space, self.partial, self.rows, self.columns)
        return {"one_hot": one_hot, "decided": decided}

    def _summed_up(self) -> dict[str, np.ndarray]:
        return self._summary(self.position, self.partial, self._reference)

    @cached_property
    def _summary(self) -> Summary:
        return Summary(self.space, self.rows, self.columns)


def _with_dead_knobs(space: Space, live: Collection[str]) -> Partial:
    """The start of an episode: knobs that no active cost depends on are decided at their largest value."""
    partial = space.empty()
    dead = np.array([knob.name not in live for knob in space.knobs])
    values = np.where(dead[None, :], space.largest, partial.values)
    return Partial(values, partial.decided | dead[None, :])

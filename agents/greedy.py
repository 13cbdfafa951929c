"""`greedy`: measured sensitivities, and a descent that takes the savings with the least predicted loss."""

import heapq
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from agents.config import AgentConfig
from agents.episode import WalkLike
from agents.searcher import State, register_searcher
from amc.errors import UserError
from amc.evaluate import Evaluation
from amc.policy import CompressionPolicy
from amc.space import Partial
from envs.walk import Walk

BITS, SHARES = ("weight_bits", "activation_bits"), ("code", "width", "density")
PROBED_SHARE = 0.5
"""Where the sensitivity of a width, a density or a code is measured: at their smallest all are fatal."""
RUNGS = 12
"""At most so many values of a knob are stepped on; widths have dozens."""
LEAST_LOSS = 1e-3
"""Losses below are noise of the reward split; all layers with such losses then count the same."""
POWERS = (1.0, 0.5, 0.25, 0.0, 0.75, 1.5, 2.0)
"""Measured losses to these powers, one descent each; 0 looks at savings and rounding errors alone."""


@dataclass(frozen=True)
class Entry:
    """One decision that is free.

    Attributes:
        row, column: of a policy's table.
        values: that are stepped on, in order of cost.
        probe: the one at which its sensitivity is measured.
        growth: predicted loss at each value, as a share of that at the probe; [values].
    """

    row: int
    column: int
    values: tuple[int, ...]
    probe: int
    growth: np.ndarray


@register_searcher("greedy", goals=("accuracy",))
class GreedySearcher:
    """A descent by sensitivity from the costliest policy.

    After the uniform policy it measures the costliest one (8 bits and all channels, say) and that policy with
    one decision lowered, for every decision: 2 bits, or half of the channels. These policies miss the budget
    and are never the best, but count as evaluations. The loss of other values follows from that of the probe:
    for bits as 4^-bits does, as the squared rounding error, and for widths in proportion to what goes. Then
    the decision with the least loss for its saving goes down by one value, again and again, until all budgets
    hold, and what is left of the budgets is given back where it is worth most, at last in single channels.
    Because one layer's loss says little about all layers together, this is repeated with flatter and steeper
    losses (`POWERS`). Residual blocks and operators stay as they were.

    Args:
        walk: the decisions to make; one with budgets.

    Raises:
        UserError: there is no budget to descend to, or too few evaluations for a single descent.
    """

    def __init__(self, walk: WalkLike, config: AgentConfig, budget_evaluations: int):
        if not isinstance(walk, Walk):
            raise TypeError("greedy needs the walk of a network, whose policies it decides without bounds")
        if not walk.budgets:
            raise UserError(
                "The searcher greedy descends to a budget; give it one, such as --budget size=0.1."
            )
        self._walk, self._scores, self._asked = walk, list[float](), 0
        probes = 2 + len(self._entries)
        if budget_evaluations <= probes:
            raise UserError(
                f"The searcher greedy measures {probes} policies before its first descent: give it "
                f"--evaluations {probes + len(POWERS)}, or {probes + 1} at least, not {budget_evaluations}."
            )

    @cached_property
    def _start(self) -> Partial:
        """The costliest policy, with everything decided."""
        space, rest = self._walk.space, self._walk.space.original()
        self._walk.reset()
        for name in (*BITS, *SHARES):
            if name in [knob.name for knob in space.knobs]:
                rest[:, space.column(name)] = space.largest[:, space.column(name)]
        table = self._walk.partial.filled(rest)
        return Partial(table, np.ones_like(self._walk.partial.decided))

    @cached_property
    def _entries(self) -> list[Entry]:
        """The free decisions in the order of the walk."""
        walk, space = self._walk, self._walk.space
        self._walk.reset()
        names = [knob.name for knob in space.knobs]
        return [
            entry_of(row, column, names[column], space.legal(row, column))
            for row in walk.rows
            for column in walk.columns
            if names[column] in (*BITS, *SHARES)
            and not walk.partial.decided[row, column]
            and space.decider[row, column] == row
        ]

    def ask(self, n: int) -> list[CompressionPolicy]:
        """The next proposals; descents wait for all sensitivities."""
        probes = 2 + len(self._entries)
        end = probes if len(self._scores) < probes else probes + len(POWERS)
        proposals = [self._propose(index) for index in range(self._asked, min(self._asked + n, end))]
        self._asked += len(proposals)
        return proposals

    def _propose(self, index: int) -> CompressionPolicy:
        if index == 0:
            return self._walk.reference_policy()
        if index == 1:
            return self._walk.space.policy(self._start.values)
        if index < 2 + len(self._entries):
            entry = self._entries[index - 2]
            return self._walk.space.policy(self._lowered(self._start, entry, entry.probe).values)
        return self._descent(POWERS[index - 2 - len(self._entries)])

    def _lowered(self, partial: Partial, entry: Entry, rung: int) -> Partial:
        return self._walk.space.decide(partial, entry.row, entry.column, entry.values[rung])

    def _descent(self, power: float) -> CompressionPolicy:
        """The policy of a descent; the uniform one where widths and bits alone cannot keep the budgets."""
        scores = np.array(self._scores[1 : 2 + len(self._entries)])
        weights = np.maximum(scores[0] - scores[1:], LEAST_LOSS) ** power
        losses = [weight * entry.growth for weight, entry in zip(weights, self._entries, strict=True)]
        rungs = self._descend(losses)
        if rungs is None:
            return self._walk.reference_policy()
        return self._walk.space.policy(self._top_up(losses, self._fill(losses, rungs)).values)

    def _descend(self, losses: Sequence[np.ndarray]) -> list[int] | None:
        """Rungs of all entries when every budget first holds; None if it never does.

        Savings change little from step to step, so only the best of those that are known is looked at again.
        """
        rungs, current = [len(entry.values) - 1 for entry in self._entries], self._start
        heap = [(0.0, index) for index in range(len(self._entries))]
        while heap and not self._fits(current):
            _, index = heapq.heappop(heap)
            entry, rung = self._entries[index], rungs[index] - 1
            trial = self._lowered(current, entry, rung)
            price = (losses[index][rung] - losses[index][rung + 1]) / max(self._saved(current, trial), 1e-12)
            if heap and price > heap[0][0]:
                heapq.heappush(heap, (price, index))
                continue
            current, rungs[index] = trial, rung
            if rung:
                heapq.heappush(heap, (0.0, index))
        return rungs if self._fits(current) else None

    def _fill(self, losses: Sequence[np.ndarray], rungs: list[int]) -> Partial:
        """Raise what still fits, the largest losses first; what does not fit once never will."""
        current = self._at(rungs)
        heap = [
            _gain(losses, index, rung) for index, rung in enumerate(rungs) if rung + 1 < len(losses[index])
        ]
        heapq.heapify(heap)
        while heap:
            _, index, rung = heapq.heappop(heap)
            trial = self._lowered(current, self._entries[index], rung)
            if self._fits(trial):
                current = trial
                if rung + 1 < len(losses[index]):
                    heapq.heappush(heap, _gain(losses, index, rung))
        return current

    def _top_up(self, losses: Sequence[np.ndarray], current: Partial) -> Partial:
        """Raise decisions by single legal values, the largest losses first: rungs lie channels apart."""
        space = self._walk.space
        rungs = [e.values.index(int(current.values[e.row, e.column])) for e in self._entries]
        gains = [losses[index][rung] - losses[index][-1] for index, rung in enumerate(rungs)]
        for index in np.argsort(gains)[::-1]:
            entry = self._entries[index]
            for value in space.legal(entry.row, entry.column):
                if value > current.values[entry.row, entry.column]:
                    trial = space.decide(current, entry.row, entry.column, value)
                    if not self._fits(trial):
                        break
                    current = trial
        return current

    def _at(self, rungs: Sequence[int]) -> Partial:
        current = self._start
        for entry, rung in zip(self._entries, rungs, strict=True):
            current = self._lowered(current, entry, rung)
        return current

    def _fits(self, partial: Partial) -> bool:
        return all(budget.cost.of(partial.values) <= budget.limit for budget in self._walk.budgets)

    def _saved(self, before: Partial, after: Partial) -> float:
        """What a step saves of the budgets that do not hold yet, each as a share of its limit."""
        costs = [(b.cost.of(before.values), b.cost.of(after.values), b.limit) for b in self._walk.budgets]
        return sum((was - now) / limit for was, now, limit in costs if was > limit)

    def tell(self, evaluations: Sequence[Evaluation], rewards: Sequence[float]) -> None:
        """Remember the scores."""
        self._scores += [evaluation.score for evaluation in evaluations]

    def metrics(self, index: int) -> dict[str, float]:
        """The power of a descent."""
        first = 2 + len(self._entries)
        return {"power": POWERS[index - first]} if index >= first else {}

    def state_dict(self) -> State:
        """The scores so far."""
        return {"scores": np.array(self._scores, dtype=np.float64)}

    def load_state_dict(self, state: State) -> None:
        """Continue where `state_dict` was taken."""
        self._scores = [float(score) for score in state["scores"]]
        self._asked = len(self._scores)


def _gain(losses: Sequence[np.ndarray], index: int, rung: int) -> tuple[float, int, int]:
    """What raising an entry from a rung to the next one avoids, as a heap wants it: the most is the least."""
    return float(losses[index][rung + 1] - losses[index][rung]), index, rung + 1


def entry_of(row: int, column: int, knob: str, legal: Sequence[int]) -> Entry:
    """A free decision.

    Args:
        row, column: of a policy's table.
        knob: its name.
        legal: values in order of cost.
    """
    chosen = np.unique(np.linspace(0, len(legal) - 1, min(len(legal), RUNGS)).round().astype(int))
    values = np.array([legal[index] for index in chosen])
    error = 4.0 ** -values.astype(float) if knob in BITS else (values[-1] - values) / values[-1]
    probe = 0 if knob in BITS else int(np.abs(values - PROBED_SHARE * values[-1]).argmin())
    error = error - error[-1]
    return Entry(row, column, tuple(int(v) for v in values), probe, error / max(error[probe], 1e-300))

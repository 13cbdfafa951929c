"""The space of policies of one network: its decision points, their knobs and the legal values.

A complete choice is an integer table [points, knobs]; a policy in the making is a `Partial`. Both are plain
arrays, because the environment looks ahead hundreds of times in an episode.
"""

from bisect import bisect_right
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Protocol, cast

import numpy as np

from amc.errors import UserError
from amc.groups import Group
from amc.network import Layer, Network
from amc.policy import REMOVED, CompressionPolicy, LayerDecision
from amc.policy_check import check_policy
from amc.quantization.uniform import NOT_QUANTIZED

LEFT_OUT, KEPT = 0, 1
"""Values of the knob "block", which says whether a residual block stays."""


@dataclass(frozen=True)
class DecisionPoint:
    """One stop of the walk; usually a layer.

    Attributes:
        name: unique in the network; a layer's path.
        layer: the layer, if it is one.
        group: the group of the layer's output channels, if it has one.
    """

    name: str
    layer: Layer | None = None
    group: Group | None = None


@dataclass(frozen=True, eq=False)
class Partial:
    """Decisions so far.

    Attributes:
        values: int64 [points, knobs]; meaningless where not decided.
        decided: bool [points, knobs].
    """

    values: np.ndarray
    decided: np.ndarray

    def filled(self, rest: np.ndarray) -> np.ndarray:
        """A complete table: the decisions, and `rest` [points, knobs] where there are none."""
        return np.where(self.decided, self.values, rest)


class Knob(Protocol):
    """One number that is chosen at every decision point where it means something."""

    name: str

    def values(self, point: DecisionPoint, partial: Partial | None) -> tuple[int, ...]:
        """Legal values in order of cost; one value means the knob is dead, none that it does not apply.

        Without a partial: the values that are legal for some decisions before it.
        """

    def decided_at(self, point: DecisionPoint) -> str:
        """Name of the point whose decision this point inherits; its own name where it decides itself."""

    def thresholds(self, point: DecisionPoint) -> tuple[float, ...]:
        """For each legal value the common fraction, 0 to 1, from which the reference policy takes it."""

    @property
    def implied_by(self) -> tuple[str, Mapping[int, int]] | None:
        """Another knob whose value decides this one's at the same point, and how; None if it is free."""

    @property
    def reference_is_fixed(self) -> bool:
        """Whether the reference policy's value is no matter of the budget."""


class OperatorChoice(Knob, Protocol):
    """The knob "operator", whose value says what the knob "amount" means; see `amc.decomposition.knobs`.

    Value 0 is the layer itself.

    Attributes:
        names: of the operators, from value 1.
    """

    names: tuple[str, ...]

    def levels(self, point: str) -> np.ndarray:
        """How many amounts each value has at a point; int64 [values]."""

    def decision(self, point: str, value: int, level: int) -> tuple[str, int]:
        """Name of the operator and amount behind the entries of a table."""

    def entries(self, point: str, operator: str, amount: int) -> tuple[int, int]:
        """The entries of a table for an operator and its amount; UserError where they take no part."""

    def quantizes(self, value: int) -> bool:
        """Whether a layer with this value has weight bits of its own."""


class Space:
    """All legal policies of a network.

    Attributes:
        points: decision points in execution order.
        knobs: the knobs of the run; a table's columns.
        smallest, largest: int64 [points, knobs] tables, the cheapest and the costliest legal policy.
        decider: int64 [points, knobs], the row that decides each entry; -1 where another knob implies it.
        choice: the knob that chooses operators, None without one.
        levels: int64 [points, operators + 1], how many amounts each operator has where.
    """

    def __init__(self, network: Network, knobs: Sequence[Knob]):
        self.network = network
        self.knobs = tuple(knobs)
        group_of = network.group_of
        self.points = tuple(DecisionPoint(v.name, v, group_of.get(v.name)) for v in network.layers)
        self._row = {point.name: row for row, point in enumerate(self.points)}
        self._column = {knob.name: column for column, knob in enumerate(self.knobs)}
        ranges = [[knob.values(point, None) for knob in self.knobs] for point in self.points]
        self._values = [_padded([row[column] for row in ranges]) for column in range(len(self.knobs))]
        starts = [[knob.thresholds(point) for point in self.points] for knob in self.knobs]
        self._starts = [_padded(column, np.inf) for column in starts]
        self._edges = [sorted({start for row in column for start in row}) for column in starts]
        self._at = lru_cache(4096)(self._column_at)  # bisections meet the same steps again and again
        self.smallest = np.array([[values[0] for values in row] for row in ranges], dtype=np.int64)
        self.largest = np.array([[values[-1] for values in row] for row in ranges], dtype=np.int64)
        implied = [(knob.implied_by, column) for column, knob in enumerate(self.knobs)]
        self._implied = [(self._column[by[0]], column, by[1]) for by, column in implied if by]
        self.decider = np.array(
            [[self._row[knob.decided_at(point)] for knob in self.knobs] for point in self.points]
        )
        self._same_values = self.decider.copy()
        for _, column, _ in self._implied:
            self.decider[:, column] = -1
            self._same_values[:, column] = np.arange(len(self.points))
        self._block_column = self._column.get("block")
        self._block_rows = np.array([self._row[b.name] for b in network.blocks], dtype=int)
        self._closed = {self._row[b.name]: self._closed_without(b.layers) for b in network.blocks}
        self.choice = cast(OperatorChoice, self.knobs[self.column("operator")]) if self.chooses else None
        rows = [self.choice.levels(point.name) for point in self.points] if self.choice else []
        self.levels = np.array(rows, dtype=np.int64)
        names = range(1 + len(self.choice.names)) if self.choice else ()
        self._without_bits = np.array([not self.choice.quantizes(value) for value in names if self.choice])

    def __reduce__(self) -> tuple[type["Space"], tuple[Network, tuple[Knob, ...]]]:
        """Another process builds its own tables: what is remembered here cannot be sent."""
        return Space, (self.network, self.knobs)

    @property
    def chooses(self) -> bool:
        """Whether operators may replace layers."""
        return "operator" in self._column

    @property
    def could_drop_blocks(self) -> bool:
        """Whether the network has residual blocks that may go, and these policies keep them all."""
        return bool(self.network.blocks) and self._block_column is None

    def column(self, knob: str) -> int:
        """Column of a knob in every table."""
        return self._column[knob]

    def row(self, point: str) -> int:
        """Row of a decision point in every table."""
        return self._row[point]

    def empty(self) -> Partial:
        """Nothing decided but the entries that have a single legal value."""
        return Partial(self.smallest.copy(), self.smallest == self.largest)

    def legal(self, row: int, column: int, partial: Partial | None = None) -> tuple[int, ...]:
        """Legal values of one entry in order of cost."""
        if partial is not None and column == self._column.get("amount"):
            operator = self.column("operator")
            if partial.decided[row, operator]:
                return tuple(range(self.levels[row, partial.values[row, operator]]))
        return self.knobs[column].values(self.points[row], partial)

    def decide(self, partial: Partial, row: int, column: int, value: int) -> Partial:
        """A new partial with one entry decided, and every entry that inherits it."""
        tied = self.decider[:, column] == row
        values, decided = partial.values.copy(), partial.decided.copy()
        values[tied, column] = value
        decided[tied, column] = True
        for source, implied, meaning in self._implied:
            if source == column:
                values[tied, implied] = meaning[value]
                decided[tied, implied] = True
        if self.choice is not None:
            self._close_behind(row, column, values, decided)
        if column == self._block_column and value == LEFT_OUT:
            # One way to write what means nothing any more: equal networks, equal tables.
            closed = self._closed[row] & ~decided
            values, decided = np.where(closed, self.smallest, values), decided | closed
        return Partial(values, decided)

    def _close_behind(self, row: int, column: int, values: np.ndarray, decided: np.ndarray) -> None:
        """Decide what operators leave no choice of: a single amount, and bits that mean nothing."""
        operator, amount, bits = (self.column(name) for name in ("operator", "amount", "weight_bits"))
        if column == operator and self.levels[row, values[row, operator]] == 1:
            values[row, amount] = 0
            decided[row, amount] = True
        # Whichever comes first: bits may follow from those of the input, which an earlier layer decides.
        dead = decided[:, operator] & self._without_bits[values[:, operator]]
        values[dead, bits] = NOT_QUANTIZED
        decided[dead, bits] = True

    def completed(self, partial: Partial, rest: np.ndarray) -> np.ndarray:
        """The decisions, and `rest` [points, knobs] where there are none; an open amount keeps its share.

        The amounts of `rest` are ranks among those of the operator that has the most.
        """
        table = partial.filled(rest)
        if self.choice is not None:
            column, rows = self.column("amount"), np.arange(len(self.points))
            own = self.levels[rows, table[:, self.column("operator")]]
            ranks = table[:, column] * own // self.levels.max(axis=1)
            table[:, column] = np.where(partial.decided[:, column], table[:, column], ranks)
        return table

    def gone_blocks(self, table: np.ndarray) -> np.ndarray | None:
        """Which residual blocks a complete table leaves out, bool [blocks]; None if none ever is."""
        if self._block_column is None:
            return None
        return table[self._block_rows, self._block_column] == LEFT_OUT

    def left_out(self, table: np.ndarray) -> list[str]:
        """Names of the residual blocks that a complete table leaves out."""
        gone = self.gone_blocks(table)
        return [] if gone is None else [self.network.blocks[index].name for index in np.flatnonzero(gone)]

    def _closed_without(self, layers: Sequence[str]) -> np.ndarray:
        """The entries that concern nothing but these layers; bool [points, knobs]."""
        inside = np.array([point.name in layers for point in self.points])
        tied = self._same_values[:, None, :] == self._same_values[None, :, :]  # [points, points, knobs]
        shared = (tied & ~inside[None, :, None]).any(axis=1)
        return inside[:, None] & ~shared

    def at_fraction(self, fractions: Sequence[float]) -> np.ndarray:
        """The table with each knob at one common fraction of its range; `fractions` has one a knob."""
        return self.at_steps(self.steps(fractions))

    def steps(self, fractions: Sequence[float]) -> tuple[int, ...]:
        """What the common fractions, one a knob, come to: those with equal steps have equal tables."""
        return tuple(bisect_right(edges, f) for edges, f in zip(self._edges, fractions, strict=True))

    def starts(self, row: int, column: int) -> list[float]:
        """The common fraction from which each legal value of an entry is taken, ascending."""
        return [float(start) for start in self._starts[column][row] if start < np.inf]

    def with_knob(self, knob: Knob) -> "Space":
        """The same space with one knob in the place of its namesake."""
        return Space(self.network, [knob if old.name == knob.name else old for old in self.knobs])

    def at_steps(self, steps: Sequence[int]) -> np.ndarray:
        """The table of the fractions that `steps` has made these of; int64 [points, knobs]."""
        table = np.empty_like(self.smallest)
        for column, step in enumerate(steps):
            table[:, column] = self._at(column, step)
        return table

    def _column_at(self, column: int, step: int) -> np.ndarray:
        """One column of `at_steps`, int64 [points]."""
        fraction = self._edges[column][step - 1] if step else -np.inf
        taken = (self._starts[column] <= fraction).sum(axis=1) - 1
        own = self._values[column][np.arange(len(self.points)), np.maximum(taken, 0)]
        return own[self._same_values[:, column]].astype(np.int64)

    def original(self) -> np.ndarray:
        """The table of the uncompressed network: all channels and weights, nothing quantized."""
        table = np.full_like(self.largest, NOT_QUANTIZED)
        if self._block_column is not None:
            table[:, self._block_column] = KEPT
        for name in ("code", "width", "density"):
            if name in self._column:
                table[:, self.column(name)] = self.largest[:, self.column(name)]
        for name in ("operator", "amount"):
            if name in self._column:
                table[:, self.column(name)] = 0
        return table

    def policy(self, values: np.ndarray) -> CompressionPolicy:
        """The policy of a complete table."""
        names = self.left_out(values)
        gone = {layer for b in self.network.blocks if b.name in names for layer in b.layers}
        decisions = (
            LayerDecision(point.name, operator=REMOVED)
            if point.name in gone
            else self._decision(point.name, row)
            for point, row in zip(self.points, values, strict=True)
        )
        return CompressionPolicy(self.network.fingerprint, tuple(decisions))

    def _decision(self, point: str, row: np.ndarray) -> LayerDecision:
        values = {knob.name: int(value) for knob, value in zip(self.knobs, row, strict=True)}
        values.pop("block", None)
        if not values.get("code", 1):  # only one point has a code
            del values["code"]
        operator, amount = values.pop("operator", 0), values.pop("amount", 0)
        if self.choice is None or operator == 0:
            return LayerDecision(point, values)
        name, executed = self.choice.decision(point, operator, amount)
        return LayerDecision(point, {"amount": executed, **values}, name)

    def table(self, policy: CompressionPolicy) -> np.ndarray:
        """The table of a policy; where it does not mention a knob, nothing is compressed.

        Raises:
            UserError: the policy belongs to another network.
        """
        check_policy(policy, self.network)
        table = self.original()
        for row, point in enumerate(self.points):
            decision = policy[point.name]
            for column, knob in enumerate(self.knobs):
                table[row, column] = decision.values.get(knob.name, table[row, column])
            if decision.replaced:
                table[row, self._columns_of_choice] = self._entries(decision)
        return self._without(table, policy.removed)

    @property
    def _columns_of_choice(self) -> list[int]:
        return [self.column("operator"), self.column("amount")]

    def _entries(self, decision: LayerDecision) -> tuple[int, int]:
        """Raises UserError where the operator takes no part in this space."""
        if self.choice is None or decision.operator not in self.choice.names:
            raise UserError(
                f"The policy replaces {decision.point} by {decision.operator}, which needs "
                f"--operators {decision.operator}."
            )
        return self.choice.entries(decision.point, decision.operator, decision.values["amount"])

    def _without(self, table: np.ndarray, removed: Collection[str]) -> np.ndarray:
        """The table of a policy that leaves layers out, which says nothing else about them."""
        for block in self.network.blocks if removed else ():
            if block.name not in removed:
                continue
            if self._block_column is None:
                raise UserError(f"The policy leaves out {block.name}, which needs --drop-blocks.")
            table = np.where(self._closed[self._row[block.name]], self.smallest, table)
        gone = np.array([point.name in removed for point in self.points])
        for column, deciders in enumerate(self._same_values.T):
            elsewhere = gone & ~gone[deciders]
            table[elsewhere, column] = table[deciders[elsewhere], column]
        return table


def _padded(rows: Sequence[Sequence[float]], fill: float = 0) -> np.ndarray:
    """Rows of unequal length as one array."""
    width = max(len(row) for row in rows)
    return np.array([[*row, *([fill] * (width - len(row)))] for row in rows])

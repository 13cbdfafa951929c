"""The space of policies of one network: its decision points, their knobs and the legal values.

A complete choice is an integer table [points, knobs]; a policy in the making is a `Partial`. Both are plain
arrays, because the environment looks ahead hundreds of times in an episode.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Protocol

import numpy as np

from amc.errors import UserError
from amc.groups import Group
from amc.network import Layer, Network
from amc.policy import ORIGINAL_OPERATOR, CompressionPolicy, LayerDecision
from amc.quantization.uniform import NOT_QUANTIZED


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


class Space:
    """All legal policies of a network.

    Attributes:
        points: decision points in execution order.
        knobs: the knobs of the run; a table's columns.
        smallest, largest: int64 [points, knobs] tables, the cheapest and the costliest legal policy.
        decider: int64 [points, knobs], the row that decides each entry; -1 where another knob implies it.
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
        self._at = lru_cache(4096)(self._column_at)  # bisections meet the same fractions again and again
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
        return Partial(values, decided)

    def at_fraction(self, fractions: Sequence[float]) -> np.ndarray:
        """The table with each knob at one common fraction of its range; `fractions` has one a knob."""
        return np.stack([self._at(*entry) for entry in enumerate(fractions)], axis=1)

    def _column_at(self, column: int, fraction: float) -> np.ndarray:
        """One column of `at_fraction`, int64 [points]."""
        taken = (self._starts[column] <= fraction).sum(axis=1) - 1
        own = self._values[column][np.arange(len(self.points)), np.maximum(taken, 0)]
        return own[self._same_values[:, column]].astype(np.int64)

    def original(self) -> np.ndarray:
        """The table of the uncompressed network: all channels, nothing quantized."""
        table = np.full_like(self.largest, NOT_QUANTIZED)
        table[:, self.column("width")] = self.largest[:, self.column("width")]
        return table

    def policy(self, values: np.ndarray) -> CompressionPolicy:
        """The policy of a complete table."""
        decisions = tuple(
            LayerDecision(
                point.name,
                {knob.name: int(value) for knob, value in zip(self.knobs, row, strict=True)},
            )
            for point, row in zip(self.points, values, strict=True)
        )
        return CompressionPolicy(self.network.fingerprint, decisions)

    def table(self, policy: CompressionPolicy) -> np.ndarray:
        """The table of a policy; where it does not mention a knob, nothing is compressed.

        Raises:
            UserError: the policy belongs to another network.
        """
        check_policy(policy, self.network)
        table = self.original()
        for row, point in enumerate(self.points):
            for column, knob in enumerate(self.knobs):
                table[row, column] = policy[point.name].values.get(knob.name, table[row, column])
        return table


def _padded(rows: Sequence[Sequence[float]], fill: float = 0) -> np.ndarray:
    """Rows of unequal length as one array."""
    width = max(len(row) for row in rows)
    return np.array([[*row, *([fill] * (width - len(row)))] for row in rows])


def check_policy(policy: CompressionPolicy, network: Network) -> None:
    """Refuse a policy that does not belong to a network.

    Raises:
        UserError: fingerprint, layers, operators, widths or bits do not fit.
    """
    if policy.network != network.fingerprint:
        raise UserError(
            f"The policy was made for another network (fingerprint {policy.network}, "
            f"this one is {network.fingerprint})."
        )
    layers, points = [v.name for v in network.layers], [d.point for d in policy.decisions]
    unequal = sorted(name for name in {*layers, *points} if layers.count(name) != points.count(name))
    if unequal:
        raise UserError(f"The policy must decide every layer once, which fails at {', '.join(unequal)}.")
    for layer in network.layers:
        _check_decision(policy[layer.name], layer, network)
    _check_shared(policy, "width", [group.producers() for group in network.groups if not group.frozen])
    readers: dict[str, list[str]] = {}
    for layer in network.layers:
        readers.setdefault(layer.input_tensor, []).append(layer.name)
    _check_shared(policy, "activation_bits", readers.values())


def _check_shared(policy: CompressionPolicy, knob: str, sets: Iterable[Sequence[str]]) -> None:
    """Refuse layers that must share a value and do not."""
    values = policy.values(knob)
    for names in sets:
        decided = {name: values[name] for name in names if name in values}
        if len(set(decided.values())) > 1:
            said = ", ".join(f"{value} in {name}" for name, value in decided.items())
            raise UserError(f"The policy gives {knob} that must be equal different values: {said}.")


def _check_decision(decision: LayerDecision, layer: Layer, network: Network) -> None:
    if decision.operator != ORIGINAL_OPERATOR:
        raise UserError(f"The policy replaces {layer.name} by {decision.operator!r}, which is unknown here.")
    width = decision.values.get("width", layer.out_channels)
    group = network.group_of.get(layer.name)
    if not 1 <= width <= layer.out_channels:
        raise UserError(f"The policy keeps {width} of {layer.out_channels} channels in {layer.name}.")
    if width != layer.out_channels and (group is None or group.frozen):
        raise UserError(f"The policy prunes {layer.name}, whose channels cannot be pruned in this network.")
    for name in ("weight_bits", "activation_bits"):
        bits = decision.values.get(name, 32)
        if bits != 32 and not 2 <= bits <= 8:
            raise UserError(f"The policy gives {layer.name} {name} = {bits}; legal are 2 to 8, or 32.")

"""Predicted latency as a cost that a budget can bound step by step."""

import numpy as np

from amc.costs.latency.predictor import LatencyPredictor
from amc.space import Partial, Space


class LatencyCost:
    """The predicted latency of a policy plus the predictor's 95 % error.

    A lone integer layer between layers in floats may cost more than it saves, so neither the fewest nor the
    most bits everywhere are always the fastest: bounds look at both completions.

    Args:
        space: the policies it is asked about.
        predictor: fractions of the original's latency.
        original: latency of the uncompressed network, in the target's unit.
    """

    name = "latency"
    knobs = frozenset({"block", "width", "weight_bits", "activation_bits"})

    def __init__(self, space: Space, predictor: LatencyPredictor, original: float):
        self.space, self.predictor, self.original = space, predictor, original
        self._cheapest = _completions(space, space.smallest)
        self._costliest = _completions(space, space.largest)

    def of(self, table: np.ndarray) -> float:
        """The latency that a complete table [points, knobs] stays below with 95 % confidence."""
        return self.predictor.bound(self.predictor(table)) * self.original

    def predict(self, table: np.ndarray) -> float:
        """The expected latency of a complete table."""
        return self.predictor(table) * self.original

    def lower_bound(self, partial: Partial) -> float:
        """The faster of two completions: smallest widths, all with the fewest or all with the most bits."""
        return self.of(self.cheapest(partial))

    def cheapest(self, partial: Partial) -> np.ndarray:
        """The faster of both, int64 [points, knobs]."""
        return min((partial.filled(table) for table in self._cheapest), key=self.of)

    def upper_bound(self, partial: Partial) -> float:
        """The slower of two completions: largest widths, all with the fewest or all with the most bits."""
        return max(self.of(partial.filled(table)) for table in self._costliest)


def _completions(space: Space, widths: np.ndarray) -> list[np.ndarray]:
    """Tables with the given widths, with the fewest and with the most bits; one if bits are no choice."""
    columns = [column for column, knob in enumerate(space.knobs) if knob.name in ("block", "width")]
    tables = []
    for bits in (space.smallest, space.largest):
        table = bits.copy()
        table[:, columns] = widths[:, columns]
        tables.append(table)
    return tables[:1] if np.array_equal(tables[0], tables[1]) else tables

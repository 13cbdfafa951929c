"""Predicted latency as a cost that a budget can bound step by step."""

import numpy as np

from amc.costs.latency.predictor import LatencyPredictor
from amc.costs.replaced import ReplacedLayers, Replacement
from amc.quantization.uniform import NOT_QUANTIZED
from amc.space import Partial, Space


class LatencyCost:
    """The predicted latency of a policy plus the predictor's 95 % error.

    A lone integer layer between layers in floats may cost more than it saves, so neither the fewest nor the
    most bits everywhere are always the fastest: bounds look at both completions. Open operators of each are
    those that are predicted to be the fastest or the slowest in their layer.

    Args:
        space: the policies it is asked about.
        predictor: fractions of the original's latency.
        original: latency of the uncompressed network, in the target's unit.
    """

    name = "latency"
    knobs = frozenset({"block", "operator", "amount", "width", "weight_bits", "activation_bits"})

    def __init__(self, space: Space, predictor: LatencyPredictor, original: float):
        self.space, self.predictor, self.original = space, predictor, original
        self._cheapest = _completions(space, space.smallest)
        self._costliest = _completions(space, space.largest)
        self._replaced = ReplacedLayers(space, self._price) if space.chooses else None
        self._units = np.zeros(0)
        self._priced: np.ndarray | None = None

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
        return min((self._completed(partial, rest, most=False) for rest in self._cheapest), key=self.of)

    def upper_bound(self, partial: Partial) -> float:
        """The slower of two completions: largest widths, all with the fewest or all with the most bits."""
        return max(self.of(self._completed(partial, rest, most=True)) for rest in self._costliest)

    def _completed(self, partial: Partial, rest: np.ndarray, most: bool) -> np.ndarray:
        """The decisions, the fastest or the slowest operators, and `rest` [points, knobs]."""
        table = self.space.completed(partial, rest)
        if self._replaced is not None:
            self._learn_prices(self._replaced)
            features = self.predictor.features
            widths, inputs = features.geometry.widths(table), features.geometry.inputs(table)
            costs = features.layer_costs(table, self._units)
            self._replaced.complete(partial, table, costs, widths, inputs, most)
        return table

    def _learn_prices(self, replaced: ReplacedLayers) -> None:
        """Take over the predictor's weights, which change with every measurement."""
        if self._priced is not self.predictor.weights:
            self._priced = self.predictor.weights
            self._units = self.predictor.features.unit_costs(self._priced)
            replaced.forget()

    def _price(self, new: Replacement) -> float:
        """What the convolutions in the place of a layer add to the prediction."""
        features, integer = self.predictor.features, max(new.weight_bits, new.input_bits) < NOT_QUANTIZED
        assert features.replacements is not None
        found = features.replacements.of(
            self.space.row(new.layer.name),
            new.option,
            new.inputs,
            new.outputs,
            float(features.steps[0 if integer else 1]),
        )
        return float((self._units[0 if integer else 1, found.classes] * found.values).sum())


def _completions(space: Space, widths: np.ndarray) -> list[np.ndarray]:
    """Tables with the given widths, with the fewest and with the most bits; one if bits are no choice."""
    columns = [column for column, knob in enumerate(space.knobs) if not knob.name.endswith("_bits")]
    tables = []
    for bits in (space.smallest, space.largest):
        table = bits.copy()
        table[:, columns] = widths[:, columns]
        tables.append(table)
    return tables[:1] if np.array_equal(tables[0], tables[1]) else tables

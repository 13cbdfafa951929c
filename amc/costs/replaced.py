"""Costs of layers that operators replace, and which operators complete a policy at the least cost."""

from collections.abc import Callable
from dataclasses import replace
from functools import lru_cache
from typing import NamedTuple

import numpy as np

from amc.decomposition.knobs import ORIGINAL, OperatorKnob
from amc.decomposition.operator import OperatorCost
from amc.network import Layer
from amc.quantization.uniform import NOT_QUANTIZED
from amc.space import Partial, Space

REMEMBERED = 1 << 16
ANY = -1
"""An operator or amount that is not decided yet."""


class Replacement(NamedTuple):
    """One way to replace a layer.

    Attributes:
        layer: what is replaced.
        option: entries of a table for the operator and its amount.
        inputs, outputs: channels that are left.
        cost: of what replaces it.
        weight_bits, input_bits: of what replaces it, 32 for not quantized.
    """

    layer: Layer
    option: tuple[int, int]
    inputs: int
    outputs: int
    cost: OperatorCost
    weight_bits: int
    input_bits: int


Price = Callable[[Replacement], float]
"""What a budget counts of a layer that is replaced."""


class ReplacedLayers:
    """The options of every layer that operators may replace: pairs of an operator and an amount.

    Args:
        space: policies with the knobs "operator" and "amount".
        price: what a budget counts of one layer, its bias left out.
    """

    def __init__(self, space: Space, price: Price):
        assert isinstance(space.choice, OperatorKnob)
        self.space, self.choice, self.price = space, space.choice, price
        self._operator, self._amount = space.column("operator"), space.column("amount")
        self._bits = [space.column("weight_bits"), space.column("activation_bits")]
        rows = np.flatnonzero(space.levels[:, 1:].any(axis=1)).tolist()
        self.options = {row: self._options(row) for row in rows}
        self._place = {
            row: {option: place for place, option in enumerate(options)}
            for row, options in self.options.items()
        }
        self._shape: dict[int, int] = {}
        self._layers: list[tuple[Layer, str, list[tuple[int, int]]]] = []
        for row, options in self.options.items():
            self._shape[row] = self._shape_of(space.network.layers[row], options)
        self._prices = lru_cache(REMEMBERED)(self._priced)
        self._best = lru_cache(REMEMBERED)(self._best_of)

    def _options(self, row: int) -> list[tuple[int, int]]:
        point = self.space.points[row]
        offered = (value for value in self.choice.values(point, None) if value != ORIGINAL)
        return [(value, level) for value in offered for level in range(self.space.levels[row, value])]

    def _shape_of(self, layer: Layer, options: list[tuple[int, int]]) -> int:
        """Layers of one shape share what is remembered of their prices."""
        plain = replace(layer, name="", norm=layer.norm and "norm", input_tensor="")
        amounts = self.choice.amounts[layer.name]
        for number, (known, name, _) in enumerate(self._layers):
            if known == plain and self.choice.amounts[name] == amounts:
                return number
        self._layers.append((plain, layer.name, options))
        return len(self._layers) - 1

    def forget(self) -> None:
        """Hear that prices have changed."""
        self._prices.cache_clear()
        self._best.cache_clear()

    def _priced(self, shape: int, inputs: int, outputs: int, bits: tuple[int, int]) -> np.ndarray:
        plain, name, options = self._layers[shape]
        layer, found = replace(plain, name=name), []
        for option in options:
            cost = self.choice.cost(layer, *option, inputs, outputs)
            weight_bits = bits[0] if self.choice.quantizes(option[0]) else NOT_QUANTIZED
            found.append(self.price(Replacement(layer, option, inputs, outputs, cost, weight_bits, bits[1])))
        return np.array(found)

    def prices(self, row: int, inputs: int, outputs: int, table: np.ndarray) -> np.ndarray:
        """What every option of a layer would cost under the bits of a table, float64 [options]."""
        bits = int(table[row, self._bits[0]]), int(table[row, self._bits[1]])
        return self._prices(self._shape[row], inputs, outputs, bits)

    def of(self, costs: np.ndarray, table: np.ndarray, widths: np.ndarray, inputs: np.ndarray) -> np.ndarray:
        """Costs of all layers [points], given those of the layers themselves."""
        costs = costs.copy()
        for row in self.options:
            if table[row, self._operator] != ORIGINAL and widths[row]:
                prices = self.prices(row, int(inputs[row]), int(widths[row]), table)
                costs[row] = prices[self._place[row][table[row, self._operator], table[row, self._amount]]]
        return costs

    def complete(
        self,
        partial: Partial,
        table: np.ndarray,
        costs: np.ndarray,
        widths: np.ndarray,
        inputs: np.ndarray,
        most: bool,
    ) -> None:
        """Choose open operators and amounts so that the cost is the least or the largest, in place.

        Given the widths, layers are independent of each other, and no option gets cheaper with a width; so
        with the smallest widths and bits this is the cheapest completion, with the largest the costliest.

        Args:
            partial: decisions so far.
            table: a completion of it; gets the operators and amounts.
            costs: of all layers of the table as if nothing replaced them, [points]; become the result's.
            widths, inputs: channels of all layers of the table, [points].
            most: whether the costliest is wanted.
        """
        operators = np.where(
            partial.decided[:, self._operator], partial.values[:, self._operator], ANY
        ).tolist()
        amounts = np.where(partial.decided[:, self._amount], partial.values[:, self._amount], ANY).tolist()
        bits, channels = table[:, self._bits].tolist(), np.stack([inputs, widths], 1).astype(int).tolist()
        for row, shape in self._shape.items():
            if operators[row] == ORIGINAL or not channels[row][1]:
                continue
            wanted = operators[row], amounts[row]
            price, value, level = self._best(shape, *channels[row], (*bits[row],), wanted, most)
            if operators[row] == ANY and (costs[row] >= price if most else costs[row] <= price):
                price, value, level = costs[row], ORIGINAL, 0
            costs[row], table[row, self._operator], table[row, self._amount] = price, value, level
            if value and not self.choice.quantizes(value):
                table[row, self._bits[0]] = NOT_QUANTIZED

    def _best_of(
        self,
        shape: int,
        inputs: int,
        outputs: int,
        bits: tuple[int, int],
        wanted: tuple[int, int],
        most: bool,
    ) -> tuple[float, int, int]:
        """Price, operator and amount of the best option that has the wanted operator and amount, if any."""
        prices = self._prices(shape, inputs, outputs, bits).tolist()
        found = [
            (price, *option)
            for price, option in zip(prices, self._layers[shape][2], strict=True)
            if all(asked in (ANY, given) for asked, given in zip(wanted, option, strict=True))
        ]
        return max(found) if most else min(found)

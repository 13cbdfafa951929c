"""The knobs that choose what replaces a layer, and how far; all operators share them."""

from collections.abc import Mapping, Sequence

import numpy as np

from amc.decomposition.operator import AMOUNT, OperatorCost, legal_amounts
from amc.decomposition.registry import get_operator
from amc.errors import UserError
from amc.network import Layer, Network
from amc.space import DecisionPoint, Partial

ORIGINAL = 0
"""The value of a layer that stays what it is."""
MOST_AMOUNTS = 16
"""Legal amounts of one operator in one layer; ranks come by the hundred, and neighbours hardly differ."""


class OperatorKnob:
    """What replaces a layer: 0 is the layer itself, i the i-th operator.

    Args:
        network: its convolutions say which operators apply where.
        operators: names or import paths (`amc.decomposition.registry`).
        order: the cost by which a layer's operators are put in order, "macs" or "size".

    Attributes:
        names: of the operators.
        amounts: point name to its operators, the one with the smallest minimum cost first, with the legal
            amounts of each in order of cost.
    """

    name = "operator"
    implied_by: tuple[str, Mapping[int, int]] | None = None
    reference_is_fixed = True

    def __init__(self, network: Network, operators: Sequence[str], order: str = "macs"):
        self.names, self.order = tuple(operators), order
        self.operators = tuple(get_operator(name) for name in self.names)
        self.amounts = {layer.name: self._amounts(network, layer) for layer in network.layers}

    def _amounts(self, network: Network, layer: Layer) -> dict[int, tuple[int, ...]]:
        module = network.module.get_submodule(layer.name)
        found = {
            value: _spread(legal_amounts(operator, module))
            for value, operator in enumerate(self.operators, start=1)
        }

        def least(value: int) -> float:
            whole = layer.in_channels, layer.out_channels
            costs = (self.operators[value - 1].cost(layer, amount, *whole) for amount in found[value])
            return min(float(getattr(cost, self.order)) for cost in costs)

        return {value: found[value] for value in sorted(filter(found.get, found), key=least)}

    def values(self, point: DecisionPoint, partial: Partial | None) -> tuple[int, ...]:
        """The operators that apply, the cheapest first, and the layer itself."""
        return (*self.amounts[point.name], ORIGINAL)

    def decided_at(self, point: DecisionPoint) -> str:
        """The point itself."""
        return point.name

    def thresholds(self, point: DecisionPoint) -> tuple[float, ...]:
        """The reference policy replaces nothing."""
        return tuple(0.0 for _ in self.values(point, None))

    def levels(self, point: str) -> np.ndarray:
        """How many amounts each value has at a point, 1 for the layer itself; int64 [operators + 1]."""
        amounts = self.amounts[point]
        return np.array([1, *(len(amounts.get(value, ())) for value in range(1, len(self.names) + 1))])

    def decision(self, point: str, value: int, level: int) -> tuple[str, int]:
        """Name of the operator and amount behind the entries of a table."""
        return self.names[value - 1], self.amounts[point][value][level]

    def entries(self, point: str, operator: str, amount: int) -> tuple[int, int]:
        """The table's entries for an operator, one of `names`, and its amount.

        Raises:
            UserError: the search does not know the amount; its costs could not be told.
        """
        value = self.names.index(operator) + 1
        known = self.amounts[point].get(value, ())
        if amount not in known:
            raise UserError(
                f"The policy replaces {point} by {operator} with amount {amount}, which this search does not "
                f"choose from: {', '.join(map(str, known)) or 'there is none'}."
            )
        return value, known.index(amount)

    def cost(self, layer: Layer, value: int, level: int, inputs: int, outputs: int) -> OperatorCost:
        """What a layer costs with `inputs` and `outputs` channels left."""
        amount = self.amounts[layer.name][value][level]
        return self.operators[value - 1].cost(layer, amount, inputs, outputs)

    def quantizes(self, value: int) -> bool:
        """Whether a layer with this value has bits of its own."""
        return value == ORIGINAL or self.operators[value - 1].quantizes


class AmountKnob:
    """How far the chosen operator goes, as a rank among its amounts, 0 for the cheapest.

    Args:
        choices: which operators each point offers.
    """

    name = AMOUNT
    implied_by: tuple[str, Mapping[int, int]] | None = None
    reference_is_fixed = False

    def __init__(self, choices: OperatorKnob):
        self.choices = choices

    def values(self, point: DecisionPoint, partial: Partial | None) -> tuple[int, ...]:
        """Ranks of the operator with the most amounts; `Space.legal` knows which one was chosen."""
        return tuple(range(int(self.choices.levels(point.name).max())))

    def decided_at(self, point: DecisionPoint) -> str:
        """The point itself."""
        return point.name

    def thresholds(self, point: DecisionPoint) -> tuple[float, ...]:
        """Every rank owns an equal interval."""
        values = self.values(point, None)
        return tuple(rank / len(values) for rank in values)


def _spread(amounts: Sequence[int]) -> tuple[int, ...]:
    """At most `MOST_AMOUNTS` of them, evenly spread, with both ends."""
    if len(amounts) <= MOST_AMOUNTS:
        return tuple(amounts)
    places = np.linspace(0, len(amounts) - 1, MOST_AMOUNTS).round().astype(int)
    return tuple(amounts[place] for place in places)

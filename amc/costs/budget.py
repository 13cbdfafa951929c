"""Budgets: a cost and what it must not exceed."""

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from amc.costs.symbolic import ALIASES, Cost
from amc.errors import UserError
from amc.space import Partial, Space

TIME_UNITS = {"us": 1e-3, "ms": 1.0, "s": 1e3}
"""To milliseconds."""

FRACTIONS_END = {"latency": math.inf, "code": 1.0}
"""The largest number that can be meant as a fraction; of other costs 1000, so that typing errors show."""

UNITS = {
    "": 1.0,
    **{"k": 1e3, "m": 1e6, "g": 1e9},
    **{"b": 1.0, "kb": 1e3, "mb": 1e6, "kib": 1024.0, "mib": 1024.0**2},
}


@dataclass(frozen=True, eq=False)
class Budget:
    """An upper limit on one cost.

    Attributes:
        cost: what is bounded.
        limit: the largest legal cost, in the cost's unit.
        original: the cost of the uncompressed network.
    """

    cost: Cost
    limit: float
    original: float

    @property
    def fraction(self) -> float:
        """The limit as a fraction of the original's cost."""
        return self.limit / self.original

    def fits(self, partial: Partial) -> bool:
        """Whether some completion of `partial` keeps the budget."""
        return self.cost.lower_bound(partial) <= self.limit

    def reached(self, partial: Partial) -> bool:
        """Whether some completion of `partial` uses the whole budget."""
        return self.cost.upper_bound(partial) >= self.limit


def parse_budget(text: str, costs: Mapping[str, Cost], original: Mapping[str, float]) -> Budget:
    """Read `macs=0.5` (a fraction of the original's) or `size=100KB`, `macs=20M` (absolute).

    Raises:
        UserError: the text is not a budget, the cost unknown, or the value out of range.
    """
    match = re.fullmatch(r"([a-zA-Z-]+)=([0-9.eE+-]+?)([kKmMgG]?i?[bB]?|[um]?s)", text.strip())
    if not match:
        raise UserError(
            f"{text!r} is not a budget; write a cost and a fraction of the original's, such as macs=0.5, "
            "or an absolute value, such as size=100KB or latency=1.5ms."
        )
    name, number, unit = match.group(1).lower(), match.group(2), match.group(3).lower()
    flops = name == "flops"
    name = ALIASES.get(name, name)
    if name not in costs:
        raise UserError(f"There is no cost {name!r} to put a budget on; there are {', '.join(costs)}.")
    units = {"": 1.0, **TIME_UNITS} if name == "latency" else UNITS
    try:
        value = float(number) * units[unit]
    except (KeyError, ValueError) as error:
        raise UserError(f"{number}{unit} in {text!r} is not a number with a known unit.") from error
    most = FRACTIONS_END.get(name, 1000.0)
    absolute = bool(unit) or value > most
    if not absolute and not 0 < value <= 1:
        raise UserError(f"{text!r}: a fraction of the original's {name} lies above 0 and at most 1.")
    if absolute and value <= 0:
        raise UserError(f"{text!r}: a budget must be above 0.")
    limit = (value / 2 if flops else value) if absolute else value * original[name]
    return Budget(costs[name], min(limit, original[name]), original[name])


def fit_together(budgets: Sequence[Budget], partial: Partial) -> bool:
    """Whether one of the completions that are the cheapest of some budget keeps all budgets.

    Without operators all of them are the same; an operator may be the cheapest in bytes and not in MACs.
    Deciding what such a completion has leaves it the cheapest, so it stays open to the end of an episode.
    """
    completions = [budget.cost.cheapest(partial) for budget in budgets]
    return not budgets or any(
        all(budget.cost.of(table) <= budget.limit for budget in budgets) for table in completions
    )


def check_reachable(budgets: Sequence[Budget], space: Space) -> None:
    """Refuse budgets below what the smallest legal network costs.

    Raises:
        UserError: names the smallest value that can be reached.
    """
    smallest = space.empty()
    unreachable_together = space.chooses and not fit_together(budgets, smallest)
    for budget in budgets:
        least = budget.cost.lower_bound(smallest)
        if least > budget.limit:
            way_out = "; --drop-blocks lets whole residual blocks go" if space.could_drop_blocks else ""
            raise UserError(
                f"The budget {budget.cost.name} = {budget.limit:.6g} ({budget.fraction:.3g} of the original) "
                f"cannot be reached: the smallest legal network costs {least:.6g} "
                f"({least / budget.original:.3g} of the original){way_out}."
            )
    if unreachable_together:
        raise UserError("No network that could be found keeps all of the budgets together.")

"""Bounding an action: which legal values of one knob still let the episode meet its budgets.

Algorithm 1 of AMC (He et al., ECCV 2018), generalised to any cost with bounds and to any knob: instead of
clipping an action at a wall, the interval [-1, 1] is stretched over the values that remain feasible, so
that every action means something and every executed policy keeps the budget.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from amc.costs.budget import Budget, fit_together
from amc.space import Partial, Space

UNORDERED = frozenset({"operator", "amount"})
"""Knobs whose order of cost holds for whole layers: one that has lost channels may prefer another."""


@dataclass(frozen=True)
class Range:
    """Feasible values of one knob at one decision point.

    Attributes:
        values: all legal values in order of cost.
        low, reference, high: indices into `values` that the actions -1, 0 and 1 stand for.
    """

    values: tuple[int, ...]
    low: int
    reference: int
    high: int

    def value(self, action: float) -> int:
        """The value of an action in [-1, 1]: linear on either side of the reference, then the nearest."""
        span = self.high - self.reference if action > 0 else self.reference - self.low
        return self.values[int(self.reference + action * span + 0.5)]

    def nearest(self, value: int) -> int:
        """The feasible value next to a legal one; the reference policy's where it is no choice at all."""
        if value not in self.values:
            return self.values[self.reference]
        return self.values[min(max(self.values.index(value), self.low), self.high)]

    def action(self, value: int) -> float:
        """The action that stands for a value exactly; 0 if the knob is dead."""
        offset = self.values.index(value) - self.reference
        span = self.high - self.reference if offset > 0 else self.reference - self.low
        return offset / span if span else 0.0


def feasible_range(
    space: Space, partial: Partial, budgets: Sequence[Budget], row: int, column: int, reference: int
) -> Range:
    """The feasible values of one entry.

    The highest is the largest value from which the rest at its smallest still keeps every budget; the
    lowest is the smallest from which the rest at its largest still uses one of them up (the highest if
    there is none), so that no episode leaves a budget unused; a fixed reference stays a choice.

    Args:
        space: the legal policies.
        partial: decisions so far, from which some completion keeps every budget.
        budgets: what must hold.
        row: its decision point.
        column: its knob.
        reference: the reference policy's value for it.
    """
    values = space.legal(row, column, partial)

    def fits(index: int) -> bool:
        decided = space.decide(partial, row, column, values[index])
        if space.chooses and len(budgets) > 1:
            return fit_together(budgets, decided)
        return all(budget.fits(decided) for budget in budgets)

    def reaches(index: int) -> bool:
        decided = space.decide(partial, row, column, values[index])
        return not budgets or any(budget.reached(decided) for budget in budgets)

    if space.knobs[column].name in UNORDERED:
        return _scanned(values, fits, reaches, reference)
    high = max(_first(len(values), lambda index: not fits(index)) - 1, 0)
    low = min(_first(high + 1, reaches), high)
    if space.knobs[column].reference_is_fixed:
        # Bits that the reference policy has whatever the budget is are not raised just to use it up.
        low = min(low, values.index(reference))
    # Fewer bits may cost more latency: the values that fit need not begin with the smallest.
    low = next((index for index in range(low, high) if fits(index)), high)
    return Range(values, low, min(max(values.index(reference), low), high), high)


def _scanned(
    values: tuple[int, ...], fits: Callable[[int], bool], reaches: Callable[[int], bool], reference: int
) -> Range:
    """The range of a knob whose values are looked at one by one.

    The reference policy's value stays a choice where it fits, whatever it leaves of a budget.
    """
    fitting = [index for index in range(len(values)) if fits(index)]
    using = [index for index in fitting if reaches(index) or values[index] == reference]
    chosen = tuple(values[index] for index in using or fitting[-1:] or [0])
    place = chosen.index(reference) if reference in chosen else len(chosen) - 1
    return Range(chosen, 0, place, len(chosen) - 1)


def _first(count: int, condition: Callable[[int], bool]) -> int:
    """The first index below `count` where a monotone condition becomes true; `count` if it never does."""
    low, high = 0, count
    while low < high:
        middle = (low + high) // 2
        low, high = (low, middle) if condition(middle) else (middle + 1, high)
    return low

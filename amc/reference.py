"""The reference policy: every knob at one common fraction, as large as the budgets allow.

What a fraction means is the knob's matter: one keep ratio and the same bits for all layers (the "uniform"
policy), or about the same error in all of them and bits where they buy most (the "balanced" policy).
"""

from collections.abc import Callable, Sequence
from functools import cache

import numpy as np

from amc.costs.budget import Budget
from amc.space import Partial, Space

BISECTIONS = 16
SHAPE = frozenset({"block", "operator", "amount", "code", "width"})
SHARED = frozenset({"amount", "width"})
"""Knobs that follow the common keep ratio."""
LENGTH = frozenset({"code"})
"""What a budget on the code alone bounds; such a budget lowers nothing else."""


def complete_uniformly(
    space: Space, partial: Partial, budgets: Sequence[Budget], unbounded: float = 1.0
) -> np.ndarray:
    """Complete a partial policy with common fractions, found by bisection.

    Budgets that depend on the widths alone first fix one common keep ratio; then all other knobs share one
    common fraction of their range, lowered together with the keep ratio until every budget holds; a code is
    no longer than the budgets on it alone allow. As bits jump in all layers at once, the keep ratio then
    takes what they leave, and what rounding leaves is given to the layers that rounding cut the most.

    Args:
        space: the legal policies.
        partial: decisions so far, from which some completion keeps every budget.
        budgets: what must hold; may be empty.
        unbounded: the keep ratio where no budget depends on the widths.

    Returns:
        int64 [points, knobs].
    """
    at_steps, length = space.at_steps, 1.0

    def steps(keep: float, rest: float) -> tuple[int, ...]:
        own = {**dict.fromkeys(SHARED, keep), **dict.fromkeys(LENGTH, min(rest, length))}
        return space.steps([own.get(knob.name, rest) for knob in space.knobs])

    @cache  # Most fractions of a bisection lie between the same legal values.
    def holds(budget: Budget, at: tuple[int, ...]) -> bool:
        return _fits((budget,), space.completed(partial, at_steps(at)))

    def fit(some: Sequence[Budget], keep: float, rest: float) -> bool:
        at = steps(keep, rest)
        return all(holds(budget, at) for budget in some)

    alone = [budget for budget in budgets if budget.cost.knobs <= LENGTH]
    length = _largest_fraction(lambda f: fit(alone, 1.0, f), 1.0)
    shape_only = [budget for budget in budgets if budget.cost.knobs <= SHAPE]
    others = [budget for budget in budgets if not budget.cost.knobs <= SHAPE]
    bounded = any("width" in budget.cost.knobs for budget in budgets)
    most = 1.0 if bounded else unbounded
    keep = _largest_fraction(lambda f: fit(shape_only, f, 1.0), most)
    common = _largest_fraction(lambda f: fit(others, min(f, keep), f), 1.0)
    keep = _largest_fraction(lambda f: fit(budgets, f, common), keep)
    if not fit(budgets, keep, common):
        return _cheapest(space, partial, budgets)
    chosen = space.completed(partial, space.at_steps(steps(keep, common)))
    return _fill(space, partial, budgets, chosen, keep) if bounded else chosen


def replaced_everywhere(
    space: Space, start: Partial, budgets: Sequence[Budget], operator: int, unbounded: float = 1.0
) -> np.ndarray:
    """The reference policy with one operator wherever it applies and, if budgets allow, all channels.

    Args:
        space: the legal policies, with a choice of operators.
        start: an episode's start, from which some completion keeps every budget.
        budgets: what must hold; may be empty.
        operator: value of the knob "operator".
        unbounded: the keep ratio where no budget depends on the widths.

    Returns:
        int64 [points, knobs].
    """

    def decided(partial: Partial, knob: str, wanted: Callable[[int], int]) -> Partial:
        column = space.column(knob)
        for row in range(len(space.points)):
            if space.decider[row, column] == row and not partial.decided[row, column]:
                partial = space.decide(partial, row, column, wanted(row))
        return partial

    def offered(row: int) -> int:
        return operator if space.levels[row, operator] else 0

    partial = decided(start, "operator", offered)
    whole = decided(partial, "width", lambda row: int(space.largest[row, space.column("width")]))
    fits = all(budget.fits(whole) for budget in budgets)
    partial = whole if fits else partial
    return _raised(space, partial, budgets, complete_uniformly(space, partial, budgets, unbounded))


def _cheapest(space: Space, partial: Partial, budgets: Sequence[Budget]) -> np.ndarray:
    """Where the layers themselves cannot keep the budgets: operators wherever they apply."""
    if not space.chooses:
        return partial.filled(space.smallest)

    def replaced(fraction: float) -> np.ndarray:
        rest = space.at_fraction([fraction] * len(space.knobs))
        rest[:, space.column("operator")] = space.smallest[:, space.column("operator")]
        return space.completed(partial, rest)

    def fit(fraction: float) -> bool:
        return _fits(budgets, replaced(fraction))

    table = _raised(space, partial, budgets, replaced(_largest_fraction(fit, 1.0)))
    found = [table, *(budget.cost.cheapest(partial) for budget in budgets)]
    return next((table for table in found if _fits(budgets, table)), found[-1])


def _raised(space: Space, partial: Partial, budgets: Sequence[Budget], table: np.ndarray) -> np.ndarray:
    """Raise open amounts by one legal step where every budget still holds, the last layers first."""
    column = space.column("amount")
    operators = table[:, space.column("operator")]
    for row in reversed(range(len(space.points))):
        last = space.levels[row, operators[row]] - 1
        if partial.decided[row, column] or table[row, column] >= last:
            continue
        raised = table.copy()
        raised[row, column] += 1
        table = raised if _fits(budgets, raised) else table
    return table


def _fits(budgets: Sequence[Budget], table: np.ndarray) -> bool:
    return all(budget.cost.of(table) <= budget.limit for budget in budgets)


def _largest_fraction(fits: Callable[[float], bool], most: float) -> float:
    """The largest fraction up to `most` that fits, for a condition that is true below and false above."""
    if fits(most):
        return most
    low, high = 0.0, most
    for _ in range(BISECTIONS):
        middle = (low + high) / 2
        low, high = (middle, high) if fits(middle) else (low, middle)
    return low


def _fill(
    space: Space, partial: Partial, budgets: Sequence[Budget], table: np.ndarray, keep: float
) -> np.ndarray:
    """Raise widths by one legal step, those first that rounding cut most, while every budget holds."""
    column = space.column("width")
    open_rows = [
        row
        for row in range(len(space.points))
        if space.decider[row, column] == row and not partial.decided[row, column]
    ]
    steps = {row: space.legal(row, column, partial).index(int(table[row, column])) + 1 for row in open_rows}
    starts = {row: space.starts(row, column) for row in open_rows}
    rows = [row for row in open_rows if steps[row] < len(starts[row])]
    for row in sorted(rows, key=lambda row: starts[row][steps[row]] - keep):
        step, start = steps[row], starts[row]
        if start[step] - keep > (start[step] - start[step - 1]) / 2:
            continue  # rounding has raised it already
        raised = table.copy()
        raised[space.decider[:, column] == row, column] = space.legal(row, column, partial)[step]
        if _fits(budgets, raised):
            table = raised
    return table

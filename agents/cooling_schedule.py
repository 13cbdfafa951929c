"""How the budget of a cooled search tightens (Chen, Tung, Vedula and Mori, ECCV 2018, section 3.3)."""

import math
from collections.abc import Sequence
from typing import Literal

from amc.costs.symbolic import ALIASES
from amc.errors import UserError

Schedule = Literal["linear", "exponential"]

RATE = 0.5
"""How fast the exponential schedule cools; the paper's k."""

COOLED = ("macs", "params", "size", "bops", "latency")
"""Costs that fall as channels and bits go."""


def constraints(schedule: Schedule, rounds: int, end: float, start: float = 1.0) -> tuple[float, ...]:
    """What each round may cost; the last one exactly `end`.

    With t = 0 .. T - 1, linear: c_t = c_0 + (t + 1) / T (c - c_0); exponential, Newton's law of cooling
    shifted so that it ends in c: c_t = c + (c_0 - c) (e^(-k (t + 1)) - e^(-k T)).

    Args:
        schedule: which.
        rounds: T.
        end: c, what the last round may cost.
        start: c_0, the cost of the uncompressed network.
    """
    times = range(1, rounds)
    if schedule == "linear":
        before = [start + t / rounds * (end - start) for t in times]
    else:
        before = [end + (start - end) * (math.exp(-RATE * t) - math.exp(-RATE * rounds)) for t in times]
    return (*before, end)


def shares(evaluations: int, rounds: int) -> tuple[int, ...]:
    """The evaluations of each round, the rest of the division to the last ones.

    Raises:
        UserError: there are fewer evaluations than rounds.
    """
    if evaluations < rounds:
        raise UserError(f"{evaluations} evaluations cannot be divided among {rounds} rounds.")
    least, more = divmod(evaluations, rounds)
    return (*[least] * (rounds - more), *[least + 1] * more)


def fractions(budgets: Sequence[str]) -> dict[str, float]:
    """Cost name to the fraction of the original's that a budget leaves; aliases resolved.

    Raises:
        UserError: a budget is not a fraction, or its cost does not fall as channels and bits go.
    """
    found: dict[str, float] = {}
    for text in budgets:
        name, _, number = text.strip().lower().partition("=")
        name = ALIASES.get(name, name)
        if name not in COOLED:
            raise UserError(f"A cooled search has budgets on {', '.join(COOLED)}, and not on {name}.")
        try:
            fraction = float(number)
        except ValueError:
            fraction = math.inf
        if not 0.0 < fraction <= 1.0:
            raise UserError(f"A cooled search needs budgets in fractions of the original's, not {text}.")
        found[name] = min(fraction, found.get(name, 1.0))
    return found

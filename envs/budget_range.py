"""Ranges of budgets: `macs=0.2..0.8` as evenly spaced levels, each of them an ordinary budget."""

import re
from collections.abc import Sequence

from amc.errors import UserError

_END = re.compile(r"([0-9.]+(?:[eE][+-]?[0-9]+)?)([a-zA-Z]*)")


def is_range(text: str) -> bool:
    """Whether a budget names two ends."""
    return ".." in text


def spread(texts: Sequence[str], levels: int) -> tuple[tuple[str, ...], ...]:
    """The budgets of every level, the tightest first.

    Several ranges go from end to end together; a budget without a range is the same at every level. Without
    any range there is one level.

    Raises:
        UserError: a range cannot be read.
    """
    if not any(is_range(text) for text in texts):
        return (tuple(texts),)
    if levels < 2:
        raise UserError(f"--levels must be at least 2 for a range of budgets, not {levels}.")
    columns = [_values(text, levels) if is_range(text) else [text] * levels for text in texts]
    return tuple(zip(*columns, strict=True))


def _values(text: str, levels: int) -> list[str]:
    """The levels of one range as budgets; both ends are among them."""
    name, _, ends = (part.strip() for part in text.partition("="))
    low, high = (_END.fullmatch(end.strip()) for end in ends.split("..", 1))
    if not low or not high or low.group(2).lower() != high.group(2).lower():
        raise UserError(
            f"{text!r} is not a range of budgets; write both ends in the same unit, as in macs=0.2..0.8."
        )
    try:
        first, last = float(low.group(1)), float(high.group(1))
    except ValueError as error:
        raise UserError(f"{text!r} is not a range of numbers.") from error
    if not 0 < first < last:
        raise UserError(f"{text!r}: a range of budgets goes from a smaller value above 0 to a larger one.")
    step = (last - first) / (levels - 1)
    return [f"{name}={first + place * step:.6g}{low.group(2)}" for place in range(levels)]


def case_name(texts: Sequence[str]) -> str:
    """What the budgets of one level are called in logs and tables: `macs=0.35 size=0.1`."""
    return " ".join(text.strip() for text in texts)

"""From the log of the counting plugin to instructions of one inference: arithmetic only."""

from collections.abc import Sequence

from amc.errors import UserError

VERSION = 1
"""Raised whenever guest.py or the arithmetic here changes what a count is; part of every cache key."""
WARM_UP = 1
"""Inferences of each file that do not count; the first one allocates."""
ROUND = 3
"""Consecutive inferences of one round, the smallest of which counts: now and then a mark costs 90 more."""


def inferences(log: str, files: int) -> list[tuple[int, ...]]:
    """Return the smallest count of each steady round, file by file.

    Args:
        log: its lines "section NUMBER" and "mark COUNT", in order; others are ignored.
        files: how many were counted.

    Returns:
        Instructions of one inference, what the marks themselves cost subtracted. The rounds overlap; nothing
        in them is random, so they are equal.

    Raises:
        UserError: marks are missing, which happens if the emulator was ended early.
    """
    spans = _spans(log)
    rounds = [_rounds(spans.get(section, ())) for section in range(files + 1)]
    if not all(rounds):
        raise UserError("The emulator's log lacks the marks of an inference; run the measurement again.")
    empty = rounds[0][-1]
    return [tuple(count - empty for count in counts) for counts in rounds[1:]]


def _spans(log: str) -> dict[int, list[int]]:
    """Return the instructions from every other mark to the next one, by section."""
    marks: dict[int, list[int]] = {}
    current: list[int] = []
    for line in log.splitlines():
        match line.split():
            case ["section", number]:
                current = marks.setdefault(int(number), [])
            case ["mark", count]:
                current.append(int(count))
    return {
        number: [end - start for start, end in zip(counts[::2], counts[1::2], strict=False)]
        for number, counts in marks.items()
    }


def _rounds(counts: Sequence[int]) -> tuple[int, ...]:
    steady = counts[WARM_UP:]
    return tuple(min(steady[i : i + ROUND]) for i in range(len(steady) - ROUND + 1))

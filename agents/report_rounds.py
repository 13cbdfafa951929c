"""Where the rounds of a cooled search lie in its log, and what is known of those that have ended."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from agents.cooling_product import SUMMARY_FILE
from agents.run_config import read_facts
from amc.errors import UserError
from amc.files import read_json


@dataclass(frozen=True)
class Round:
    """A round that has evaluated something.

    Attributes:
        number: from 1.
        start: index of its first row in the log of the run: its reference policy.
        reference: what that policy is called.
        summary: its row of `cooling.json`; empty as long as it goes on.
    """

    number: int
    start: int
    reference: str
    summary: Mapping[str, Any]


def read_rounds(folder: Path, evaluations: int) -> tuple[Round, ...]:
    """The rounds that have begun, in their order.

    Args:
        folder: directory of a cooled run.
        evaluations: in its log.

    Raises:
        UserError: something in it is damaged.
    """
    path = folder / SUMMARY_FILE
    ended: Any = read_json(path) if path.exists() else {"rounds": []}
    rounds, start = [], 0
    try:
        for number, summary in enumerate([*ended["rounds"], {}], 1):
            if start >= evaluations:
                break
            reference = str(read_facts(folder / f"round-{number}").get("reference", "uniform"))
            rounds.append(Round(number, start, reference, summary))
            start += int(summary.get("evaluations", 0))
    except (TypeError, KeyError, ValueError, AttributeError) as error:
        raise UserError(f"{path} is not a summary of rounds: {error!r}.") from error
    return tuple(rounds)

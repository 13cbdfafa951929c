"""What a run knew of its target when it began; a continued run begins with the same."""

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from amc.costs.latency.predictor import Sample
from amc.errors import UserError
from amc.files import write_json
from amc.targets import Profile
from envs.latency_budget import PredictorFigures

LATENCY_FILE = "latency.json"
Read = TypeVar("Read")


@dataclass(frozen=True)
class MeasuredBefore:
    """Measurements that decide what a search does.

    Attributes:
        profile: channel steps and bits of the target.
        samples: the policies that the latency predictor was fitted to; none without a latency budget.
    """

    profile: Profile
    samples: tuple[Sample, ...]


def write_latency(folder: Path, before: MeasuredBefore, predictor: PredictorFigures | None) -> None:
    """Write a run's `latency.json`.

    Args:
        folder: the run directory.
        before: what the run will go on with.
        predictor: how good the predictor is, for readers; None, and no entry, without a latency budget.
    """
    content = {"profile": before.profile.to_json(), "samples": [each.to_json() for each in before.samples]}
    write_json(folder / LATENCY_FILE, content | ({"predictor": predictor.to_json()} if predictor else {}))


def read_latency(folder: Path) -> MeasuredBefore | None:
    """Read what a run goes on with; None where it measures no latency.

    Raises:
        UserError: the file is damaged.
    """
    return _read(
        folder,
        lambda content: MeasuredBefore(
            Profile.from_json(content["profile"]), tuple(map(Sample.from_json, content["samples"]))
        ),
    )


def read_predictor(folder: Path) -> PredictorFigures | None:
    """How good a run's latency predictor was when it began; None without a latency budget.

    Raises:
        UserError: the file is damaged.
    """
    return _read(
        folder,
        lambda content: PredictorFigures.from_json(content["predictor"]) if "predictor" in content else None,
    )


def _read(folder: Path, parse: Callable[[dict[str, Any]], Read]) -> Read | None:
    """What is made of the file's content; None where there is no file."""
    path = folder / LATENCY_FILE
    if not path.exists():
        return None
    try:
        return parse(json.loads(path.read_text()))
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(f"{path} is damaged: {error!r}.") from error

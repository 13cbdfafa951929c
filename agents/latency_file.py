"""What a run knew of its target when it began; a continued run begins with the same."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from amc.costs.latency.predictor import Sample
from amc.errors import UserError
from amc.files import write_json
from amc.targets import Profile

LATENCY_FILE = "latency.json"


@dataclass(frozen=True)
class MeasuredBefore:
    """Measurements that decide what a search does.

    Attributes:
        profile: channel steps and bits of the target.
        samples: the policies that the latency predictor was fitted to; none without a latency budget.
    """

    profile: Profile
    samples: tuple[Sample, ...]


def write_latency(folder: Path, profile: Profile, samples: Sequence[Sample]) -> None:
    """Write a run's `latency.json`."""
    content = {"profile": profile.to_json(), "samples": [sample.to_json() for sample in samples]}
    write_json(folder / LATENCY_FILE, content)


def read_latency(folder: Path) -> MeasuredBefore | None:
    """Read it; None where the run measures no latency.

    Raises:
        UserError: the file is damaged.
    """
    path = folder / LATENCY_FILE
    if not path.exists():
        return None
    try:
        content = json.loads(path.read_text())
        samples = tuple(Sample.from_json(sample) for sample in content["samples"])
        return MeasuredBefore(Profile.from_json(content["profile"]), samples)
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(f"{path} is damaged: {error!r}.") from error

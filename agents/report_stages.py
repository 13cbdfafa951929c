"""What came after a search: the fine-tuned network and its exported files, as columns of its report."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from agents.report_data import Record
from agents.report_text import percent, points
from amc.errors import UserError
from amc.files import read_json

TUNED_FOLDER, TUNED_FILE = "fine_tuned", "fine_tune.json"
TUNED = "fine-tuned"
TEST = "test "
"""What the names of further scores begin with in the figures of a fine-tuning."""


@dataclass(frozen=True)
class Stage:
    """One network or file that was made of the best policy.

    Attributes:
        name: "fine-tuned", or the name of a file.
        reward_score: score on the reward split, in [0, 1]; None of a file.
        test_score: score on the test split; of a file in its runtime, None where it was not measured.
        costs: cost name to absolute value; of a file its size in bytes.
        runtime: what ran the file; "" of a network.
        further: what else the task measures on the test split, by name; nothing of a file.
    """

    name: str
    reward_score: float | None
    test_score: float | None
    costs: Mapping[str, float]
    runtime: str = ""
    further: Mapping[str, float] = field(default_factory=dict)


def stages(record: Record) -> tuple[Stage, ...]:
    """The fine-tuned network of a run and its files; nothing where another policy was fine-tuned.

    Raises:
        UserError: the figures of the fine-tuning are damaged.
    """
    path = Path(record.folder) / TUNED_FOLDER / TUNED_FILE
    if record.best is None or not path.is_file():
        return ()
    content: Any = read_json(path)
    try:
        if content["settings"]["policy"] != record.best.policy.digest():
            return ()
        scores = content["scores"][TUNED]
        further = {name[len(TEST) :]: float(scores[name]) for name in scores if name.startswith(TEST)}
        tested, costs = float(scores["test"]), dict(content["costs"])
        network = Stage(TUNED, float(scores["reward"]), tested, costs, further=further)
        return (network, *(_file(row) for row in content["files"]))
    except (TypeError, KeyError, ValueError, AttributeError) as error:
        raise UserError(f"{path} holds no figures of a fine-tuning: {error!r}.") from error


def stage_sentences(record: Record) -> list[str]:
    """What fine-tuning has brought back, on the test split where the original's score is known there."""
    found = stages(record)
    if not found:
        return []
    original, tuned = record.original, found[0]
    if original.test_score is not None and tuned.test_score is not None:
        score, before, split = tuned.test_score, original.test_score, "test"
    else:
        assert tuned.reward_score is not None
        score, before, split = tuned.reward_score, original.reward_score, "reward"
    text = (
        f"Fine-tuned: {percent(score)} of {record.score_name} on the {split} split, {points(score - before)} "
        "from the original."
    )
    told = [
        f"{each.name} {percent(each.test_score)} in {each.runtime}" for each in found[1:] if each.test_score
    ]
    return [text + (f" As files: {', '.join(told)}." if told else "")]


def _file(row: Mapping[str, Any]) -> Stage:
    score = row.get("test_score")
    tested = None if score is None else float(score)
    return Stage(str(row["path"]), None, tested, {"size": float(row["size"])}, str(row.get("runtime", "")))

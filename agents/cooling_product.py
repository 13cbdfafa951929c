"""What a cooled run shows of its rounds: one log, one network, one table, all relative to the original."""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from torch import fx

from agents.cooling_nesting import Nested
from agents.log import EvaluationLog, Row
from agents.outcome import Outcome
from amc.compress import ChannelPruning, Compressor
from amc.errors import UserError
from amc.evaluate import Evaluator
from amc.files import read_json, write_json
from amc.inference import inference_form
from amc.policy import CompressionPolicy
from amc.slicing import clone_module

SUMMARY_FILE = "cooling.json"


class CooledLog(EvaluationLog):
    """The evaluations of all rounds, one after the other."""

    def append(self, row: Row) -> None:
        """Write a row as it is."""
        self._write(json.dumps(row.to_json()).encode() + b"\n")
        self._remember(row)


class CooledEvaluator(Evaluator):
    """Gives the one network that a cooled search has found: its weights do not follow from its policy.

    Args:
        evaluator: of the original network.
        nested: what was found.
    """

    def __init__(self, evaluator: Evaluator, nested: Nested):
        self._nested = nested
        super().__init__(
            evaluator.network,
            evaluator.space,
            evaluator.task,
            (ChannelPruning(nested.kept),),
            evaluator.costs,
            evaluator.calibration,
            None,
            str(evaluator.device),
            evaluator.precision,
        )

    def _calibrated(
        self, policy: CompressionPolicy, compressors: Sequence[Compressor]
    ) -> tuple[fx.GraphModule, fx.GraphModule]:
        """A copy of the network, and of the form that is scored.

        Raises:
            UserError: the policy is another one.
        """
        if policy.digest() != self._nested.policy.digest():
            raise UserError("A cooled search leaves the weights of one network: that of its own policy.json.")
        model = clone_module(self._nested.module).to(self.device)
        return model, inference_form(model)


def told_row(row: Row, offset: int, policy: CompressionPolicy, limits: Mapping[str, float]) -> Row:
    """A round's row as one of the whole search; it is feasible if it keeps the final budgets.

    Args:
        row: of the round.
        offset: evaluations of the rounds before.
        policy: the row's policy, told of the original.
        limits: cost name to the most that it may finally be.
    """
    within = all(row.costs[name] <= limit for name, limit in limits.items() if name in row.costs)
    values = {**vars(row), "index": offset + row.index, "best_index": offset + row.best_index}
    return Row(**{**values, "policy": policy, "feasible": row.feasible and within})


def outcomes_of(
    original: Outcome, found: list[Outcome], told: Callable[[CompressionPolicy], CompressionPolicy]
) -> list[Outcome]:
    """The before/after table: the original, then uniform and best network of the last round."""
    others = [replace(each, policy=told(each.policy)) for each in found if each.policy is not None]
    return [original, *others]


def read_outcomes(path: Path, policies: Mapping[str, CompressionPolicy]) -> list[Outcome]:
    """The table that was written; `policies` by the name of the outcome."""
    rows: Any = read_json(path)
    return [Outcome(policy=policies.get(row["name"]), **row) for row in rows]


def summarise(folder: Path, settings: Mapping[str, Any], row: Mapping[str, Any]) -> None:
    """Write a round into the summary of a cooled run, in its place."""
    path = folder / SUMMARY_FILE
    known: Any = read_json(path) if path.exists() else {"rounds": []}
    others = [each for each in known["rounds"] if each["round"] != row["round"]]
    rounds = sorted([*others, dict(row)], key=lambda each: int(each["round"]))
    write_json(path, {"settings": dict(settings), "rounds": rounds})


def shares_of(costs: Mapping[str, float], original: Mapping[str, float]) -> dict[str, float]:
    """Costs as fractions of the original's."""
    return {name: value / original[name] for name, value in costs.items() if original.get(name)}

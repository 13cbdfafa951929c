"""Regenerate the figures of the latency results, row by row; may be cut at any moment and repeated."""

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

if not __package__:  # started as a file: Python then looks in scripts/ and not in the folder above it
    sys.path[0] = str(Path(__file__).resolve().parents[1])

import torch

from amc.errors import UserError
from amc.targets.cache import FILES_VERSION
from envs.problem_config import ProblemConfig
from scripts.cli import run as run_script
from scripts.latency_rows import LatencyResults, Spec, command, plan
from scripts.latency_rows_search import joint_row
from scripts.latency_rows_targets import arm_row, predictor_row, profile_row
from scripts.latency_rows_tuned import curve_row, headline_row
from scripts.results_runner import Rows, Runner

MAKERS: dict[str, Callable[[LatencyResults, Spec], dict[str, Any]]] = {
    "predictor": predictor_row,
    "profile": profile_row,
    "joint": joint_row,
    "curve": curve_row,
    "headline": headline_row,
    "arm": arm_row,
}
HEADLINE_KEYS = (
    "network",
    "target",
    "budget",
    "label",
    "latency_ratio",
    "latency_ratio_cv",
    "test_accuracy_original",
    "test_accuracy_exported",
    "epochs",
    "processes",
    "unreachable",
)
JOINT_KEYS = (
    "network",
    "target",
    "budget",
    "variant",
    "label",
    "latency_ratio",
    "within_budget",
    "reliable",
    "test_accuracy",
    "reward_accuracy",
    "int8_share",
    "macs_fraction",
    "unreachable",
)


def main(options: LatencyResults) -> None:
    """Make the missing rows of the latency results, in order; may be cut anywhere and repeated."""
    runner(options).run(chosen(options), options)


def runner(options: LatencyResults) -> Runner[Spec]:
    """What makes and keeps the rows."""
    return Runner(
        options.out,
        key=lambda spec: row_id(options, spec),
        make=lambda spec: MAKERS[spec.part](options, spec),
        about=lambda spec: about(options, spec),
        summary=summary,
        prepare=lambda missing: prepare(options, missing),
    )


def chosen(options: LatencyResults) -> list[Spec]:
    """The rows that match the pattern, with or without the machine.

    Raises:
        UserError: there are none.
    """
    return runner(options).chosen(plan(), options.only)


def row_id(options: LatencyResults, spec: Spec) -> str:
    """The key of a row in the figures file."""
    return f"{spec.name}@{options.label}"


def about(options: LatencyResults, spec: Spec) -> dict[str, Any]:
    """What a row says of itself besides its fields."""
    by_default = ProblemConfig()
    searched = {"importance": by_default.importance, "reconstruct": by_default.reconstruct}
    return {
        "label": options.label,
        "files": FILES_VERSION,
        "command": command(options, spec),
        **(searched if spec.trained else {}),
    }


def prepare(options: LatencyResults, missing: list[Spec]) -> list[Spec]:
    """Refuse before any work what some row would only notice later, and set the threads.

    Raises:
        UserError: weights or data are missing, or the thread count makes no sense.
    """
    if min(options.threads, options.epochs) < 1:
        raise UserError("--threads and --epochs must be at least 1.")
    for network in sorted({spec.network for spec in missing if spec.trained}):
        if not options.weights(network).is_file():
            raise UserError(
                f"There is no weight file {options.weights(network)}: pass --weights-{network[-2:]}."
            )
    if any(spec.trained for spec in missing) and not options.data_root.is_dir():
        raise UserError(f"There is no folder {options.data_root} with cifar-10-batches-py: pass --data-root.")
    torch.set_num_threads(options.threads)
    return missing


def summary(rows: Rows) -> dict[str, Any]:
    """The keys that others read; of several machines the worst figure counts."""
    headlines = _rows_of(rows, "headline")
    correlations = [row["correlation"]["litert"]["pearson_log"] for row in _rows_of(rows, "arm")]
    return {
        "predictor_mape": predictor_mape(_rows_of(rows, "predictor")),
        "headline": [_cut(row, HEADLINE_KEYS) for row in headlines],
        "joint": [_cut(row, JOINT_KEYS) for row in _rows_of(rows, "joint")],
        "arm_correlation": min(correlations, default=None),
    }


def predictor_mape(rows: list[dict[str, Any]]) -> dict[str, dict[str, float]]:
    """Mean absolute relative error by network and target."""
    found: dict[str, dict[str, float]] = {}
    for row in rows:
        errors = found.setdefault(row["network"], {})
        errors[row["target"]] = max(row["mape"], errors.get(row["target"], 0.0))
    return found


def _rows_of(rows: Rows, part: str) -> list[dict[str, Any]]:
    return [row for row in rows.values() if row["part"] == part]


def _cut(row: dict[str, Any], keys: tuple[str, ...]) -> dict[str, Any]:
    return {key: row[key] for key in keys if key in row}


if __name__ == "__main__":
    torch.manual_seed(0)
    run_script(main)

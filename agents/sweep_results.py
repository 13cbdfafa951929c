"""What a sweep has found so far: one row a trial, as CSV and JSON, and score against cost as a drawing."""

import csv
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from agents.report_data import Record, load_record
from agents.report_figures import png
from agents.report_pareto import dominated, pareto_figure
from agents.report_text import status
from agents.run_config import CONFIG_FILE
from agents.sweep_grid import Trial
from agents.sweep_trial import is_finished
from amc.files import write_atomically, write_json

TABLE_FILES = ("results.json", "results.csv")
PARETO_FILE = "pareto.png"

Result = dict[str, Any]


@dataclass(frozen=True)
class Collected:
    """The trials of a sweep that have a run directory, and a row for each trial.

    Attributes:
        records: in the order of the trials.
        rows: as in the table's files.
    """

    records: tuple[Record, ...]
    rows: tuple[Result, ...]


def collect(trials: Sequence[Trial], folder: Path, errors: Mapping[str, str]) -> Collected:
    """Read the run directories of the trials, and write `results.json`, `results.csv` and `pareto.png`.

    Args:
        trials: all of the sweep's.
        folder: that holds their run directories, and gets the files.
        errors: what became of trials that failed.

    Returns:
        What was written. A row holds, where they are known: `trial`, `network`, `budget`, `searcher`, `seed`,
        `status`, `evaluations`, the score on the reward split of the original, the reference and the best
        network, those on the test split, each cost of the best network and its share of the original's,
        `measuring_seconds`, `cpu`, `dominated` (whether another trial's network of the same original is no
        worse in score and first cost, and better in one) and `error`.

    Raises:
        UserError: a run directory is damaged.
    """
    records = {
        trial.name: load_record(folder / trial.name)
        for trial in trials
        if (folder / trial.name / CONFIG_FILE).exists()
    }
    beaten = dominated(list(records.values()))
    rows = [
        _row(trial, records.get(trial.name), folder, errors.get(trial.name, ""), beaten) for trial in trials
    ]
    write_json(folder / TABLE_FILES[0], rows)
    write_atomically(folder / TABLE_FILES[1], _csv(rows).encode())
    drawn = [record for record in records.values() if record.best is not None]
    if drawn:
        write_atomically(folder / PARETO_FILE, png(pareto_figure(drawn)))
    return Collected(tuple(records.values()), tuple(rows))


def _row(trial: Trial, record: Record | None, folder: Path, error: str, beaten: Mapping[str, bool]) -> Result:
    config = trial.config
    row: Result = {
        "trial": trial.name,
        "network": trial.network,
        "budget": ", ".join(config.problem.budgets),
        "searcher": config.agent.algorithm,
        "seed": config.agent.seed,
        "status": "not started" if record is None else status(record),
    }
    if record is not None:
        # A searcher may have nothing left to propose before its evaluations are spent.
        if is_finished(folder / trial.name, config):
            row["status"] = "finished"
        row |= _figures(record)
        if str(record.folder) in beaten:
            row["dominated"] = beaten[str(record.folder)]
    return {**row, "status": "failed", "error": error} if error else row


def _figures(record: Record) -> Result:
    original, best = record.original, record.best
    row: Result = {"evaluations": len(record.log), "original_score": original.reward_score}
    if best is None or record.first is None:
        return row
    tests = {each.name: each.test_score for each in record.networks}
    costs = dict(best.costs)
    return row | {
        "reference_score": record.first.score,
        "best_score": best.score,
        "original_test_score": original.test_score,
        "best_test_score": tests.get(record.algorithm),
        **costs,
        **{f"{name}_share": value / original.costs[name] for name, value in costs.items()},
        "feasible": best.feasible,
        "measuring_seconds": round(sum(row.seconds for row in record.log.rows), 3),
        "cpu": record.facts["machine"].get("cpu", ""),
    }


def _csv(rows: Sequence[Result]) -> str:
    """Every column that some row has, in the order in which they are first met."""
    columns = list(dict.fromkeys(name for row in rows for name in row))
    text = io.StringIO()
    writer = csv.DictWriter(text, columns, restval="", lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()

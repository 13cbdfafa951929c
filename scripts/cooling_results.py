"""Regenerate the figures of the cooling results, row by row; may be cut at any moment and repeated."""

import sys
from pathlib import Path
from typing import Any

if not __package__:  # started as a file: Python then looks in scripts/ and not in the folder above it
    sys.path[0] = str(Path(__file__).resolve().parents[1])

import torch

from agents.cooling_product import SUMMARY_FILE
from agents.run import OUTCOMES_FILE, Run
from agents.run_config import read_facts
from agents.run_folder import run_lock
from amc.errors import UserError
from amc.files import read_json
from scripts.cli import run as run_script
from scripts.cooling_rows import (
    CoolingResults,
    Spec,
    command,
    last_epochs,
    plan,
    run_folder,
    search_config,
)
from scripts.results_runner import Rows, Runner
from scripts.results_runs import Figures, counted, read_seconds, searched, tuned_figures
from scripts.search_results import prepare
from scripts.search_rows import NETWORKS
from scripts.search_rows import Spec as SearchSpec

COLUMNS = (
    *("network", "budget", "searcher", "schedule", "seed", "reward_untuned", "test_untuned", "reward_tuned"),
    *("test_tuned", "macs_fraction", "feasible", "evaluations", "epochs", "seconds"),
)


def main(options: CoolingResults) -> None:
    """Make the missing rows of the cooling results, in order; may be cut anywhere and repeated."""
    if min(options.rounds, options.round_epochs) < 1:
        raise UserError("--rounds and --round-epochs must be at least 1.")
    rows = runner(options)
    rows.run(rows.chosen(plan(), options.only), options)


def runner(options: CoolingResults) -> Runner[Spec]:
    """What makes and keeps the rows."""
    return Runner(
        options.out,
        key=lambda spec: spec.name,
        make=lambda spec: cooling_row(options, spec),
        about=lambda spec: {"command": command(options, spec)},
        summary=summary,
        prepare=lambda missing: possible(options, missing),
    )


def possible(options: CoolingResults, missing: list[Spec]) -> list[Spec]:
    """The rows whose weights are here, with a sentence about the others; sets the threads."""
    here = prepare(options, [SearchSpec("table", spec.network) for spec in missing])
    networks = {spec.network for spec in here}
    return [spec for spec in missing if spec.network in networks]


def cooling_row(options: CoolingResults, spec: Spec) -> Figures:
    """Search, fine-tune what was found, and say what both have brought."""
    with searched(run_folder(options, spec), search_config(options, spec)) as run:
        found = searched_figures(run)
    with run_lock(run.folder), counted(run.folder) as spent:
        # As between rounds, every epoch makes views of its own: a few that are repeated would give the long
        # training of one shot fewer images than the short ones of the rounds have together.
        tuned = tuned_figures(run.folder, last_epochs(options, spec), views=0)
    seconds = spent()
    scores = tuned["scores"]
    return {
        **found,
        "reward_tuned": scores["fine-tuned"]["reward"],
        "test_tuned": scores["fine-tuned"]["test"],
        "epochs": options.epochs,
        "evaluations": options.evaluations,
        "seen": NETWORKS[spec.network].seen,
        "threads": options.threads,
        "tuning_seconds": round(seconds, 1),
        "seconds": found["search_seconds"] + seconds,
    }


def searched_figures(run: Run) -> Figures:
    """What a search has found before the last fine-tuning, and the rounds of one that had any."""
    outcomes: Any = read_json(run.folder / OUTCOMES_FILE)
    told = {row["name"]: row for row in outcomes}
    best, original = told[run.algorithm], told["original"]
    summary = run.folder / SUMMARY_FILE
    cooled: Any = read_json(summary) if summary.exists() else {"rounds": []}
    return {
        "original_reward": original["reward_score"],
        "original_test": original["test_score"],
        "reward_untuned": best["reward_score"],
        "test_untuned": best["test_score"],
        "macs_fraction": best["costs"]["macs"] / original["costs"]["macs"],
        "params_fraction": best["costs"]["params"] / original["costs"]["params"],
        "feasible": sum(row.feasible for row in run.log.rows),
        "rounds": cooled["rounds"],
        "reward_images": read_facts(run.folder)["reward_images"],
        # Those of the fine-tunings between rounds are in it.
        "search_seconds": max(read_seconds(run.folder).values(), default=0.0),
    }


def summary(rows: Rows) -> dict[str, Any]:
    """One object a row, for those who draw and compare."""
    return {"table": [{name: row[name] for name in COLUMNS} for row in rows.values()]}


if __name__ == "__main__":
    torch.manual_seed(0)
    run_script(main)

"""Regenerate the comparison of all searchers, row by row; may be cut at any moment and repeated."""

import sys
from pathlib import Path
from typing import Any

if not __package__:  # started as a file: Python then looks in scripts/ and not in the folder above it
    sys.path[0] = str(Path(__file__).resolve().parents[1])

import torch

from agents.log import Row as Evaluated
from agents.run import Run
from agents.run_config import read_facts
from scripts.cli import run as run_script
from scripts.results_page import read_figures
from scripts.results_runner import Row, Rows, Runner
from scripts.results_runs import Figures, read_seconds, searched
from scripts.search_results import prepare
from scripts.search_rows import NETWORKS
from scripts.search_rows_table import curve, found, original_scores, read_outcomes, reported
from scripts.searcher_rows import (
    SearcherResults,
    Spec,
    command,
    plan,
    run_folder,
    search_config,
    shared,
    with_table,
)
from scripts.searcher_tables import tables


def main(options: SearcherResults) -> None:
    """Make the missing rows of the comparison, in order; may be cut anywhere and repeated."""
    rows = runner(options)
    rows.run(rows.chosen(plan(with_table(rows.rows(), searches(options))), options.only), options)


def runner(options: SearcherResults) -> Runner[Spec]:
    """What makes and keeps the rows."""
    return Runner(
        options.out,
        key=lambda spec: spec.name,
        make=lambda spec: searcher_row(options, spec),
        about=lambda spec: {"command": command(options, spec)},
        summary=lambda rows: summary(options, rows),
        prepare=lambda missing: possible(options, missing),
    )


def possible(options: SearcherResults, missing: list[Spec]) -> list[Spec]:
    """The rows that the search table has, or whose weights are here; sets the threads."""
    known = [spec for spec in missing if taken(options, spec)]
    wanted = [spec for spec in missing if spec not in known]
    if not wanted:
        return known
    networks = {each.network for each in prepare(options, [spec.search for spec in wanted])}
    return [spec for spec in missing if spec in known or spec.network in networks]


def searcher_row(options: SearcherResults, spec: Spec) -> Figures:
    """One search: taken from the search table, or its best after half of the evaluations and after all."""
    known = taken(options, spec)
    if known:
        return known
    with searched(run_folder(options, spec), search_config(options, spec)) as run:
        seconds, outcomes = read_seconds(run.folder), read_outcomes(run)
        best = [found(run, count, seconds, outcomes) for count in reported(run, options)]
        return {
            **original_scores(outcomes),
            "best": [{**each, **cost_figures(run, spec, each["evaluations"])} for each in best],
            **curve(run.log),
            "reward_images": read_facts(run.folder)["reward_images"],
            "seen": NETWORKS[spec.network].seen,
            "threads": options.threads,
            "seconds": max(seconds.values(), default=0.0),
            **own_seconds(run),
        }


def taken(options: SearcherResults, spec: Spec) -> Row:
    """The figures of the same search in the search table; empty where it has none, or is to be made again."""
    return {} if options.again else shared(searches(options), spec, options.evaluations)


def searches(options: SearcherResults) -> Rows:
    """The rows of the search table."""
    rows: Rows = read_figures(options.table).get("rows", {})
    return rows


def cost_figures(run: Run, spec: Spec, evaluations: int) -> dict[str, Any]:
    """What the best policy of the first evaluations costs, and how many kept the budget."""
    rows = run.log.rows[:evaluations]
    best: Evaluated = run.log.rows[rows[-1].best_index]
    return {
        "cost_fraction": best.costs[spec.cost] / run.problem.original_costs[spec.cost],
        "feasible": sum(row.feasible for row in rows),
        "measured": sum(row.latency_source == "measured" for row in rows),
    }


def own_seconds(run: Run) -> dict[str, float]:
    """Seconds that evaluating has taken; the rest of a search is the searcher's own."""
    return {"evaluating_seconds": round(sum(row.seconds for row in run.log.rows), 1)}


def summary(options: SearcherResults, rows: Rows) -> dict[str, Any]:
    """The tables of the page: one object a row, with the column names as keys."""
    return {"tables": tables(with_table(rows, searches(options)))}


if __name__ == "__main__":
    torch.manual_seed(0)
    run_script(main)

"""Rows of the search results that search, and rows that fine-tune what a search has found."""

import time
from dataclasses import replace
from typing import Any

from agents.log import EvaluationLog
from agents.log import Row as Evaluated
from agents.run import OUTCOMES_FILE, Run
from agents.run_config import read_facts
from agents.run_folder import run_lock
from amc.errors import UserError
from amc.files import read_json
from scripts.results_page import read_figures
from scripts.results_runner import Row, Rows
from scripts.results_runs import Figures, read_seconds, searched, tuned_figures
from scripts.search_rows import (
    FIXED,
    HEADLINE_EPOCHS,
    NETWORKS,
    SEEDS,
    TUNED_EPOCHS,
    SearchResults,
    Spec,
    run_folder,
    search_config,
)

Outcomes = dict[str, dict[str, Any]]


def table_row(options: SearchResults, spec: Spec) -> Figures:
    """One search: its best policies after half of the evaluations and after all, and its curve."""
    with searched(run_folder(options, spec), search_config(options, spec)) as run:
        seconds, outcomes = read_seconds(run.folder), read_outcomes(run)
        return {
            **original_scores(outcomes),
            "best": [found(run, count, seconds, outcomes) for count in reported(run, options)],
            **curve(run.log),
            "reward_images": read_facts(run.folder)["reward_images"],
            "seen": NETWORKS[spec.network].seen,
            "threads": options.threads,
            "seconds": max(seconds.values(), default=0.0),
        }


def original_scores(outcomes: Outcomes) -> dict[str, float]:
    """The uncompressed network on both splits."""
    original = outcomes["original"]
    return {"original_reward": original["reward_score"], "original_test": original["test_score"]}


def read_outcomes(run: Run) -> Outcomes:
    """What a finished run has scored on the test split, by name."""
    outcomes: Any = read_json(run.folder / OUTCOMES_FILE)
    return {outcome["name"]: outcome for outcome in outcomes}


def reported(run: Run, options: SearchResults) -> list[int]:
    """Evaluations after which a search is looked at; a rule has nothing to say before its end."""
    return [len(run.log)] if run.algorithm in FIXED else sorted(set(options.checkpoints))


def found(run: Run, evaluations: int, seconds: dict[int, float], outcomes: Outcomes) -> Figures:
    """The best policy of the first evaluations; of a rule the best of its own, which the first is not."""
    rows = run.log.rows[:evaluations]
    own = rows[1:] or rows if run.algorithm in FIXED else rows
    best = max(own, key=lambda row: row.reward)
    return {
        "evaluations": evaluations,
        "found_at": best.index + 1,
        "reward_accuracy": best.score,
        "test_untuned": test_score(run, best, outcomes),
        "macs_fraction": best.costs["macs"] / run.problem.original_costs["macs"],
        "policy": best.digest,
        # A policy met again takes no time, and the end of a replayed search is not timed again.
        "seconds": max((taken for index, taken in seconds.items() if index < evaluations), default=0.0),
    }


def test_score(run: Run, row: Evaluated, outcomes: Outcomes) -> float:
    """A policy on the test split, before any fine-tuning; the best of the whole run has been scored."""
    final = run.log.best()
    if final is not None and final.digest == row.digest:
        return float(outcomes[run.algorithm]["test_score"])
    return float(run.task.score(run.evaluator.compressed(row.policy), "test"))


def curve(log: EvaluationLog) -> dict[str, list[float]]:
    """The steps of the best so far: evaluations from 1, and scores on the reward split."""
    steps = [row for row in log.rows if row.best_index == row.index]
    return {"improved_at": [row.index + 1 for row in steps], "best_so_far": [row.score for row in steps]}


def tuned_row(options: SearchResults, spec: Spec) -> Figures:
    """The median seed's best network after a short fine-tuning."""
    return fine_tuned(options, spec, TUNED_EPOCHS)


def headline_row(options: SearchResults, spec: Spec) -> Figures:
    """The median seed's best network after a longer fine-tuning."""
    return fine_tuned(options, spec, HEADLINE_EPOCHS)


def fine_tuned(options: SearchResults, spec: Spec, epochs: int) -> Figures:
    """Fine-tune the best network of the search with the median seed."""
    searches: Rows = read_figures(options.out).get("rows", {})
    chosen = median_search(spec, searches)
    with searched(run_folder(options, chosen), search_config(options, chosen)) as run:
        folder = run.folder
    started = time.perf_counter()
    with run_lock(folder):
        scores = tuned_figures(folder, epochs)["scores"]
    return {
        "seed": chosen.seed,
        "epochs": epochs,
        "original_test": scores["original"]["test"],
        "test_untuned": scores["compressed"]["test"],
        "test_tuned": scores["fine-tuned"]["test"],
        "reward_tuned": scores["fine-tuned"]["reward"],
        "seconds": round(time.perf_counter() - started, 1),
        "threads": options.threads,
    }


def median_search(spec: Spec, rows: Rows) -> Spec:
    """The search whose best score on the reward split is the median over the first seeds, the lower of two.

    Raises:
        UserError: a search that it must be compared with is missing.
    """
    seeds = SEEDS[:1] if spec.searcher in FIXED else NETWORKS[spec.network].seeds
    searches = [replace(spec, part="table", seed=seed) for seed in seeds]
    missing = [search.name for search in searches if search.name not in rows]
    if missing:
        raise UserError(f"it waits for {', '.join(missing)}.")
    ranked = sorted(searches, key=lambda search: final_score(rows[search.name]))
    return ranked[(len(ranked) - 1) // 2]


def final_score(row: Row) -> float:
    """The reward split's score of the best policy of a whole search."""
    return float(row["best"][-1]["reward_accuracy"])

"""Rows of the search results for the paper's other goals: the smallest within a drop, and few weights.

Both are shrunk to 20 minutes on four cores: fewer evaluations than the table's 200, and a few epochs of
fine-tuning where a published network has dozens.
"""

from pathlib import Path
from typing import Any

from agents.config import AgentConfig, SearchConfig
from agents.report_stages import TUNED_FILE
from agents.run import Run
from agents.run_config import RunConfig
from agents.run_folder import run_lock
from amc.files import read_json
from envs.problem_config import ProblemConfig
from scripts import prune_iteratively
from scripts.results_runs import Figures, counted, read_seconds, searched, tuned_figures
from scripts.search_rows import NETWORKS, SearchResults, Spec, run_folder, source
from scripts.search_rows_table import original_scores, read_outcomes

MAX_DROP = 0.5
"""Points of the reward split."""
SMALLEST_EVALUATIONS, SMALLEST_EPOCHS = 80, 3
SPARSE_EVALUATIONS, STAGE_EPOCHS = 40, 1
STAGES = (50, 35, 25)
"""Percent of the weights that are left at each stage before the last one, which is the budget's."""
STAGE_BATCH_SIZE, STAGE_LR = 128, 0.02
"""The batches of other fine-tunings here, at less than half of their rate, as a stage is a single epoch."""


def smallest_row(options: SearchResults, spec: Spec) -> Figures:
    """The network with the fewest parameters within the drop, and what a short fine-tuning makes of it."""
    reward: Any = spec.variant
    problem = ProblemConfig(goal="cost", minimize="params", max_drop=MAX_DROP, reward=reward)
    config = _config(options, spec, problem, SMALLEST_EVALUATIONS)
    with searched(run_folder(options, spec), config) as run:
        found = _found(options, spec, run)
    with counted(run.folder) as spent, run_lock(run.folder):
        scores = tuned_figures(run.folder, SMALLEST_EPOCHS)["scores"]
    return {
        **found,
        "max_drop": MAX_DROP,
        "epochs": SMALLEST_EPOCHS,
        "test_tuned": scores["fine-tuned"]["test"],
        "seconds": round(found["seconds"] + spent(), 1),
    }


def sparse_row(options: SearchResults, spec: Spec) -> Figures:
    """Densities found by a search, reached in stages that are fine-tuned one after the other."""
    problem = ProblemConfig(budget=(f"nonzeros={spec.budget}",))
    with searched(run_folder(options, spec), _config(options, spec, problem, SPARSE_EVALUATIONS)) as run:
        found = _found(options, spec, run)
    with counted(run.folder) as spent:
        scores = pruned_figures(run.folder)["scores"]
    return {
        **found,
        "epochs": STAGE_EPOCHS,
        "stages": {name: score for name, score in scores.items() if name != "original"},
        "test_tuned": scores["fine-tuned"]["test"],
        "seconds": round(found["seconds"] + spent(), 1),
    }


def _config(options: SearchResults, spec: Spec, problem: ProblemConfig, evaluations: int) -> RunConfig:
    return RunConfig(
        source(options, spec.network),
        problem,
        AgentConfig(algorithm=spec.searcher, seed=int(spec.seed)),
        SearchConfig(evaluations=min(evaluations, options.evaluations)),
    )


def _found(options: SearchResults, spec: Spec, run: Run) -> Figures:
    """What a finished search has found, before any fine-tuning, and where it started."""
    outcomes, best = read_outcomes(run), run.log.best()
    assert best is not None
    return {
        **original_scores(outcomes),
        "evaluations": len(run.log),
        "reward_accuracy": best.score,
        "test_untuned": outcomes[run.algorithm]["test_score"],
        "test_uniform": outcomes["uniform"]["test_score"],
        "kept": {name: value / run.problem.original_costs[name] for name, value in best.costs.items()},
        "feasible": best.feasible,
        "seen": NETWORKS[spec.network].seen,
        "threads": options.threads,
        "seconds": max(read_seconds(run.folder).values(), default=0.0),
    }


def pruned_figures(run: Path) -> Figures:
    """Go through the stages of a run's densities, or take what an earlier call made; a cut one goes on."""
    settings = prune_iteratively.PruneIteratively(
        run,
        stages=STAGES,
        epochs=STAGE_EPOCHS,
        batch_size=STAGE_BATCH_SIZE,
        lr=STAGE_LR,
        force=True,
        resume=any((run / "pruned_iteratively").glob("stage_*")),
    )
    if not (settings.folder / TUNED_FILE).exists():
        prune_iteratively.main(settings)
    figures = read_json(settings.folder / TUNED_FILE)
    assert isinstance(figures, dict)
    return figures

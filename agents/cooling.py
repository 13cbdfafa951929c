"""Cooled runs, new and continued: what `agents.run` hands on to where the settings ask for rounds."""

import shutil
from pathlib import Path

from torch import nn

from agents.cooling_rounds import first_config
from agents.cooling_run import CooledRun
from agents.run import load_run, run_facts, start_run
from agents.run_config import CONFIG_FILE, RunConfig, continued, has_facts, write_config
from amc.costs.latency.sampling import Progress
from amc.errors import UserError
from amc.tasks.base import Task

FIRST_ROUND = "round-1"


def start_cooled(
    folder: Path, config: RunConfig, model: nn.Module | None, task: Task | None, progress: Progress
) -> CooledRun:
    """Set up a cooled run; `agents.run.start_run` explains the arguments.

    Raises:
        UserError: anything does not fit.
    """
    first_config(config)  # refuses before anything is written
    folder.mkdir(parents=True, exist_ok=True)
    # Before the first round: a process that is killed while that is set up leaves a run to go on with.
    write_config(folder, config, {})
    try:
        return _with_first_round(folder, config, model, task, progress)
    except BaseException:
        shutil.rmtree(folder)
        raise


def load_cooled(
    folder: Path,
    config: RunConfig,
    model: nn.Module | None,
    task: Task | None,
    evaluations: int | None,
    time_budget: float | None,
) -> CooledRun:
    """Open a cooled run; `agents.run.load_run` explains the arguments.

    Raises:
        UserError: what it names is gone or not what it was, or its evaluations should change.
    """
    if evaluations not in (None, config.search.evaluations):
        raise UserError(
            f"{folder} has divided its {config.search.evaluations} evaluations among its rounds, so their "
            "number cannot be changed."
        )
    config = continued(config, None, time_budget)
    return _with_first_round(folder, config, model, task, lambda done, total: None)


def _with_first_round(
    folder: Path, config: RunConfig, model: nn.Module | None, task: Task | None, progress: Progress
) -> CooledRun:
    """The run with its first round, which is begun where that has not happened yet."""
    round_folder = folder / FIRST_ROUND
    if (round_folder / CONFIG_FILE).exists():
        first = load_run(round_folder, model, task)
    else:
        if round_folder.exists():
            shutil.rmtree(round_folder)
        first = start_run(round_folder, first_config(config), model, task, progress)
    try:
        if not has_facts(folder):
            write_config(folder, config, run_facts(first.problem))
        return CooledRun(folder, config, first)
    except BaseException:
        first.problem.close()
        raise

"""One trial of a sweep, in the process that was given it: an ordinary run on cores of its own."""

from collections.abc import Sequence
from pathlib import Path

from agents.latency_file import LATENCY_FILE
from agents.log import EvaluationLog
from agents.run import LOG_FILE, OUTCOMES_FILE, Run, load_run, start_run
from agents.run_config import CONFIG_FILE, RunConfig, read_config
from agents.search import Callback
from agents.sweep_grid import Trial
from amc.errors import UserError
from amc.targets.core_lock import leased_cores


def run_trial(trial: Trial, sweep: Path, callbacks: Sequence[Callback] = ()) -> None:
    """Search to the end of a trial's budget, from wherever its run directory is.

    The process, its threads and its children stay on cores that no other trial of the machine has, so that a
    latency is never measured beside another trial's work.

    Args:
        trial: what to search for.
        sweep: the folder of the run directories; it exists, on a cluster on every machine.
        callbacks: called with each new evaluation.

    Raises:
        UserError: the folder is not there, or the trial fits neither the machine, the network nor its folder.
    """
    if not sweep.is_dir():
        raise UserError(f"There is no folder {sweep} here: --runs has to be one that all machines share.")
    with leased_cores(trial.cores):
        run = _opened(trial, sweep / trial.name)
        try:
            run.search(callbacks)
        finally:
            run.problem.close()


def is_finished(folder: Path, config: RunConfig) -> bool:
    """Whether a run has ended with nothing left to do: its evaluations are spent, or its searcher is."""
    log, outcomes = folder / LOG_FILE, folder / OUTCOMES_FILE
    if not (log.exists() and outcomes.exists()) or outcomes.stat().st_mtime_ns < log.stat().st_mtime_ns:
        return False
    if len(EvaluationLog(log)) >= config.search.evaluations:
        return True
    before = read_config(folder).search
    return before.evaluations == config.search.evaluations and before.time_budget is None


def _opened(trial: Trial, folder: Path) -> Run:
    """The run of a trial, new or as it was left."""
    if (folder / CONFIG_FILE).exists():
        search = trial.config.search
        return load_run(folder, evaluations=search.evaluations, time_budget=search.time_budget)
    _clear(folder)
    return start_run(folder, trial.config)


def _clear(folder: Path) -> None:
    """Take away what a process left that was killed while it set a run up."""
    for pattern in (LATENCY_FILE, f".{LATENCY_FILE}.*", f".{CONFIG_FILE}.*"):
        for left in folder.glob(pattern):
            left.unlink()

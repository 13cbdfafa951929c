"""Trials on Ray Tune: on this machine's cores, or on a cluster's."""

import os
import shutil
import sys
import traceback
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from types import ModuleType
from typing import Any

from agents.log import EvaluationLog, Row
from agents.ray_session import check_ray, ray_session
from agents.sweep_grid import Trial
from agents.sweep_trial import is_finished, run_trial
from amc.errors import UserError
from amc.plugins import one_line
from amc.targets.machine import allowed_cores

TUNE_FOLDER = ".tune"
"""Ray Tune's own notes, taken away at the end: what a trial is and how far it is says its run directory."""
DEATHS = 10
"""Deaths of its process that a trial survives: a machine is lost now and then, lack of memory comes again."""
SWITCHES = {
    "RAY_AIR_NEW_OUTPUT": "0",
    "RAY_CHDIR_TO_TRIAL_DIR": "0",
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",
    "TUNE_DISABLE_SIGINT_HANDLER": "1",
    "TUNE_DISABLE_AUTO_CALLBACK_SYNCER": "1",
}
"""Tune without output, files and a Ctrl-C of its own, in the working directory that it was started in."""

Listener = Callable[[str, dict[str, Any]], None]
"""Hears the name of a trial and what it reports: `evaluations` and `score`, at its end perhaps `error`."""


def run_sweep(
    trials: Sequence[Trial],
    folder: Path,
    *,
    address: str | None = None,
    cores: int | None = None,
    listener: Listener = lambda name, news: None,
) -> dict[str, str]:
    """Run the trials that are not finished; each starts, or goes on, in its own run directory.

    Args:
        trials: checked by `check_trials`.
        folder: of the run directories, on a cluster one that all machines share; made here.
        address: of a running Ray cluster; None: this machine.
        cores: of this machine that may be used at once; by default those that this process may use.
        listener: hears how far the trials are.

    Returns:
        Name of each trial that failed to the sentence that says why; the others are not touched by it.

    Raises:
        UserError: Ray is missing or cannot be reached, or a trial fits no machine.
        KeyboardInterrupt: Ctrl-C; repeated, the call goes on with what is left.
    """
    check_ray("A sweep", "ray.tune")
    folder = folder.absolute()
    folder.mkdir(parents=True, exist_ok=True)
    left = [trial for trial in trials if not is_finished(folder / trial.name, trial.config)]
    if not left:
        return {}
    os.environ.update(SWITCHES)
    try:
        with ray_session(address, cores or len(allowed_cores())) as ray:
            _check_room(ray, left)
            return _tune(left, folder, listener)
    finally:
        shutil.rmtree(folder / TUNE_FOLDER, ignore_errors=True)


def _check_room(ray: ModuleType, trials: Sequence[Trial]) -> None:
    """Refuse what Ray would wait for without end."""
    largest = max(int(node["Resources"].get("CPU", 0)) for node in ray.nodes() if node["Alive"])
    wide = next((trial for trial in trials if trial.cores > largest), None)
    if wide is not None:
        raise UserError(
            f"{wide.name} takes {wide.cores} cores, by --threads or --workers, and the largest machine here "
            f"gives {largest}."
        )


def _tune(trials: Sequence[Trial], folder: Path, listener: Listener) -> dict[str, str]:
    from ray import tune

    by_name = {trial.name: trial for trial in trials}
    here = tune.with_parameters(_trainable, trials=by_name, folder=folder, command=tuple(sys.argv))
    placed = tune.with_resources(here, lambda config: _cores(tune, by_name[config["trial"]].cores))
    tuner = tune.Tuner(
        placed,
        param_space={"trial": tune.grid_search(list(by_name))},
        run_config=tune.RunConfig(
            name=TUNE_FOLDER,
            storage_path=str(folder),
            failure_config=tune.FailureConfig(max_failures=DEATHS),
            callbacks=[_callback(tune, listener)],
            verbose=0,
        ),
    )
    errors = {}
    results = tuner.fit()
    for result in (results[place] for place in range(len(results))):
        name, news = str((result.config or {})["trial"]), result.metrics or {}
        if result.error is not None:
            errors[name] = f"its process died {DEATHS + 1} times: {one_line(result.error)}"
        elif "error" in news:
            errors[name] = news["error"]
    return errors


def _cores(tune: ModuleType, count: int) -> Any:
    return tune.PlacementGroupFactory([{"CPU": float(count)}])


def _trainable(
    config: dict[str, str], trials: dict[str, Trial], folder: Path, command: tuple[str, ...]
) -> None:
    """What a process of Tune runs. Whatever is wrong with a trial is a result: another try would not help."""
    from ray import tune

    # Kept in the run directory, where Ray's own command line would say nothing.
    sys.argv = list(command)
    end: dict[str, Any] = {"ended": True}
    try:
        run_trial(trials[config["trial"]], folder, [_reporter(tune)])
    except UserError as error:
        end["error"] = " ".join(str(error).split())
    except Exception as error:
        end |= {"error": f"{type(error).__name__}: {one_line(error)}", "trace": traceback.format_exc()}
    tune.report(end)


def _reporter(tune: ModuleType) -> Callable[[Row, EvaluationLog], None]:
    def report(row: Row, log: EvaluationLog) -> None:
        best = log.rows[row.best_index]
        tune.report({"evaluations": len(log), "score": best.score})

    return report


def _callback(tune: ModuleType, listener: Listener) -> Any:
    class Hears(tune.Callback):  # type: ignore[name-defined]
        def on_trial_result(self, iteration: int, trials: Any, trial: Any, result: Any, **info: Any) -> None:
            with suppress(BrokenPipeError):  # of the terminal: no reason to end the trials
                listener(trial.config["trial"], result)

        def __reduce__(self) -> tuple[Any, tuple[()]]:
            return tune.Callback, ()  # Tune keeps a copy on disk, where a terminal cannot be written

    return Hears()

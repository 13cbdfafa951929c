"""Searches and fine-tunings behind rows of results: made, continued or taken as they are."""

import math
import time
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

from agents.log import EvaluationLog, Row
from agents.report_stages import TUNED_FILE
from agents.run import Run, load_run, start_run
from agents.run_config import CONFIG_FILE, RunConfig, check_refits, read_config
from amc.errors import UserError
from amc.files import read_json, write_json
from scripts import fine_tune
from scripts.main_job import finished
from scripts.progress import MeasuringProgress, SearchProgress

SECONDS_FILE = "seconds.json"
TUNING_SECONDS_FILE = "tuning_seconds.json"
LEAST_VIEWS, EPOCHS_OF_A_VIEW = 3, 3
"""Augmented versions of the training images in a fine-tuning: more of them the longer it takes."""
FREE_TO_CHANGE = ("schedule_evaluations", "start_from")
"""Settings in which a continued search differs from what its row asks for: more evaluations than it was
started with, and a path that may be written in more than one way."""

Figures = dict[str, Any]


class Unreachable(Exception):
    """No legal network keeps a budget; says so in a sentence."""


class Clock:
    """Seconds that a search had taken after each evaluation, the searcher's own included; survives cuts.

    A callback of `search`.

    Args:
        folder: the run directory.
    """

    def __init__(self, folder: Path):
        self._path = folder / SECONDS_FILE
        self._taken = read_seconds(folder)
        self._since = time.perf_counter()

    def __call__(self, row: Row, log: EvaluationLog) -> None:
        """Hear of a new evaluation."""
        now = time.perf_counter()
        spent = max(self._taken.values(), default=0.0) + now - self._since
        self._since, self._taken[row.index] = now, round(spent, 3)
        write_json(self._path, self._taken)


def read_seconds(folder: Path) -> dict[int, float]:
    """Index of an evaluation to the seconds until its end; empty without a search."""
    path = folder / SECONDS_FILE
    stored = read_json(path) if path.exists() else {}
    assert isinstance(stored, dict)
    return {int(index): float(seconds) for index, seconds in stored.items()}


@contextmanager
def counted(folder: Path) -> Iterator[Callable[[], float]]:
    """Seconds of what is done inside, those of interrupted calls included; a killed call's are lost.

    Args:
        folder: the run directory that is fine-tuned; the seconds are kept in it.
    """
    path, since = folder / TUNING_SECONDS_FILE, time.perf_counter()
    stored = read_json(path) if path.exists() else {"seconds": 0.0}
    assert isinstance(stored, dict)
    before = float(stored["seconds"])

    def spent() -> float:
        return before + time.perf_counter() - since

    try:
        yield spent
    finally:
        write_json(path, {"seconds": round(spent(), 3)})


@contextmanager
def searched(folder: Path, config: RunConfig, free: Collection[str] = ()) -> Iterator[Run]:
    """A finished run: opened, continued or made; closed at the end.

    Args:
        folder: the run directory.
        config: what the row asks for.
        free: settings that a run which is there may have otherwise.

    Raises:
        Unreachable: no legal network keeps the budget.
        UserError: the folder holds a search of another problem or by another agent.
        KeyboardInterrupt: the search was interrupted.
    """
    run = opened(folder, config, free)
    try:
        if not finished(folder, config.search.evaluations):
            complete(run)
        yield run
    finally:
        run.problem.close()


def opened(folder: Path, config: RunConfig, free: Collection[str] = ()) -> Run:
    """The run of a folder, new or as it was left."""
    if (folder / CONFIG_FILE).exists():
        check_same(folder, config, free)
        check_refits(folder)
        return load_run(folder, evaluations=config.search.evaluations)
    folder.parent.mkdir(parents=True, exist_ok=True)
    with MeasuringProgress("measuring random policies") as measuring:
        try:
            return start_run(folder, config, progress=measuring)
        except UserError as error:
            # A figure of the comparison, unlike all else that can be wrong.
            if "cannot be reached" in str(error):
                raise Unreachable(str(error)) from error
            raise


def check_same(folder: Path, config: RunConfig, free: Collection[str]) -> None:
    """Refuse a run directory whose search is not the row's; where it ran, and its evaluations, may differ.

    Raises:
        UserError: a setting of the problem, of the agent or of the rounds differs.
    """
    stored, free = read_config(folder), {*FREE_TO_CHANGE, *free}
    pairs = ((stored.problem, config.problem), (stored.agent, config.agent), (stored.cooling, config.cooling))
    changed = [
        f"{name} was {getattr(before, name)}, not {value}"
        for before, wanted in pairs
        for name, value in vars(wanted).items()
        if name not in free and getattr(before, name) != value
    ]
    if changed:
        raise UserError(
            f"{folder} holds a search with other settings ({'; '.join(changed)}): give another folder as "
            "--runs, or delete it."
        )


def complete(run: Run) -> None:
    """Spend the evaluations that are left."""
    with SearchProgress(run.config.search.evaluations, run.log) as progress:
        ending = run.search(callbacks=(progress, Clock(run.folder))).ending
    if ending == "interrupted":
        raise KeyboardInterrupt("; repeat the command to go on")


def tuned_folder(run: Path, epochs: int) -> Path:
    """Where a fine-tuning of the best network of a run is kept."""
    return run / f"fine_tuned_{epochs}"


def tuned_figures(
    run: Path, epochs: int, views: int | None = None, float_epochs: int | None = None
) -> Figures:
    """Fine-tune the best network of a run, or take what an earlier call made; an unfinished one goes on.

    Args:
        run: the run directory.
        epochs: of the fine-tuning.
        views: augmented versions of the training images, 0 for new ones in each epoch.
        float_epochs: that quantize nothing. This and `views` are those of the `recipe` by default.
    """
    folder = tuned_folder(run, epochs)
    if not (folder / TUNED_FILE).exists():
        resume = (folder / fine_tune.CHECKPOINT_FILE).is_file()
        chosen = recipe(run, folder, epochs, resume)
        chosen = chosen if views is None else replace(chosen, views=views)
        fine_tune.main(chosen if float_epochs is None else replace(chosen, float_epochs=float_epochs))
    figures = read_json(folder / TUNED_FILE)
    assert isinstance(figures, dict)
    return figures


def recipe(run: Path, folder: Path, epochs: int, resume: bool) -> fine_tune.FineTune:
    """How published networks are fine-tuned: mostly in floats and on a few views, which halves the time.

    Chosen before the first figure was seen, and not tuned.
    """
    return fine_tune.FineTune(
        run,
        folder,
        epochs=epochs,
        batch_size=128,
        lr=0.05,
        float_epochs=epochs - max(1, epochs // 6),
        views=max(LEAST_VIEWS, math.ceil(epochs / EPOCHS_OF_A_VIEW)),
        force=True,
        resume=resume,
    )

"""Searches and fine-tunings behind rows of results: made, continued or taken as they are."""

import math
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

from agents.log import EvaluationLog, Row
from agents.report_stages import TUNED_FILE
from agents.run import Run, load_run, start_run
from agents.run_config import CONFIG_FILE, RunConfig
from amc.errors import UserError
from amc.files import read_json, write_json
from scripts import fine_tune
from scripts.main_job import finished
from scripts.progress import MeasuringProgress, SearchProgress

SECONDS_FILE = "seconds.json"
LEAST_VIEWS, EPOCHS_OF_A_VIEW = 3, 3
"""Augmented versions of the training images in a fine-tuning: more of them the longer it takes."""

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
def searched(folder: Path, config: RunConfig) -> Iterator[Run]:
    """A finished run: opened, continued or made; closed at the end.

    Raises:
        Unreachable: no legal network keeps the budget.
        KeyboardInterrupt: the search was interrupted.
    """
    run = opened(folder, config)
    try:
        if not finished(folder, config.search.evaluations):
            complete(run)
        yield run
    finally:
        run.problem.close()


def opened(folder: Path, config: RunConfig) -> Run:
    """The run of a folder, new or as it was left."""
    if (folder / CONFIG_FILE).exists():
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

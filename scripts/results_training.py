"""Trainings behind rows of results: made, continued where they were cut, or taken as they are."""

from dataclasses import asdict
from pathlib import Path

from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn
from torch import nn

from amc.data.images import ImageData
from amc.models import load_weights, save_weights
from amc.training import Epoch, Loss, Recipe, fit
from amc.training_checkpoint import load_checkpoint, save_checkpoint
from scripts.cli import console


def train_once(
    name: str, path: Path, model: nn.Module, data: ImageData, recipe: Recipe, loss: Loss
) -> float | None:
    """Train a network in place, go on where that was cut, or load what is finished.

    Args:
        name: of the row, for the progress bar; a checkpoint of another row is not taken.
        path: file for the weights; the checkpoint lies beside it.
        model: ends in evaluation mode.
        data: its train split is used.
        recipe: how.
        loss: of a batch.

    Returns:
        The last epoch's loss; None where nothing was left to train.
    """
    unfinished, settings = path.with_suffix(".checkpoint"), {"row": name, **asdict(recipe)}
    if path.exists():
        load_weights(model, path)
        model.eval()
        return None
    start, momentum = load_checkpoint(unfinished, model, settings) if unfinished.exists() else (0, {})
    with Progress(
        TextColumn(name), BarColumn(), TimeRemainingColumn(), console=console(), transient=True
    ) as progress:
        bar = progress.add_task("", total=recipe.epochs, completed=start)

        def on_epoch(epoch: Epoch) -> None:
            save_checkpoint(unfinished, model, epoch, settings)
            progress.update(bar, completed=epoch.number)

        done = fit(model, data, recipe, loss=loss, start_epoch=start, momentum=momentum, on_epoch=on_epoch)
    path.parent.mkdir(parents=True, exist_ok=True)
    save_weights(model, path)
    unfinished.unlink(missing_ok=True)
    return done[-1].loss if done else None

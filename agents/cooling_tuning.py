"""Fine-tuning between two rounds of a cooled search; an interrupted one goes on after its last epoch."""

from collections.abc import Callable
from pathlib import Path

from torch import fx, nn

from agents.config import CoolingConfig
from agents.run import Run
from amc.errors import UserError
from amc.policy import CompressionPolicy
from amc.precision import Precision, arithmetic
from amc.recovery.fine_tune import DEFAULT_RECIPE, fine_tune, settle_statistics
from amc.training import Epoch, Recipe
from amc.training_checkpoint import load_checkpoint, save_checkpoint

CHECKPOINT_FILE = "checkpoint.safetensors"


def tuned(
    run: Run,
    policy: CompressionPolicy,
    teacher: nn.Module,
    settings: CoolingConfig,
    seed: int,
    folder: Path,
    on_epoch: Callable[[Epoch], None],
) -> tuple[fx.GraphModule, float]:
    """The network of a round's policy in floats, fine-tuned and taught by the original.

    Args:
        run: the round.
        policy: without bits.
        teacher: the original network; its mode is changed to evaluation.
        settings: epochs, learning rate and batch size.
        seed: of the order of images and their augmentation.
        folder: where the checkpoint lies; is made if it does not exist.
        on_epoch: called after each epoch.

    Returns:
        The network on the device where policies are scored, in evaluation mode, and its score on the reward
        split.
    """
    recipe = Recipe(
        epochs=settings.round_epochs,
        batch_size=settings.round_batch_size,
        lr=settings.round_lr,
        weight_decay=DEFAULT_RECIPE.weight_decay,
        seed=seed,
    )
    precision = arithmetic(run.config.problem.precision, run.evaluator.device)
    checkpoint, shared = folder / CHECKPOINT_FILE, _shared(recipe, precision, policy)
    model = run.evaluator.compressed(policy)
    start, momentum = load_checkpoint(checkpoint, model, shared) if checkpoint.is_file() else (0, {})
    _make(folder)

    def after_epoch(epoch: Epoch) -> None:
        save_checkpoint(checkpoint, model, epoch, shared)
        on_epoch(epoch)

    fine_tune(
        model,
        teacher.to(run.evaluator.device),
        run.task,
        recipe,
        precision=precision,
        start_epoch=start,
        momentum=momentum,
        on_epoch=after_epoch,
    )
    return model, settle_statistics(model, run.task, run.evaluator.calibration)


def _shared(recipe: Recipe, precision: Precision, policy: CompressionPolicy) -> dict[str, object]:
    """What a continued fine-tuning must share with the interrupted one."""
    chosen = {name: getattr(recipe, name) for name in ("epochs", "batch_size", "lr", "weight_decay", "seed")}
    return {**chosen, "precision": precision, "policy": policy.digest()}


def _make(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"The folder {folder} cannot be made: {error.strerror}.") from error

"""Fine-tuning of a compressed network that learns from the original one, quantized where the policy says so.

The compressed network is trained as it will run: every forward pass quantizes weights and activations, and
gradients pass straight through. The original teaches it with softened outputs (Hinton, Vinyals and Dean 2015,
"Distilling the Knowledge in a Neural Network"): L = a T^2 KL(teacher_T || student_T) + (1 - a) L_task.
"""

import hashlib
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, fx, nn
from torch.nn import functional as F

from amc.errors import UserError
from amc.inference import fold_norms, inference_form
from amc.precision import Precision, computes_in_bfloat16, loss_in_bfloat16
from amc.pruning.fine_grained import hold_zeros
from amc.quantization.modules import (
    QuantizedConv2d,
    QuantizedLinear,
    pause_quantizers,
    recalibrate,
)
from amc.quantization.training_memory import TrainingMemory
from amc.recovery.calibrate import calibrate
from amc.recovery.restate import restate_norms
from amc.tasks.base import Task
from amc.training import Epoch, Loss, Recipe, device_of, fit

DEFAULT_RECIPE = Recipe(epochs=4, batch_size=64, lr=0.01, weight_decay=1e-4)
"""For a trained network that has lost channels or bits: a tenth of the learning rate it was trained with."""

STATISTICS_IMAGES = 1000
"""Whose statistics a training starts from: it takes those of its own batches then."""
REFIT_EVERY = 10
"""Steps between two fits of the weights' scales: 1 % of the time of a step, and as good as after each one.

A scale that is left behind clips weights that grow; fitted only at the end it changes the network more than
the batch norms can follow."""


@dataclass(frozen=True)
class Distillation:
    """How the original teaches the compressed network.

    Attributes:
        temperature: divides the logits of both before the softmax; the larger, the more the small ones count.
        alpha: share of the teacher in the loss, 0 to 1; with 0 it is not asked at all.
    """

    temperature: float = 4.0
    alpha: float = 0.9

    def __post_init__(self) -> None:
        """Refuse what has no meaning."""
        if not (math.isfinite(self.temperature) and self.temperature > 0):
            raise UserError(f"The temperature of a distillation must be positive, not {self.temperature}.")
        if not 0 <= self.alpha <= 1:
            raise UserError(f"The teacher's share of the loss must lie in [0, 1], and {self.alpha} does not.")


def teaching_loss(student: Tensor, teacher: Tensor, temperature: float) -> Tensor:
    """T^2 KL(softmax(teacher / T) || softmax(student / T)), the mean over a batch; a scalar.

    The factor T^2 keeps its gradients as large as those of the labels, whatever T is (section 2).

    Args:
        student: logits [B, classes].
        teacher: logits [B, classes].
        temperature: T.
    """
    said, wanted = (F.log_softmax(logits.float() / temperature, dim=1) for logits in (student, teacher))
    return temperature**2 * F.kl_div(said, wanted, reduction="batchmean", log_target=True)


def distilled(teacher: nn.Module, task_loss: Loss, settings: Distillation) -> Loss:
    """The loss alpha T^2 KL + (1 - alpha) task_loss; the student runs once a batch, and so does the teacher.

    Args:
        teacher: in evaluation mode, on the device of the batches.
        task_loss: `loss(model, x, y)`, which asks the model for its outputs on x.
        settings: temperature and alpha.
    """
    if settings.alpha == 0:
        return task_loss

    def loss(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
        with torch.no_grad():
            wanted = teacher(x)
        said = model(x)
        if not isinstance(said, Tensor) or said.dim() != 2:
            raise UserError("Only a classifier's logits [N, classes] can be distilled: use --alpha 0.")
        taught = settings.alpha * teaching_loss(said, wanted, settings.temperature)
        return taught + (1 - settings.alpha) * task_loss(_Said(said), x, y)

    return loss


def teaching_form(teacher: nn.Module) -> nn.Module:
    """A teacher in evaluation mode, on a CPU in the form that answers soonest: it is never trained."""
    if not isinstance(teacher, fx.GraphModule) or device_of(teacher).type != "cpu":
        return teacher.eval()
    fast = inference_form(teacher)
    fold_norms(fast)
    return fast


class RememberingTeacher(nn.Module):
    """A teacher that looks at each batch once: where epochs repeat batches, its answers are kept.

    Args:
        teacher: in evaluation mode.

    Attributes:
        answers: outputs by a digest of the batch.
    """

    def __init__(self, teacher: nn.Module):
        super().__init__()
        self.teacher = teacher
        self.answers: dict[bytes, Tensor] = {}

    def forward(self, x: Tensor) -> Tensor:
        """The teacher's outputs on x [N, ...]."""
        digest = hashlib.blake2b(x.detach().cpu().contiguous().numpy().tobytes()).digest()
        if digest not in self.answers:
            self.answers[digest] = self.teacher(x)
        return self.answers[digest]


class _Said(nn.Module):
    """Stands in for a model whose outputs on a batch are known already."""

    def __init__(self, outputs: Tensor):
        super().__init__()
        self.outputs = outputs

    def forward(self, x: Tensor) -> Tensor:
        return self.outputs


def refit_weight_scales(model: nn.Module) -> None:
    """Fit the quantizers that do not follow their weights by themselves, in place."""
    for module in model.modules():
        if isinstance(module, QuantizedConv2d | QuantizedLinear) and not module.quantizer.follows:
            module.quantizer.fit(module.weight)


def fine_tune(
    model: nn.Module,
    teacher: nn.Module,
    task: Task,
    recipe: Recipe = DEFAULT_RECIPE,
    distillation: Distillation | None = None,
    *,
    task_loss: Loss | None = None,
    refit_every: int = REFIT_EVERY,
    float_epochs: int = 0,
    calibration: Sequence[Tensor] = (),
    precision: Precision = "float32",
    memory: TrainingMemory | None = None,
    start_epoch: int = 0,
    momentum: Mapping[str, Tensor] | None = None,
    on_step: Callable[[int, int], None] | None = None,
    on_epoch: Callable[[Epoch], None] | None = None,
) -> list[Epoch]:
    """Train a compressed network in place on the train split, taught by the original.

    Activation ranges stay as they were calibrated. Batch norms end with the running statistics of training;
    see `settle_statistics`.

    Args:
        model: compressed and calibrated (`Evaluator.compressed`); ends in evaluation mode.
        teacher: the original network, on the same device; its mode is changed to evaluation.
        task: its loss, its train split and its unlabeled images are used, and nothing else of it.
        recipe: epochs, learning rate and so on.
        distillation: temperature and weight of the teacher.
        task_loss: what labels teach, in the place of the task's own loss: `mimicking`, say.
        refit_every: steps after which the weights' scales are fitted anew, and also after the last step.
        float_epochs: epochs at the start that quantize nothing; scales and ranges are fitted behind them.
        calibration: unlabeled batches [N, ...] that the ranges are then fitted on.
        precision: arithmetic of classifiers.
        memory: stores activations in fewer bits until the backward pass; all is then computed in float32.
        start_epoch, momentum: epochs done before and `Epoch.momentum`: a training goes on exactly.
        on_step, on_epoch: called with (steps done, steps in total) after each step, and after each epoch.

    Returns:
        The epochs done in this call.

    Raises:
        UserError: the loss became NaN or infinite, or a teacher's outputs cannot be distilled.
    """
    _check_schedule(recipe.epochs, refit_every, float_epochs, calibration)
    rounds = memory is None and task.distillable and computes_in_bfloat16(precision, device_of(model))
    loss = loss_in_bfloat16(_taught(teacher, task, recipe, distillation, task_loss or task.loss), rounds)
    seen = [] if start_epoch else as_in_training(task, model, recipe.augment)
    with _in_training(model, start_epoch < float_epochs, seen):
        return fit(
            model,
            task.data,
            recipe,
            loss=loss if memory is None else memory.storing(loss),
            start_epoch=start_epoch,
            momentum=momentum,
            on_step=_refitting(model, refit_every, on_step),
            on_epoch=_quantizing(model, float_epochs, calibration, on_epoch),
        )


def _taught(
    teacher: nn.Module, task: Task, recipe: Recipe, distillation: Distillation | None, task_loss: Loss
) -> Loss:
    """What labels and teacher teach together; a teacher of repeated views remembers its answers."""
    if distillation is None:
        distillation = Distillation() if task.distillable else Distillation(alpha=0.0)
    answering = teaching_form(teacher)
    return distilled(RememberingTeacher(answering) if recipe.views else answering, task_loss, distillation)


@contextmanager
def _in_training(model: nn.Module, paused: bool, seen: Sequence[Tensor]) -> Iterator[None]:
    """Pruned weights stay at 0 and quantizers may be paused; all is undone behind it.

    A training computes with the statistics of its own batches, so that norms have to be in terms of images
    like those, which are `seen` beforehand.
    """
    pause_quantizers(model, paused)
    restate_norms(model, seen)
    held = hold_zeros(model)
    try:
        yield
    finally:
        for handle in held:
            handle.remove()
        pause_quantizers(model, False)


def _refitting(
    model: nn.Module, every: int, on_step: Callable[[int, int], None] | None
) -> Callable[[int, int], None]:
    """What happens after a step: weights that have moved get new scales, then the caller hears of it."""

    def after_step(done: int, total: int) -> None:
        if done % every == 0 or done == total:
            refit_weight_scales(model)
        if on_step is not None:
            on_step(done, total)

    return after_step


def _quantizing(
    model: nn.Module,
    float_epochs: int,
    calibration: Sequence[Tensor],
    on_epoch: Callable[[Epoch], None] | None,
) -> Callable[[Epoch], None]:
    """What happens after an epoch: behind the last one in floats quantization begins."""

    def after_epoch(epoch: Epoch) -> None:
        if epoch.number == float_epochs:
            quantize_again(model, calibration)
        if on_epoch is not None:
            on_epoch(epoch)

    return after_epoch


def _check_schedule(epochs: int, refit_every: int, float_epochs: int, calibration: Sequence[Tensor]) -> None:
    if refit_every < 1:
        raise UserError(f"Scales can be fitted anew every 1 or more steps, not every {refit_every}.")
    if not 0 <= float_epochs <= epochs or (float_epochs and not calibration):
        raise UserError(
            f"{float_epochs} of {epochs} epochs cannot be in floats: write 0 to {epochs}, with calibration "
            "images."
        )


def quantize_again(model: nn.Module, batches: Sequence[Tensor]) -> None:
    """End the epochs in floats: fit scales to the weights and ranges to the activations, in place.

    Args:
        model: its quantizers are paused.
        batches: unlabeled images [N, ...]; the first one fits the ranges.
    """
    pause_quantizers(model, False)
    for module in model.modules():
        if isinstance(module, QuantizedConv2d | QuantizedLinear):
            module.quantizer.fit(module.weight)
    recalibrate(model)
    training = model.training
    model.eval()
    with torch.no_grad():
        model(batches[0])
    model.train(training)


def settle_statistics(model: nn.Module, task: Task, batches: Sequence[Tensor]) -> float:
    """Re-estimate the batch-norm statistics of a trained network where that raises its reward-split score.

    After few steps the running statistics lag behind the weights, after many they are the better ones: they
    have seen more images. In place; the norms end in terms of `batches`, for whoever re-normalizes later.

    Args:
        model: a fine-tuned network in evaluation mode.
        task: scores it, and gives images as in training; the test split is not used.
        batches: unlabeled images as in use [N, C, H, W], on the model's device.

    Returns:
        The score on the reward split of what was kept.
    """
    before = {name: buffer.clone() for name, buffer in model.named_buffers()}
    running = task.score(model, "reward")
    images = sum(len(batch) for batch in batches)
    calibrate(model, as_in_training(task, model, images=images))
    kept = task.score(model, "reward")
    if kept <= running:
        model.load_state_dict(before, strict=False)
        kept = running
    restate_norms(model, batches)
    return kept


def as_in_training(
    task: Task, model: nn.Module, augment: bool = True, images: int = STATISTICS_IMAGES
) -> list[Tensor]:
    """Unlabeled batches like those of a training, on the model's device."""
    return [batch.to(device_of(model)) for batch in task.calibration(images, augment=augment)]

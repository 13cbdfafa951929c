"""A moment of fine-tuning before a policy is scored, where an un-tuned score says nothing any more.

Far below the original's cost every compressed network is near chance until it has been trained, and the
best of the un-tuned ones need not become the best. A few dozen steps, the same for every policy, tell which
of them learn fast.
"""

import copy
import math
from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor, fx, nn

from amc.errors import UserError
from amc.precision import Precision
from amc.recovery.calibrate import calibrate
from amc.recovery.fine_tune import RememberingTeacher, as_in_training, fine_tune, teaching_form
from amc.tasks.base import Task
from amc.training import Recipe

BATCH_SIZE, LEARNING_RATE, WEIGHT_DECAY = 64, 0.002, 1e-4
"""A fifth of a whole fine-tuning's rate: too few steps to make up for what larger ones destroy at first."""


class BriefTuning:
    """Trains every policy's network on the same few batches, in floats, taught by the original.

    Args:
        teacher: the original network.
        task: loss and training images; not changed.
        steps: SGD steps of 64 images; images are met again where there are too few, and the last pass over
            them is a whole one.
        calibration: unlabeled batches for the ranges of activations behind the training.
        precision: arithmetic of the training.

    Raises:
        UserError: there are less than 64 training images.
    """

    def __init__(
        self,
        teacher: nn.Module,
        task: Task,
        steps: int,
        calibration: Sequence[Tensor],
        precision: Precision = "float32",
    ):
        available = len(task.data.train) // BATCH_SIZE
        if not available:
            raise UserError(
                f"--tune-steps needs {BATCH_SIZE} training images, and there are {len(task.data.train)}."
            )
        epochs = math.ceil(steps / available)
        images = math.ceil(steps / epochs) * BATCH_SIZE
        drawn = torch.randperm(len(task.data.train), generator=torch.Generator().manual_seed(0))[:images]
        self._task = copy.copy(task)
        self._task.data = replace(task.data, train=task.data.train.take(drawn), _normalised={})
        # The batches are the same for every policy, so the teacher sees each of them once a search.
        self._teacher = RememberingTeacher(teaching_form(teacher))
        self._recipe = Recipe(epochs, BATCH_SIZE, LEARNING_RATE, weight_decay=WEIGHT_DECAY)
        self._calibration, self._augmented = calibration, as_in_training(self._task, teacher)
        self._precision: Precision = precision

    def __call__(self, model: fx.GraphModule) -> None:
        """Train a compressed and calibrated network, in place; ends calibrated again."""
        settings = self._recipe
        fine_tune(
            model,
            self._teacher,
            self._task,
            settings,
            float_epochs=settings.epochs,
            calibration=self._calibration,
            precision=self._precision,
        )
        calibrate(model, self._augmented)

"""What the original teaches a detector besides its labels: `fine_tune --mimic`."""

from dataclasses import dataclass
from typing import Literal

import torch
from torch import nn

from amc.errors import UserError
from amc.recovery.mimic import (
    Mimic,
    MimicStudent,
    Teaching,
    matching_share,
    mimicking,
    prepare_teacher,
    with_adapter,
)
from amc.tasks import DetectionTask, Task
from amc.training import Loss

Imitation = Literal["none", "mimic", "quantized"]


@dataclass(frozen=True)
class Lesson:
    """What is trained, and how.

    Attributes:
        learner: the network, or that with the layer which translates its features for the teacher.
        loss: what labels and features teach; None for the task's own loss.
        teaching: the teacher whose features are imitated, if any.
    """

    learner: nn.Module
    loss: Loss | None = None
    teaching: Teaching | None = None

    def matching(self, task: Task) -> float | None:
        """The share of the test split's quantized features that are the teacher's; None without imitation."""
        if self.teaching is None:
            return None
        assert isinstance(self.learner, MimicStudent) and isinstance(task, DetectionTask)
        return matching_share(self.learner, self.teaching, task.detection_data, "test")


def check_imitation(task: Task, imitation: Imitation) -> None:
    """Refuse an imitation of regions where there are none.

    Raises:
        UserError: the task is another one than detection.
    """
    if imitation != "none" and not isinstance(task, DetectionTask):
        raise UserError(
            f"Features on regions are imitated by detectors only: leave out --mimic for {task.name}."
        )


def lesson(imitation: Imitation, model: nn.Module, teacher: nn.Module, task: Task, seed: int) -> Lesson:
    """How a network is taught.

    Args:
        imitation: of the teacher's features; see `amc.recovery.mimic`.
        model: the compressed network.
        teacher: the original, on the same device.
        task: data with boxes, unless nothing is imitated.
        seed: of the translating layer's first weights.
    """
    if imitation == "none":
        return Lesson(model)
    assert isinstance(task, DetectionTask)
    mimic = Mimic(imitation)
    teaching = prepare_teacher(teacher, task.detection_data, mimic.bits)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        learner = with_adapter(model, teaching, task.example_input())
    return Lesson(learner, mimicking(teaching, mimic), teaching)

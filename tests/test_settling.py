"""Statistics of batch norms behind a training."""

import torch

from amc.recovery.calibrate import calibrate
from amc.recovery.fine_tune import settle_statistics
from amc.tasks import ClassificationTask
from tests.test_fine_tune import compressed, digits


def test_settling_keeps_the_better_statistics():
    task, batches = ClassificationTask(digits()), digits().calibration(200, 100)
    model = compressed(keep=1.0, bits=8)
    score, images = task.score(model, "reward"), torch.cat(batches)
    before = model(images)
    few = [images[:2]]
    task.calibration = lambda images, augment: few if augment else []  # type: ignore[method-assign]
    assert settle_statistics(model, task, batches) == score == task.score(model, "reward")
    # Only in other terms. An activation at the edge of two levels may be rounded to the other one.
    changed = (model(images) - before).abs().amax(dim=1)
    assert (changed > 1e-3).double().mean() <= 0.01 and changed.norm() < 1e-3 * before.norm()
    calibrate(model, [images[:2]])
    poor = task.score(model, "reward")
    task.calibration = lambda images, augment: batches  # type: ignore[method-assign]
    assert settle_statistics(model, task, batches) == task.score(model, "reward") > poor + 0.05


def test_a_settled_network_can_be_renormalized_on_other_images_than_it_was_trained_with():
    task, batches = ClassificationTask(digits()), digits().calibration(200, 100)
    model = compressed(keep=1.0, bits=8)
    settle_statistics(model, task, batches)
    before = model(batches[0])
    calibrate(model, batches)
    assert (model(batches[0]) - before).norm() < 0.02 * before.norm()

"""Iterated pseudo-labels: a network's own answers are the labels that its successor learns from.

Lee, "Pseudo-Label: The Simple and Efficient Semi-Supervised Learning Method for Deep Neural Networks", ICML
2013 workshop, with a network trained anew for every round: the comparison for SaaS at equal compute.
"""

import copy
from collections.abc import Callable
from dataclasses import replace

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from amc.data.few_labels import FewLabels
from amc.data.images import ImageData
from amc.precision import Precision, computes_in_bfloat16, loss_in_bfloat16
from amc.recovery.label_estimate import LabelEstimate
from amc.training import Recipe, cross_entropy, device_of, evaluating, fit

SCORED_AT_ONCE = 100


def iterate_pseudo_labels(
    model: nn.Module,
    few: FewLabels,
    data: ImageData,
    recipe: Recipe,
    *,
    rounds: int,
    images: int,
    precision: Precision = "float32",
    start: LabelEstimate | None = None,
    on_step: Callable[[int, int], None] | None = None,
    on_round: Callable[[LabelEstimate], None] | None = None,
) -> LabelEstimate:
    """Estimate the labels of unlabeled images by rounds of training and answering.

    The first network learns from the labelled images alone, each later one from all images with the labels
    that the one before it gave.

    Args:
        model: with random weights, which every round starts from; has them again at the end.
        few: labelled and unlabeled images.
        data: its train split is replaced by those, and nothing else of it is used.
        recipe: of each round's training, its epochs aside.
        rounds: trainings.
        images: how many pass the network in a round's training; gives the number of its epochs.
        precision: arithmetic of the trainings.
        start: where an interrupted estimation was; None begins.
        on_step: called with (steps done, steps in the round) after each step.
        on_round: called after each round.

    Raises:
        UserError: the loss became NaN or infinite.
    """
    rounded = computes_in_bfloat16(precision, device_of(model))
    loss = loss_in_bfloat16(cross_entropy(), rounded)
    fresh = copy.deepcopy(model.state_dict())
    estimate = start or LabelEstimate(
        one_hot(torch.zeros(len(few.unlabeled), dtype=torch.int64), few.classes)
    )
    try:
        for number in range(estimate.rounds, rounds):
            model.load_state_dict(fresh)
            split = few.joined(estimate.labels) if number else few.labeled
            epochs = max(1, round(images / len(split)))
            training = replace(recipe, epochs=epochs, seed=recipe.seed + number)
            round_data = replace(data, train=split, _normalised={})
            done = fit(model, round_data, training, loss=loss, on_step=on_step)
            answers = one_hot(answered(model, few), few.classes)
            estimate = estimate.followed_by(answers, done[-1].loss)
            if on_round is not None:
                on_round(estimate)
    finally:
        model.load_state_dict(fresh)
        model.eval()
    return estimate


def answered(model: nn.Module, few: FewLabels) -> Tensor:
    """A network's classes of the unlabeled images as they are, int64 [U]."""
    device = device_of(model)
    with evaluating(model):
        parts = few.unlabeled.split(SCORED_AT_ONCE)
        found = [model(few.normalised(part).to(device)).argmax(1).cpu() for part in parts]
    return torch.cat(found)


def one_hot(labels: Tensor, classes: int) -> Tensor:
    """All belief in one class: int64 [U] to float64 [U, classes]."""
    return F.one_hot(labels, classes).double()

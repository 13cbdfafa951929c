"""What is believed of unknown labels: random at first, and always on the simplex above a floor."""

import torch
from torch import Tensor

from amc.errors import UserError

START_WEIGHT = 9.0
"""Of the class drawn at random, in the first belief; every other class has 1 (the authors' code)."""


def random_posterior(count: int, classes: int, generator: torch.Generator) -> Tensor:
    """A random class at 9 against 1 for each other: with ten classes 0.5 and 1/18; float64 [N, classes]."""
    weights = torch.ones(count, classes, dtype=torch.float64)
    drawn = torch.randint(classes, (count, 1), generator=generator)
    weights.scatter_(1, drawn, START_WEIGHT)
    return weights / weights.sum(1, keepdim=True)


def project(values: Tensor, floor: float) -> Tensor:
    """The nearest rows, in Euclidean distance, with every entry at least `floor` and the sum 1.

    With u = floor + v this is the projection of values - floor on the simplex of sum 1 - classes * floor,
    which sorting solves exactly (Held, Wolfe and Crowder 1974): v = max(values - floor - t, 0), with the
    threshold t that makes the sum right.

    Args:
        values: float64 [N, classes].
        floor: at least 0 and below 1 / classes.

    Returns:
        float64 [N, classes]; no entry exceeds 1 - (classes - 1) * floor.

    Raises:
        UserError: no row of that many classes has such a floor.
    """
    classes = values.shape[1]
    if not 0 <= floor < 1 / classes:
        raise UserError(
            f"{classes} shares of at least {floor:g} cannot sum to 1: choose 0 to below 1/{classes}."
        )
    shifted = values - floor
    ordered = shifted.sort(dim=1, descending=True).values
    counts = torch.arange(1, classes + 1, dtype=values.dtype)
    thresholds = (ordered.cumsum(1) - (1 - classes * floor)) / counts
    support = (ordered > thresholds).sum(1, keepdim=True)
    return floor + (shifted - thresholds.gather(1, support - 1)).clamp(min=0)

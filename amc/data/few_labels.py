"""A training split of which only a few images have labels that may be used."""

from dataclasses import dataclass

import torch
from torch import Tensor

from amc.data.augmentation import Augmentation
from amc.data.images import ImageData, Split, normalise_pixels
from amc.errors import UserError


@dataclass(frozen=True)
class FewLabels:
    """All that a semi-supervised training may see: the unlabeled images come without their labels.

    Attributes:
        labeled: images with labels, the same number of each class.
        unlabeled: uint8 [U, C, H, W].
        classes: number of classes.
        augmentation: random change of training images.
        mean: per channel, subtracted from pixels in [0, 1].
        std: per channel, divided by.
    """

    labeled: Split
    unlabeled: Tensor
    classes: int
    augmentation: Augmentation
    mean: tuple[float, ...]
    std: tuple[float, ...]

    def augmented(self, images: Tensor, generator: torch.Generator) -> Tensor:
        """Changed at random and normalised: uint8 [N, C, H, W] to float32."""
        return normalise_pixels(self.augmentation(images, generator), self.mean, self.std)

    def normalised(self, images: Tensor) -> Tensor:
        """As they are, normalised: uint8 [N, C, H, W] to float32."""
        return normalise_pixels(images, self.mean, self.std)

    def joined(self, estimated: Tensor) -> Split:
        """Labelled images with their labels, then the others with estimated ones, int64 [U]."""
        images = torch.cat([self.labeled.images, self.unlabeled])
        return Split(images, torch.cat([self.labeled.labels, estimated]))


def draw_few_labels(
    data: ImageData, labels: int, unlabeled: int | None, seed: int
) -> tuple[FewLabels, Tensor]:
    """Choose the images that an annotator has labelled, and those that stay unlabeled, from the train split.

    The labels of the rest are read once, here, so that every class has the same number of labelled images,
    give or take one, as in the usual protocol. They come back beside the images for scoring.

    Args:
        data: its train split is divided.
        labels: images whose labels may be used.
        unlabeled: images whose labels may not; None takes all others.
        seed: of the choice.

    Returns:
        What a training may see, and the hidden labels of its unlabeled images, int64 [U].

    Raises:
        UserError: there are too few images, or fewer labels than classes.
    """
    rest = len(data.train) - labels
    wanted = rest if unlabeled is None else unlabeled
    if labels < data.classes:
        raise UserError(f"--labels {labels} is too few: {data.name} has {data.classes} classes.")
    if wanted < 1 or wanted > rest:
        raise UserError(
            f"{labels} labelled and {max(wanted, 1)} unlabeled images are more than the {len(data.train)} "
            f"that {data.name} has to train on."
        )
    order = torch.randperm(len(data.train), generator=torch.Generator().manual_seed(seed))
    is_labeled = _balanced(data.train.labels[order], labels, data.classes, data.name)
    known, others = data.train.take(order[is_labeled]), data.train.take(order[~is_labeled][:wanted])
    few = FewLabels(known, others.images, data.classes, data.augmentation, data.mean, data.std)
    return few, others.labels


def _balanced(labels: Tensor, count: int, classes: int, name: str) -> Tensor:
    """Mark the first images of every class, `count` in all; bool [N]."""
    rank = torch.empty_like(labels)
    for label in range(classes):
        where = labels == label
        rank[where] = torch.arange(int(where.sum()))
    share, extra = divmod(count, classes)
    chosen = (rank < share) | ((rank == share) & (labels < extra))
    if int(chosen.sum()) != count:
        raise UserError(f"{name} has a class with fewer than {share + (extra > 0)} images to label.")
    return chosen

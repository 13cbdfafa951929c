"""Images with boxes: the splits, the data set and its augmentation."""

from collections.abc import Iterator
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from amc.data.augmentation import Augmentation
from amc.data.images import SPLITS, ImageData, Split
from amc.errors import UserError

PADDING = -1
"""Class of rows that stand for no object."""


@dataclass(frozen=True)
class BoxSplit(Split):
    """Images with the objects in them.

    Attributes:
        images: uint8 [N, C, H, W].
        labels: float32 [N, M, 5]: class, x1, y1, x2, y2 in pixels; rows of class -1 are padding.
    """

    def __post_init__(self) -> None:
        """Refuse anything that the rest of the project would misread."""
        if self.images.dtype != torch.uint8 or self.images.ndim != 4:
            raise UserError(
                "Images must be one uint8 tensor [N, C, H, W], "
                f"not {self.images.dtype} {list(self.images.shape)}."
            )
        shape = (len(self.images), self.labels.shape[1] if self.labels.ndim == 3 else 0, 5)
        if self.labels.dtype != torch.float32 or tuple(self.labels.shape) != shape:
            raise UserError(
                f"Boxes must be one float32 tensor [{len(self.images)}, objects, 5], "
                f"not {self.labels.dtype} {list(self.labels.shape)}."
            )

    def take(self, indices: Tensor) -> "BoxSplit":
        """The images at these positions, in this order."""
        return BoxSplit(self.images[indices], self.labels[indices])

    @property
    def objects(self) -> int:
        """How many boxes there are."""
        return int((self.labels[..., 0] >= 0).sum())


@dataclass(frozen=True)
class BoxAugmentation(Augmentation):
    """Mirrors images with their boxes; `shift` is not used.

    Attributes:
        flip: whether half of the images are mirrored left to right.
        upside_down: whether half of them are mirrored top to bottom, for pictures that have no up.
    """

    upside_down: bool = False

    def __call__(self, images: Tensor, generator: torch.Generator) -> Tensor:
        """Mirror every image of a batch [N, C, H, W] independently."""
        labels = torch.zeros(len(images), 0, 5, device=images.device)
        return self.with_boxes(images, labels, generator)[0]

    def with_boxes(self, images: Tensor, labels: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """Mirror every image [N, C, H, W] and its boxes [N, M, 5] independently."""
        for wanted, axis, low, high in ((self.flip, 3, 1, 3), (self.upside_down, 2, 2, 4)):
            if not wanted:
                continue
            chosen = (torch.rand(len(images), generator=generator) < 0.5).to(images.device)
            images = torch.where(chosen[:, None, None, None], images.flip(axis), images)
            mirrored = labels.clone()
            mirrored[..., low] = images.shape[axis] - labels[..., high]
            mirrored[..., high] = images.shape[axis] - labels[..., low]
            labels = torch.where(chosen[:, None, None], mirrored, labels)
        return images, labels


@dataclass
class DetectionData(ImageData):
    """A detection data set in memory; its splits are `BoxSplit`s, its batches give boxes as labels."""

    def __post_init__(self) -> None:
        """Check that the three splits belong to one data set."""
        for name in SPLITS:
            part = self.split(name)
            if not isinstance(part, BoxSplit) or len(part) == 0 or part.objects == 0:
                raise UserError(f"The {name} split of {self.name} has no image with a box.")
            if tuple(part.images.shape[1:]) != self.shape:
                raise UserError(f"The {name} images of {self.name} differ in shape from the training images.")
            if int(part.labels[..., 0].max()) >= self.classes:
                raise UserError(f"The {name} labels of {self.name} do not lie in 0..{self.classes - 1}.")

    def batches(
        self,
        split: str,
        batch_size: int,
        generator: torch.Generator | None = None,
        augment: bool = False,
        drop_last: bool = False,
        device: torch.device | str = "cpu",
    ) -> Iterator[tuple[Tensor, Tensor]]:
        """Go through a split once; see `ImageData.batches`.

        Yields:
            Images float32 [B, C, H, W] and boxes float32 [B, M, 5].
        """
        if not augment:
            yield from super().batches(split, batch_size, generator, False, drop_last, device)
            return
        if generator is None or not isinstance(self.augmentation, BoxAugmentation):
            raise ValueError("boxes move with their images: pass a generator, and use a BoxAugmentation")
        part = self.split(split)
        order = torch.randperm(len(part), generator=generator)
        end = len(part) - len(part) % batch_size if drop_last and len(part) >= batch_size else len(part)
        for index in order[:end].split(batch_size):
            images, labels = part.images[index].to(device), part.labels[index].to(device)
            images, labels = self.augmentation.with_boxes(images, labels, generator)
            yield self.normalise(images), labels

    def without_holdout(self) -> "DetectionData":
        """The same data with the reward images given back to the training split."""
        objects = max(self.train.labels.shape[1], self.reward.labels.shape[1])
        labels = [pad_boxes(part.labels, objects) for part in (self.train, self.reward)]
        whole = BoxSplit(torch.cat([self.train.images, self.reward.images]), torch.cat(labels))
        return replace(self, train=whole, _normalised={})


def pad_boxes(labels: Tensor, objects: int) -> Tensor:
    """Boxes [..., M, 5] with rows of padding behind them, up to `objects` rows."""
    rest = labels.new_zeros(*labels.shape[:-2], objects - labels.shape[-2], 5)
    rest[..., 0] = PADDING
    return torch.cat([labels, rest], dim=-2)

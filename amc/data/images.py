"""Labelled images as one tensor a split, and the batches made of them."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from amc.data.augmentation import Augmentation
from amc.errors import UserError

SPLITS = ("train", "reward", "test")

# The reward split is part of a data set's identity: a network trained in one run must not have seen the
# images that judge policies in another. So this is a constant and not an option.
SPLIT_SEED = 0

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)


@dataclass(frozen=True)
class Split:
    """Images with their labels.

    Attributes:
        images: uint8 [N, C, H, W].
        labels: int64 [N], from 0 to classes - 1.
    """

    images: Tensor
    labels: Tensor

    def __post_init__(self) -> None:
        """Refuse anything that the rest of the project would misread."""
        if self.images.dtype != torch.uint8 or self.images.ndim != 4:
            raise UserError(
                "Images must be one uint8 tensor [N, C, H, W], "
                f"not {self.images.dtype} {list(self.images.shape)}."
            )
        if self.labels.dtype != torch.int64 or self.labels.shape != self.images.shape[:1]:
            raise UserError(
                f"Labels must be one int64 tensor [{len(self.images)}], "
                f"not {self.labels.dtype} {list(self.labels.shape)}."
            )

    def __len__(self) -> int:
        return len(self.labels)

    def take(self, indices: Tensor) -> "Split":
        """The images at these positions, in this order."""
        return Split(self.images[indices], self.labels[indices])


def hold_out(split: Split, count: int, seed: int = SPLIT_SEED) -> tuple[Split, Split]:
    """Divide a split by a seeded permutation into the rest and `count` images held out of it.

    Raises:
        UserError: Nothing would be left on one of the two sides.
    """
    if not 0 < count < len(split):
        raise UserError(f"Cannot hold {count} images out of {len(split)}: both parts need at least one.")
    order = torch.randperm(len(split), generator=torch.Generator().manual_seed(seed))
    return split.take(order[count:]), split.take(order[:count])


def normalise_pixels(images: Tensor, mean: Sequence[float], std: Sequence[float]) -> Tensor:
    """Turn uint8 pixels [N, C, H, W] into float32, (x / 255 - mean) / std with one of each a channel."""
    subtracted = torch.tensor(mean, device=images.device)[:, None, None]
    divided = torch.tensor(std, device=images.device)[:, None, None]
    # A new tensor and not images.float(), which would keep whatever layout the pixels lie in.
    pixels = torch.empty(images.shape, device=images.device).copy_(images)
    return pixels.div_(255).sub_(subtracted).div_(divided)


@dataclass
class ImageData:
    """One classification data set, held in memory.

    Attributes:
        name: What reports call it.
        classes: Number of classes.
        train: What networks are trained and calibrated on.
        reward: Held out of the training images; scores policies during a search.
        test: Touched only for final figures.
        mean: Per-channel mean that is subtracted from pixels scaled to [0, 1].
        std: Per-channel standard deviation that they are divided by.
        augmentation: Random change of training images.
        class_names: Names in the order of the labels, where the data set has them.
    """

    name: str
    classes: int
    train: Split
    reward: Split
    test: Split
    mean: tuple[float, ...]
    std: tuple[float, ...]
    augmentation: Augmentation = field(default_factory=Augmentation)
    class_names: tuple[str, ...] = ()
    _normalised: dict[tuple[str, bool], Tensor] = field(default_factory=dict, repr=False, compare=False)

    def __post_init__(self) -> None:
        """Check that the three splits belong to one data set."""
        shape = self.shape
        for name in SPLITS:
            part = self.split(name)
            if len(part) == 0:
                raise UserError(f"The {name} split of {self.name} is empty.")
            if tuple(part.images.shape[1:]) != shape:
                raise UserError(f"The {name} images of {self.name} differ in shape from the training images.")
            if int(part.labels.min()) < 0 or int(part.labels.max()) >= self.classes:
                raise UserError(f"The {name} labels of {self.name} do not lie in 0..{self.classes - 1}.")
        if not len(self.mean) == len(self.std) == shape[0] or min(self.std) <= 0:
            raise UserError(
                f"{self.name} needs one mean and one positive std for each of {shape[0]} channels."
            )

    @property
    def shape(self) -> tuple[int, int, int]:
        """Channels, height and width of one image."""
        channels, height, width = self.train.images.shape[1:]
        return channels, height, width

    def split(self, name: str) -> Split:
        """The split called `train`, `reward` or `test`.

        Raises:
            UserError: There is no such split.
        """
        if name not in SPLITS:
            raise UserError(f"There is no split '{name}': choose {', '.join(SPLITS)}.")
        part: Split = getattr(self, name)
        return part

    def normalise(self, images: Tensor) -> Tensor:
        """Turn uint8 pixels [N, C, H, W] into what a network takes: float32, (x / 255 - mean) / std."""
        return normalise_pixels(images, self.mean, self.std)

    def normalised(self, split: str, channels_last: bool = False) -> Tensor:
        """A whole split as float32 [N, C, H, W], computed once and kept.

        Channels last is for scoring; `fit` says why a CPU must not train in it.
        """
        key = (split, channels_last)
        if key not in self._normalised:
            layout = torch.channels_last if channels_last else torch.contiguous_format
            # A tensor made in inference mode could never be used for training afterwards.
            with torch.inference_mode(False):
                whole = self.normalise(self.split(split).images)
                self._normalised[key] = whole.contiguous(memory_format=layout)
        return self._normalised[key]

    def batches(
        self,
        split: str,
        batch_size: int,
        generator: torch.Generator | None = None,
        augment: bool = False,
        drop_last: bool = False,
        device: torch.device | str = "cpu",
    ) -> Iterator[tuple[Tensor, Tensor]]:
        """Go through a split once.

        Args:
            split: Its name.
            batch_size: Images a batch; the last one may be smaller.
            generator: Shuffles and augments; None goes in stored order.
            augment: Whether to apply `augmentation`; needs a generator.
            drop_last: Whether to leave out a smaller last batch (batch norm dislikes a batch of one). A
                split smaller than one batch is still given whole.
            device: Where normalised images and labels are put; pixels travel as uint8.

        Yields:
            Images float32 [B, C, H, W] and labels int64 [B].
        """
        if augment and generator is None:
            raise ValueError("augmentation draws random numbers: pass a generator")
        part = self.split(split)
        count = len(part)
        order = torch.arange(count) if generator is None else torch.randperm(count, generator=generator)
        end = count - count % batch_size if drop_last and count >= batch_size else count
        for start in range(0, end, batch_size):
            index = order[start : min(start + batch_size, end)]
            images = part.images[index].to(device)
            if augment and generator is not None:
                images = self.augmentation(images, generator)
            yield self.normalise(images), part.labels[index].to(device)

    def calibration(
        self, images: int = 1000, batch_size: int = 200, seed: int = 0, augment: bool = False
    ) -> list[Tensor]:
        """Unlabeled batches for statistics: batch norm, activation ranges, least squares.

        They come from the train split, so they never meet the reward split, and are like those that the
        network will see in use. Augmented ones are like those of a training, whose statistics differ.

        Args:
            images: How many in total; at most the size of the train split is given.
            batch_size: Images a batch.
            seed: Chooses the images and their augmentation.
            augment: Whether to change them as a training would.

        Returns:
            float32 tensors [B, C, H, W].
        """
        generator = torch.Generator().manual_seed(seed)
        chosen = torch.randperm(len(self.train), generator=generator)[:images]
        pixels = self.train.images[chosen]
        if augment:
            pixels = self.augmentation(pixels, generator)
        return list(self.normalise(pixels).split(batch_size))

    def without_holdout(self) -> "ImageData":
        """The same data with the reward images given back to the training split.

        For a network's last training only: the reward split no longer tells how it does on unseen images.
        """
        images = torch.cat([self.train.images, self.reward.images])
        labels = torch.cat([self.train.labels, self.reward.labels])
        return replace(self, train=Split(images, labels), _normalised={})

"""Random shifts and flips of a whole batch at once."""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor


@dataclass(frozen=True)
class Augmentation:
    """What may be changed at random in a training image without changing its label.

    Attributes:
        shift: Largest shift in pixels, each direction; what enters the picture is 0 (black).
        flip: Whether half of the images are mirrored left to right.
    """

    shift: int = 0
    flip: bool = False

    def __call__(self, images: Tensor, generator: torch.Generator) -> Tensor:
        """Shift and mirror every image of a batch independently.

        Padding by `shift` and cropping back at random is the augmentation of He et al. 2015
        (arXiv:1512.03385, section 4.2) for `Augmentation(4, True)`.

        Args:
            images: [N, C, H, W], any dtype, any device.
            generator: CPU generator; the only source of randomness.

        Returns:
            [N, C, H, W] in the same dtype, on the same device.
        """
        if not self.shift and not self.flip:
            return images
        count, channels, height, width = images.shape
        rows = torch.arange(height) + self._offsets(count, generator)
        columns = torch.arange(width) + self._offsets(count, generator)
        if self.flip:
            mirrored = torch.rand(count, 1, generator=generator) < 0.5
            columns = torch.where(mirrored, columns.flip(1), columns)
        padded = F.pad(images, [self.shift] * 4)
        image = torch.arange(count)[:, None, None, None]
        channel = torch.arange(channels)[None, :, None, None]
        index = (image, channel, rows[:, None, :, None], columns[:, None, None, :])
        # An index for the channels too, though they stay as they are: with a slice there they would come last
        # in memory, a layout that is not safe to train in on a CPU (see `fit`).
        return padded[tuple(part.to(images.device) for part in index)]

    def _offsets(self, count: int, generator: torch.Generator) -> Tensor:
        return torch.randint(0, 2 * self.shift + 1, (count, 1), generator=generator)

"""The embedded default: scikit-learn's handwritten digits."""

import torch
import torch.nn.functional as F
from sklearn.datasets import load_digits

from amc.data.augmentation import Augmentation
from amc.data.images import ImageData, Split, hold_out
from amc.errors import UserError

TEST_IMAGES = 360
REWARD_IMAGES = 240


def digits(side: int = 32) -> ImageData:
    """1,797 real handwritten digits: 1,197 to train, 240 for the reward, 360 to test.

    The test part of the UCI set "Optical Recognition of Handwritten Digits", 8 x 8 pixels of 17 grey levels,
    enlarged by bilinear interpolation so that a network on it costs a measurable time.

    Args:
        side: Height and width in pixels, 8 to 128.

    Raises:
        UserError: `side` is out of range.
    """
    if not 8 <= side <= 128:
        raise UserError(f"Digits are 8 x 8 pixels and can be enlarged to at most 128, not to {side}.")
    source = load_digits()
    pixels = torch.from_numpy(source.images).float()[:, None] * (255 / 16)
    pixels = F.interpolate(pixels, size=(side, side), mode="bilinear", align_corners=False)
    everything = Split(pixels.round().to(torch.uint8), torch.from_numpy(source.target).long())
    rest, test = hold_out(everything, TEST_IMAGES)
    train, reward = hold_out(rest, REWARD_IMAGES)
    return ImageData(
        name="digits",
        classes=10,
        train=train,
        reward=reward,
        test=test,
        # Of all pixels at a side of 32, rounded.
        mean=(0.305,),
        std=(0.324,),
        augmentation=Augmentation(shift=1),
        class_names=tuple("0123456789"),
    )

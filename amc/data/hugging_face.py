"""Labelled images from the `datasets` library: a data set by name, or one that lies in a folder."""

import importlib.util
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageOps

from amc.data.augmentation import Augmentation
from amc.data.images import IMAGENET_MEAN, IMAGENET_STD, ImageData, Split, hold_out
from amc.errors import UserError
from amc.plugins import one_line

PREFIX = "hf:"
TEST_SPLITS = ("test", "validation", "val", "valid")
"""Where the test images are looked for, in this order."""
REWARD_SHARE, LARGEST_REWARD = 0.15, 5000
MEMORY_LIMIT_GIB = 4.0


def hugging_face(
    source: str, side: int = 224, memory_limit_gib: float = MEMORY_LIMIT_GIB, name: str | None = None
) -> ImageData:
    """Colour images with one label each, read into memory once.

    15 % of the training images (at most 5,000) become the reward split.

    Args:
        source: a folder that `Dataset.save_to_disk` wrote, or what `datasets.load_dataset` takes: a folder of
            files, or a name, which is downloaded unless it is in the library's cache.
        side: height and width in pixels; images are scaled to cover it and cropped at the centre.
        memory_limit_gib: largest size of all pixels together.
        name: what reports call it; the last part of `source` by default.

    Raises:
        UserError: the library is not installed, the data set cannot be loaded, or it has no images, labels or
            test images, or too many pixels.
    """
    if side < 1:
        raise UserError(f"Images need a side of at least 1 pixel, not {side}.")
    found = _load(source)
    test_name = next((split for split in TEST_SPLITS if split in found), None)
    if "train" not in found or test_name is None:
        raise UserError(
            f"The data set {source} needs a split 'train' and one of {', '.join(TEST_SPLITS)}; "
            f"it has {', '.join(found)}."
        )
    train, test = found["train"], found[test_name]
    image, label = (_column(source, train, kind) for kind in ("Image", "ClassLabel"))
    needed = (len(train) + len(test)) * 3 * side * side / 2**30
    if needed > memory_limit_gib:
        raise UserError(
            f"The {len(train) + len(test)} images of {source} need {needed:.1f} GiB at {side} x {side} "
            f"pixels and the limit is {memory_limit_gib:g} GiB: choose a smaller side."
        )
    whole = _split(source, train, image, label, side)
    names = tuple(train.features[label].names)
    rest, reward = hold_out(whole, min(LARGEST_REWARD, max(1, round(REWARD_SHARE * len(whole)))))
    return ImageData(
        name=name or Path(source).name,
        classes=len(names),
        train=rest,
        reward=reward,
        test=_split(source, test, image, label, side),
        mean=IMAGENET_MEAN,
        std=IMAGENET_STD,
        augmentation=Augmentation(),
        class_names=names,
    )


def _load(source: str) -> Any:
    if importlib.util.find_spec("datasets") is None:
        raise UserError('Data of the datasets library need an extra: pip install "amc-compress[hub]".')
    import datasets

    datasets.disable_progress_bars()
    try:
        if (Path(source) / "dataset_dict.json").is_file():
            return datasets.load_from_disk(source)
        return datasets.load_dataset(source)
    except Exception as error:  # no network, no such name, a broken file: each has its own class
        raise UserError(f"The data set {source} cannot be loaded ({one_line(error)}).") from error


def _column(source: str, split: Any, kind: str) -> str:
    """The only column of a type.

    Raises:
        UserError: there is none, or more than one.
    """
    names = [name for name, feature in split.features.items() if type(feature).__name__ == kind]
    if len(names) != 1:
        raise UserError(
            f"The data set {source} needs one column of type {kind} and has {len(names)}; "
            f"its columns are {', '.join(split.features)}."
        )
    return names[0]


def _split(source: str, rows: Any, image: str, label: str, side: int) -> Split:
    pixels = np.empty((len(rows), side, side, 3), dtype=np.uint8)
    for position in range(len(rows)):
        try:
            picture = rows[position][image].convert("RGB")
        except Exception as error:  # each codec fails in its own way
            raise UserError(f"Image {position} of {source} cannot be read: {one_line(error)}.") from error
        pixels[position] = np.asarray(ImageOps.fit(picture, (side, side), Image.Resampling.BILINEAR))
    labels = torch.tensor(rows[label][:], dtype=torch.int64)
    return Split(torch.from_numpy(pixels).permute(0, 3, 1, 2).contiguous(), labels)

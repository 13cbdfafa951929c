"""CIFAR-10 in its official python format."""

from pathlib import Path
from typing import Any

import numpy as np
import torch

from amc.data.array_pickle import PickledArray, read_arrays
from amc.data.augmentation import Augmentation
from amc.data.images import IMAGENET_MEAN, IMAGENET_STD, ImageData, Split, hold_out
from amc.errors import UserError
from amc.plugins import one_line

FOLDER = "cifar-10-batches-py"
TRAIN_FILES = tuple(f"data_batch_{i}" for i in range(1, 6))
TEST_FILE = "test_batch"
CLASS_NAMES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
REWARD_SHARE = 0.1


def cifar10(data_root: Path) -> ImageData:
    """60,000 colour images of 32 x 32 pixels: 45,000 to train, 5,000 for the reward, 10,000 to test.

    Normalised with the mean and deviation of ImageNet, as the common CIFAR ResNet weights expect.

    Args:
        data_root: The folder of the batches, or the one that holds `cifar-10-batches-py`.

    Raises:
        UserError: A file is missing or is not a CIFAR-10 batch.
    """
    folder = _find(data_root)
    parts = [_read(folder / name) for name in TRAIN_FILES]
    whole = Split(torch.cat([p.images for p in parts]), torch.cat([p.labels for p in parts]))
    train, reward = hold_out(whole, round(REWARD_SHARE * len(whole)))
    return ImageData(
        name="cifar10",
        classes=10,
        train=train,
        reward=reward,
        test=_read(folder / TEST_FILE),
        mean=IMAGENET_MEAN,
        std=IMAGENET_STD,
        augmentation=Augmentation(shift=4, flip=True),
        class_names=CLASS_NAMES,
    )


def _find(root: Path) -> Path:
    for folder in (root / FOLDER, root):
        if (folder / TRAIN_FILES[0]).is_file():
            missing = [name for name in (*TRAIN_FILES, TEST_FILE) if not (folder / name).is_file()]
            if missing:
                raise UserError(f"CIFAR-10 in {folder} is incomplete: {', '.join(missing)} is missing.")
            return folder
    raise UserError(
        f"CIFAR-10 was looked for in {root / FOLDER} and {root} and is not there: unpack "
        "https://www.cs.toronto.edu/~kriz/cifar-10-python.tar.gz and pass the folder with --data-root."
    )


def _read(path: Path) -> Split:
    try:
        content = read_arrays(path)
    except Exception as error:  # a damaged pickle can fail in any way: EOFError, KeyError, MemoryError...
        raise UserError(f"{path} is not a CIFAR-10 batch and was not loaded: {one_line(error)}.") from error
    if not isinstance(content, dict):
        raise UserError(f"{path} is not a CIFAR-10 batch: it holds a {type(content).__name__}, not a dict.")
    pixels, labels = _array(content, "data"), _array(content, "labels")
    if pixels is None or pixels.dtype != np.uint8 or pixels.ndim != 2 or pixels.shape[1] != 3072:
        raise UserError(f"{path} is not a CIFAR-10 batch: 'data' must be uint8 of shape [N, 3072].")
    if labels is None or labels.dtype.kind not in "iu" or labels.shape != pixels.shape[:1]:
        raise UserError(f"{path} is not a CIFAR-10 batch: 'labels' must hold {len(pixels)} whole numbers.")
    return Split(torch.tensor(pixels).reshape(-1, 3, 32, 32), torch.tensor(labels.astype(np.int64)))


def _array(content: dict[Any, Any], key: str) -> np.ndarray | None:
    # Python 2 wrote the official files, so their keys arrive as bytes; other writers use str.
    value = content.get(key, content.get(key.encode()))
    if isinstance(value, list):
        return np.array(value) if all(type(item) is int for item in value) else None
    return value.array if isinstance(value, PickledArray) else None

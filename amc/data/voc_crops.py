"""The objects of a data set in Pascal VOC's layout as small labelled images."""

from collections import Counter
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from itertools import chain
from pathlib import Path

import numpy as np
import torch

from amc.data.augmentation import Augmentation
from amc.data.images import IMAGENET_MEAN, IMAGENET_STD, ImageData, Split
from amc.data.voc_files import LISTS, Annotation, Region, find_root, read_list, read_notes, read_pixels
from amc.errors import UserError


def voc_crops(root: Path, side: int = 64) -> ImageData:
    """Every box of a data set in VOC's layout, cropped and labelled with its class.

    A crop is the square around a box, moved into the image where it would reach beyond it. VOC's lists
    divide images, so all crops of one image are in one split: `train` trains, `val` is the reward split,
    `test` the test split.

    Args:
        root: holds JPEGImages, Annotations and ImageSets/Main, directly or in its only such folder.
        side: height and width of the crops in pixels.

    Raises:
        UserError: a file is missing or malformed, or an image is in two lists.
    """
    if not 8 <= side <= 256:
        raise UserError(f"Crops can be scaled to 8 to 256 pixels, not to {side}.")
    root = find_root(root)
    names = {split: read_list(root, listed) for split, listed in LISTS.items()}
    _check_apart(root, chain(*names.values()))
    notes, classes = read_notes(root, names)
    splits = {split: _crops(root, names[split], notes[split], classes, side) for split in LISTS}
    return ImageData(
        name=f"{root.resolve().name}-crops",
        classes=len(classes),
        train=splits["train"],
        reward=splits["reward"],
        test=splits["test"],
        mean=IMAGENET_MEAN,
        std=IMAGENET_STD,
        augmentation=Augmentation(shift=side // 16, flip=True),
        class_names=classes,
    )


def _check_apart(root: Path, names: Iterable[str]) -> None:
    """Crops of one image in two splits would judge a network on what it was trained on."""
    twice = [name for name, count in Counter(names).items() if count > 1]
    if twice:
        raise UserError(f"The lists of {root} name the image '{twice[0]}' more than once.")


def _crops(
    root: Path, names: list[str], notes: list[Annotation], classes: tuple[str, ...], side: int
) -> Split:
    def cropped(name: str, note: Annotation) -> list[np.ndarray]:
        return read_pixels(root, name, [(_square(note, box[1:]), side, side) for box in note.boxes])

    foreign = [box[0] for note in notes for box in note.boxes if box[0] not in classes]
    if foreign:
        raise UserError(f"{root} has the class '{foreign[0]}', which its training images lack.")
    with ThreadPoolExecutor() as pool:  # Pillow releases the interpreter lock while it decodes
        pixels = [crop for crops in pool.map(cropped, names, notes) for crop in crops]
    if not pixels:
        raise UserError(f"A list of {root} has no image with an object: its first is {names[0]}.")
    labels = [classes.index(box[0]) for note in notes for box in note.boxes]
    return Split(torch.from_numpy(np.stack(pixels)).permute(0, 3, 1, 2).contiguous(), torch.tensor(labels))


def _square(note: Annotation, box: Region) -> Region:
    """The square on the longer side of a box and around its centre, as far as the image is large enough."""
    longer = max(box[2] - box[0], box[3] - box[1])
    ends = []
    for low, high, most in ((box[0], box[2], note.width), (box[1], box[3], note.height)):
        length = min(longer, most)
        start = min(max(0.0, (low + high - length) / 2), most - length)
        ends.append((start, start + length))
    (x1, x2), (y1, y2) = ends
    return x1, y1, x2, y2

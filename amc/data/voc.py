"""Images with boxes in Pascal VOC's layout: JPEGImages, Annotations and ImageSets/Main."""

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import torch

from amc.data.boxes import BoxAugmentation, BoxSplit, DetectionData, pad_boxes
from amc.data.images import IMAGENET_MEAN, IMAGENET_STD
from amc.data.voc_files import LISTS, Annotation, find_root, read_list, read_notes, read_pixels
from amc.errors import UserError

STEP = 4
"""Height and width are multiples of this, the detector's stride."""


def voc(root: Path, side: int = 128) -> DetectionData:
    """A data set in VOC's layout; the list `train` trains, `val` is the reward split, `test` the test split.

    Images are scaled to one size, the width `side` and the height in the proportion of the first training
    image. IoU does not change when an axis is scaled, so neither does the score of right boxes.

    Args:
        root: holds JPEGImages, Annotations and ImageSets/Main, directly or in its only such folder.
        side: width in pixels; rounded, like the height, to a multiple of 4.

    Raises:
        UserError: a file is missing or malformed.
    """
    if not 32 <= side <= 1024:
        raise UserError(f"Images can be scaled to a width of 32 to 1,024 pixels, not to {side}.")
    root = find_root(root)
    names = {split: read_list(root, listed) for split, listed in LISTS.items()}
    notes, classes = read_notes(root, names)
    first = notes["train"][0]
    size = (_rounded(side * first.height / first.width), _rounded(side))
    splits = {split: _load_split(root, names[split], notes[split], classes, size) for split in LISTS}
    return DetectionData(
        name=root.resolve().name,
        classes=len(classes),
        train=splits["train"],
        reward=splits["reward"],
        test=splits["test"],
        mean=IMAGENET_MEAN,
        std=IMAGENET_STD,
        augmentation=BoxAugmentation(flip=True),
        class_names=classes,
    )


def _load_split(
    root: Path, names: list[str], notes: list[Annotation], classes: tuple[str, ...], size: tuple[int, int]
) -> BoxSplit:
    with ThreadPoolExecutor() as pool:  # Pillow releases the interpreter lock while it decodes
        pixels = list(pool.map(lambda name: read_pixels(root, name, [(None, *size)])[0], names))
    rows = [_rows(note, classes, size, root) for note in notes]
    most = max(1, *(len(row) for row in rows))
    images = torch.from_numpy(np.stack(pixels)).permute(0, 3, 1, 2).contiguous()
    return BoxSplit(images, torch.stack([pad_boxes(row, most) for row in rows]))


def _rows(note: Annotation, classes: tuple[str, ...], size: tuple[int, int], root: Path) -> torch.Tensor:
    """The boxes in the scaled image; float32 [n, 5]."""
    scale = (size[1] / note.width, size[0] / note.height) * 2
    for name, *_ in note.boxes:
        if name not in classes:
            raise UserError(f"{root} has the class '{name}', which its training images lack.")
    return torch.tensor(
        [
            [classes.index(name), *(v * s for v, s in zip(box, scale, strict=True))]
            for name, *box in note.boxes
        ],
        dtype=torch.float32,
    ).reshape(-1, 5)


def _rounded(pixels: float) -> int:
    return max(STEP, STEP * round(pixels / STEP))

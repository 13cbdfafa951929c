"""Images in folders: root/train/<class>/*.png and root/val/<class>/*.png (or .jpg)."""

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageOps

from amc.data.augmentation import Augmentation
from amc.data.images import IMAGENET_MEAN, IMAGENET_STD, ImageData, Split, hold_out
from amc.errors import UserError
from amc.plugins import one_line

SUFFIXES = (".png", ".jpg", ".jpeg")
REWARD_SHARE = 0.15
LARGEST_REWARD = 5000
MEMORY_LIMIT_GIB = 4.0

Labelled = list[tuple[Path, int]]


def folder(
    root: Path,
    side: int = 224,
    augmentation: Augmentation | None = None,
    memory_limit_gib: float = MEMORY_LIMIT_GIB,
) -> ImageData:
    """Colour images in class folders.

    `val` becomes the test split, and 15 % of `train` (at most 5,000) the reward split.

    Everything is decoded once into memory. A set that does not fit is refused and not streamed: one search
    reads its images hundreds of times, and decoding would be most of its time.

    Args:
        root: Holds `train` and `val`, each with one folder a class.
        side: Height and width in pixels; images are scaled to cover it and cropped at the centre.
        augmentation: Random change of training images; none by default.
        memory_limit_gib: Largest size of all uint8 pixels together.

    Raises:
        UserError: A folder is missing, empty or of another class, an image does not decode, or the set
            exceeds the limit.
    """
    if side < 1:
        raise UserError(f"Images need a side of at least 1 pixel, not {side}.")
    names = _classes(root)
    files = {part: _list_images(root / part, names) for part in ("train", "val")}
    _check_memory(root, sum(map(len, files.values())), side, memory_limit_gib)
    whole = _decode(files["train"], side)
    reward_count = min(LARGEST_REWARD, max(1, round(REWARD_SHARE * len(whole))))
    train, reward = hold_out(whole, reward_count)
    return ImageData(
        name=root.resolve().name,
        classes=len(names),
        train=train,
        reward=reward,
        test=_decode(files["val"], side),
        mean=IMAGENET_MEAN,
        std=IMAGENET_STD,
        augmentation=augmentation or Augmentation(),
        class_names=names,
    )


def _classes(root: Path) -> tuple[str, ...]:
    for part in ("train", "val"):
        if not (root / part).is_dir():
            raise UserError(
                f"{root} has no folder '{part}': images are expected as train/<class>/*.png and "
                "val/<class>/*.png (or .jpg)."
            )
    names = tuple(sorted(p.name for p in (root / "train").iterdir() if p.is_dir() and p.name[0] != "."))
    if len(names) < 2:
        raise UserError(f"{root / 'train'} needs at least two class folders and has {len(names)}.")
    return names


def _list_images(part: Path, names: tuple[str, ...]) -> Labelled:
    foreign = sorted(
        p.name for p in part.iterdir() if p.is_dir() and p.name[0] != "." and p.name not in names
    )
    if foreign:
        raise UserError(f"{part} has the class '{foreign[0]}', which the train folder lacks.")
    listed: Labelled = []
    for label, name in enumerate(names):
        # A class without validation images is allowed, one without training images is a mistake.
        found = sorted((part / name).glob("*")) if (part / name).is_dir() else []
        images = [p for p in found if p.suffix.lower() in SUFFIXES]
        if not images and part.name == "train":
            raise UserError(f"{part / name} holds no .png or .jpg image.")
        listed += [(path, label) for path in images]
    if not listed:
        raise UserError(f"{part} holds no .png or .jpg image.")
    return listed


def _check_memory(root: Path, count: int, side: int, limit_gib: float) -> None:
    needed = count * 3 * side * side / 2**30
    if needed > limit_gib:
        raise UserError(
            f"The {count} images of {root} need {needed:.1f} GiB at {side} x {side} pixels and the limit is "
            f"{limit_gib:g} GiB: choose a smaller side, or a folder with fewer images a class."
        )


def _decode(files: Labelled, side: int) -> Split:
    pixels = np.empty((len(files), side, side, 3), dtype=np.uint8)

    def decode(position: int) -> None:
        pixels[position] = _read_image(files[position][0], side)

    with ThreadPoolExecutor() as pool:  # Pillow releases the interpreter lock while it decodes
        list(pool.map(decode, range(len(files))))
    images = torch.from_numpy(pixels).permute(0, 3, 1, 2).contiguous()
    return Split(images, torch.tensor([label for _, label in files]))


def _read_image(path: Path, side: int) -> np.ndarray:
    try:
        with Image.open(path) as image:
            return np.asarray(ImageOps.fit(image.convert("RGB"), (side, side), Image.Resampling.BILINEAR))
    except Exception as error:  # each codec fails in its own way
        raise UserError(f"{path} cannot be read as an image: {one_line(error)}.") from error

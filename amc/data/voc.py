"""Images with boxes in Pascal VOC's layout: JPEGImages, Annotations and ImageSets/Main."""

import xml.etree.ElementTree as ElementTree
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from amc.data.boxes import BoxAugmentation, BoxSplit, DetectionData, pad_boxes
from amc.data.images import IMAGENET_MEAN, IMAGENET_STD
from amc.errors import UserError
from amc.plugins import one_line

LISTS = {"train": "train", "reward": "val", "test": "test"}
"""Our splits and VOC's lists."""
STEP = 4
"""Height and width are multiples of this, the detector's stride."""
LARGEST_FILE = 2**20
"""Bytes of an annotation; a VOC file has a few thousand."""
SUFFIXES = (".jpg", ".jpeg", ".png")

Box = tuple[str, float, float, float, float]


@dataclass(frozen=True)
class Annotation:
    """What one annotation file says.

    Attributes:
        width, height: of the image, in pixels.
        boxes: class name and corners (x1, y1, x2, y2) of every object with an area, in pixels from 0.
        skipped: objects without an area, which are left out.
    """

    width: int
    height: int
    boxes: tuple[Box, ...]
    skipped: int


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
    root = _find_root(root)
    names = {split: _read_list(root, listed) for split, listed in LISTS.items()}
    notes = {split: [_annotation_of(root, name) for name in found] for split, found in names.items()}
    classes = tuple(sorted({box[0] for note in notes["train"] for box in note.boxes}))
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


def read_annotation(path: Path) -> Annotation:
    """Read one VOC annotation.

    Corners in VOC count pixels from 1 and belong to the box, so its left border lies at xmin - 1. Document
    types are refused: they can make a parser expand a small file without limit or read other files.

    Raises:
        UserError: the file is missing, is not a VOC annotation, or says what cannot be.
    """
    try:
        if path.stat().st_size > LARGEST_FILE:
            raise UserError(f"{path} is too large for an annotation: more than 1 MiB.")
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"The annotation {path} cannot be read: {one_line(error)}.") from error
    if "<!DOCTYPE" in text or "<!ENTITY" in text:
        raise UserError(f"{path} declares a document type, which a VOC annotation does not need.")
    try:
        return _parse(ElementTree.fromstring(text))
    except (ElementTree.ParseError, ValueError) as error:
        raise UserError(f"{path} is not a VOC annotation: {one_line(error)}.") from error


def _parse(root: ElementTree.Element) -> Annotation:
    """Raises ValueError where an entry is missing or is no number."""
    width, height = int(_text(root, "size/width")), int(_text(root, "size/height"))
    if min(width, height) < 1:
        raise ValueError(f"an image of {width} x {height} pixels")
    boxes = []
    objects = root.findall("object")
    for entry in objects:
        low = [float(_text(entry, f"bndbox/{name}")) for name in ("xmin", "ymin")]
        high = [float(_text(entry, f"bndbox/{name}")) for name in ("xmax", "ymax")]
        if not np.isfinite([*low, *high]).all():
            raise ValueError("a corner that is no number")
        # Without an area before the correction by one pixel there is none behind it either.
        if high[0] <= low[0] or high[1] <= low[1]:
            continue
        x1, y1 = max(0.0, low[0] - 1), max(0.0, low[1] - 1)
        x2, y2 = min(high[0], float(width)), min(high[1], float(height))
        if x2 > x1 and y2 > y1:
            boxes.append((_text(entry, "name"), x1, y1, x2, y2))
    return Annotation(width, height, tuple(boxes), len(objects) - len(boxes))


def _text(element: ElementTree.Element, path: str) -> str:
    found = (element.findtext(path) or "").strip()
    if not found:
        raise ValueError(f"no {path} in its {element.tag}")
    return found


def _find_root(root: Path) -> Path:
    if not root.is_dir():
        raise UserError(f"There is no folder {root}: pass --data-root.")
    candidates = [root, *sorted(p for p in root.iterdir() if p.is_dir())]
    found = [p for p in candidates if (p / "Annotations").is_dir() and (p / "ImageSets" / "Main").is_dir()]
    if not found:
        raise UserError(f"{root} holds no VOC data: Annotations, JPEGImages and ImageSets/Main are expected.")
    return found[0]


def _read_list(root: Path, name: str) -> list[str]:
    path = root / "ImageSets" / "Main" / f"{name}.txt"
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"The list {path} cannot be read: {one_line(error)}.") from error
    names = [line.split()[0] for line in lines if line.strip()]
    if not names:
        raise UserError(f"The list {path} is empty.")
    strange = [found for found in names if Path(found).name != found]
    if strange:
        raise UserError(f"{path} names '{strange[0]}', which is not the name of an image.")
    return names


def _annotation_of(root: Path, name: str) -> Annotation:
    return read_annotation(root / "Annotations" / f"{name}.xml")


def _load_split(
    root: Path, names: list[str], notes: list[Annotation], classes: tuple[str, ...], size: tuple[int, int]
) -> BoxSplit:
    with ThreadPoolExecutor() as pool:  # Pillow releases the interpreter lock while it decodes
        pixels = list(pool.map(lambda name: _read_image(root, name, size), names))
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


def _read_image(root: Path, name: str, size: tuple[int, int]) -> np.ndarray:
    paths = [root / "JPEGImages" / f"{name}{suffix}" for suffix in SUFFIXES]
    path = next((p for p in paths if p.is_file()), None)
    if path is None:
        raise UserError(f"There is no image {paths[0]} (nor {', '.join(SUFFIXES[1:])}).")
    try:
        with Image.open(path) as image:
            scaled = image.convert("RGB").resize((size[1], size[0]), Image.Resampling.BILINEAR)
            return np.asarray(scaled)
    except Exception as error:  # each codec fails in its own way
        raise UserError(f"{path} cannot be read as an image: {one_line(error)}.") from error


def _rounded(pixels: float) -> int:
    return max(STEP, STEP * round(pixels / STEP))

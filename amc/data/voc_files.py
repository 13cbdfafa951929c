"""The files of Pascal VOC's layout: JPEGImages, Annotations and the lists in ImageSets/Main."""

import xml.etree.ElementTree as ElementTree
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from amc.errors import UserError
from amc.plugins import one_line

LISTS = {"train": "train", "reward": "val", "test": "test"}
"""Our splits and VOC's lists."""
LARGEST_FILE = 2**20
"""Bytes of an annotation; a VOC file has a few thousand."""
SUFFIXES = (".jpg", ".jpeg", ".png")

Box = tuple[str, float, float, float, float]
Region = tuple[float, float, float, float]


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


def find_root(root: Path) -> Path:
    """The folder itself, or its first one, that has VOC's layout; raises UserError if there is none."""
    if not root.is_dir():
        raise UserError(f"There is no folder {root}: pass --data-root.")
    candidates = [root, *sorted(p for p in root.iterdir() if p.is_dir())]
    found = [p for p in candidates if (p / "Annotations").is_dir() and (p / "ImageSets" / "Main").is_dir()]
    if not found:
        raise UserError(f"{root} holds no VOC data: Annotations, JPEGImages and ImageSets/Main are expected.")
    return found[0]


def read_list(root: Path, name: str) -> list[str]:
    """Names of the images in a list; raises UserError if it is missing, empty or strange."""
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


def annotation_of(root: Path, name: str) -> Annotation:
    """What is said of an image; raises UserError as `read_annotation` does."""
    return read_annotation(root / "Annotations" / f"{name}.xml")


def read_notes(
    root: Path, names: Mapping[str, Sequence[str]]
) -> tuple[dict[str, list[Annotation]], tuple[str, ...]]:
    """Annotations of each split's images, and the classes of the training images in alphabetical order."""
    notes = {split: [annotation_of(root, name) for name in found] for split, found in names.items()}
    return notes, tuple(sorted({box[0] for note in notes["train"] for box in note.boxes}))


def read_pixels(root: Path, name: str, sizes: Sequence[tuple[Region | None, int, int]]) -> list[np.ndarray]:
    """Parts of one image, scaled.

    Args:
        root: of the data set.
        name: of the image.
        sizes: for each part its corners in pixels, None for the whole image, and its new height and width.

    Returns:
        uint8 [height, width, 3] each.

    Raises:
        UserError: the image is missing or damaged.
    """
    paths = [root / "JPEGImages" / f"{name}{suffix}" for suffix in SUFFIXES]
    path = next((p for p in paths if p.is_file()), None)
    if path is None:
        raise UserError(f"There is no image {paths[0]} (nor {', '.join(SUFFIXES[1:])}).")
    try:
        with Image.open(path) as image:
            colours, scale = image.convert("RGB"), Image.Resampling.BILINEAR
            return [
                np.asarray(colours.resize((width, height), scale, region)) for region, height, width in sizes
            ]
    except Exception as error:  # each codec fails in its own way
        raise UserError(f"{path} cannot be read as an image: {one_line(error)}.") from error

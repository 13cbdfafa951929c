"""Compute SIFT descriptors of a folder of images: vectors to try codecs for nearest-neighbour search on."""

import importlib
import sys
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

if not __package__:  # started as a file: Python then looks in scripts/ and not in the folder above it
    sys.path[0] = str(Path(__file__).resolve().parents[1])

import torch
from rich.progress import track
from torch import Tensor

from amc.errors import UserError
from amc.models.weights import write_tensors
from scripts.cli import console, run

SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".webp", ".ppm", ".pgm", ".tif", ".tiff")
LENGTH = 128


@dataclass(frozen=True)
class Sift:
    """Options of the descriptors."""

    images: Path
    """Folder that is searched for images, with all folders in it."""
    out: Path
    """File for the descriptors, .safetensors: `descriptors` uint8 [n, 128] and `images` int32 [n]."""
    contrast: float = 0.01
    """Keypoints of less contrast are dropped; OpenCV's own 0.04 leaves a quarter as many or fewer."""
    most: int = 1000
    """Strongest keypoints that are kept of one image."""


def main(options: Sift) -> None:
    """Compute SIFT descriptors of a folder of images, and from which image each is."""
    if options.out.suffix != ".safetensors":
        raise UserError(f"Descriptors are written as .safetensors, and {options.out} ends otherwise.")
    if options.most < 1 or not options.contrast > 0:
        raise UserError("--most must be at least 1 and --contrast above 0.")
    descriptors, images = describe(options)
    options.out.parent.mkdir(parents=True, exist_ok=True)
    write_tensors({"descriptors": descriptors, "images": images}, options.out)
    print(f"{len(descriptors)} descriptors of {int(images.max()) + 1} images in {options.out}")


def describe(options: Sift) -> tuple[Tensor, Tensor]:
    """Descriptors uint8 [n, 128], and the number of the image that each is from, int32 [n].

    Raises:
        UserError: OpenCV is not installed, or a folder or its images cannot be used.
    """
    cv2 = require_opencv()
    paths = image_files(options.images)
    cv2.setNumThreads(1)  # so that the same command gives the same file
    sift = cv2.SIFT_create(nfeatures=options.most, contrastThreshold=options.contrast)
    progress = track(paths, "computing descriptors", console=console(), transient=True)
    found = [describe_image(cv2, sift, path) for path in progress]
    counts = torch.tensor([len(part) for part in found])
    if not int(counts.sum()):
        raise UserError(f"No keypoint was found in the {len(paths)} images of {options.images}.")
    return torch.cat(found), torch.arange(len(found), dtype=torch.int32).repeat_interleave(counts)


def require_opencv() -> ModuleType:
    """The package cv2.

    Raises:
        UserError: it is not installed.
    """
    try:
        return importlib.import_module("cv2")
    except ImportError as error:
        raise UserError('SIFT needs a package: pip install "amc-compress[retrieval]".') from error


def image_files(folder: Path) -> list[Path]:
    """All images of a folder, sorted, so that their numbers are the same everywhere.

    Raises:
        UserError: there is no such folder, or it holds none.
    """
    if not folder.is_dir():
        raise UserError(f"There is no folder {folder}.")
    paths = sorted(path for path in folder.rglob("*") if path.suffix.lower() in SUFFIXES)
    if not paths:
        raise UserError(f"{folder} holds no images ({', '.join(SUFFIXES)}).")
    return paths


def describe_image(cv2: ModuleType, sift: Any, path: Path) -> Tensor:
    """Descriptors of one image, uint8 [n, 128]; OpenCV's are whole numbers from 0 to 255 already.

    Raises:
        UserError: the file is no image.
    """
    gray = cv2.imread(str(path), cv2.IMREAD_GRAYSCALE)
    if gray is None:
        raise UserError(f"{path} cannot be read as an image.")
    _, found = sift.detectAndCompute(gray, None)
    if found is None:
        return torch.zeros(0, LENGTH, dtype=torch.uint8)
    return torch.from_numpy(found).to(torch.uint8)


if __name__ == "__main__":
    run(main)

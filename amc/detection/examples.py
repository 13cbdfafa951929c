"""Example detections for a report: a few images, their labelled boxes and what networks find in them."""

import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from torch import Tensor

from amc.detection.decoding import Detections
from amc.errors import UserError
from amc.files import write_atomically
from amc.plugins import one_line

EXAMPLES_FILE = "detections.npz"
EXAMPLES = 6
LEAST_DRAWN = 0.3
"""Score from which a found box is drawn; mAP counts those of less, too."""
CLASS, CORNERS, SCORE = 0, slice(1, 5), 5


@dataclass(frozen=True)
class DetectionExamples:
    """Images, their objects and what each network finds.

    Attributes:
        images: uint8 [N, C, H, W].
        labels: float32 [N, M, 5]: class, -1 where there is no object, and corners x1, y1, x2, y2 in pixels.
        found: network's name to float32 [n, 7]: class, corners, score, and the image's position.
        names: of the classes.
    """

    images: np.ndarray
    labels: np.ndarray
    found: Mapping[str, np.ndarray]
    names: tuple[str, ...]


def gather_examples(
    images: Tensor, labels: Tensor, found: Mapping[str, Sequence[Detections]], names: Sequence[str]
) -> DetectionExamples:
    """Keep what a drawing needs.

    Args:
        images: uint8 [N, C, H, W].
        labels: [N, M, 5].
        found: network's name to its detections in these images.
        names: of the classes.
    """
    rows = {name: _rows(said) for name, said in found.items()}
    return DetectionExamples(images.numpy(), labels.float().numpy(), rows, tuple(names))


def _rows(said: Sequence[Detections]) -> np.ndarray:
    rows = [
        [float(kind), *box.tolist(), float(score), float(image)]
        for image, one in enumerate(said)
        for kind, box, score in zip(one.classes, one.boxes, one.scores, strict=True)
        if float(score) >= LEAST_DRAWN
    ]
    return np.array(rows, dtype=np.float32).reshape(-1, 7)


def save_examples(path: Path, examples: DetectionExamples) -> None:
    """Write them as npz, whole or not at all."""
    arrays = {f"found/{name}": rows for name, rows in examples.found.items()}
    arrays |= {
        "images": examples.images,
        "labels": examples.labels,
        "names": np.array(examples.names, dtype=str),
    }
    buffer = io.BytesIO()
    np.savez_compressed(buffer, allow_pickle=False, **arrays)
    write_atomically(path, buffer.getvalue())


def load_examples(path: Path) -> DetectionExamples:
    """Read what `save_examples` wrote.

    Raises:
        UserError: the file is damaged.
    """
    try:
        with np.load(path, allow_pickle=False) as file:
            arrays = dict(file)
        found = {key.removeprefix("found/"): rows for key, rows in arrays.items() if key.startswith("found/")}
        names = tuple(str(name) for name in arrays["names"])
        return DetectionExamples(arrays["images"], arrays["labels"], found, names)
    except Exception as error:  # foreign bytes can fail in any way
        raise UserError(f"{path} does not hold example detections: {one_line(error)}.") from error

"""Mean average precision by COCO's own code, pycocotools."""

import contextlib
import io
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from torch import Tensor

from amc.detection.decoding import MOST, Detections
from amc.errors import UserError


@dataclass(frozen=True)
class AveragePrecision:
    """How good detections are; each is the mean over the classes that occur.

    Attributes:
        coco: the mean over IoU thresholds 0.5, 0.55, ... 0.95 ("mAP"), in [0, 1].
        half: at an IoU of 0.5 ("AP50"), in [0, 1].
    """

    coco: float
    half: float


def require_pycocotools() -> tuple[Any, Any]:
    """The classes COCO and COCOeval; raises UserError if the package is not installed."""
    try:
        from pycocotools.coco import COCO
        from pycocotools.cocoeval import COCOeval
    except ImportError as error:
        raise UserError('Detection needs a package: pip install "amc-compress[detection]".') from error
    return COCO, COCOeval


def average_precision(detections: Sequence[Detections], labels: Tensor, classes: int) -> AveragePrecision:
    """Compare detections with the truth: 101 recall levels, at most 100 detections an image, all sizes.

    Args:
        detections: one entry an image.
        labels: [N, M, 5]: class, x1, y1, x2, y2; rows of class -1 are padding.
        classes: how many there are.

    Raises:
        UserError: pycocotools is not installed.
    """
    coco_type, judge_type = require_pycocotools()
    found = _rows(detections)
    if not len(found):  # pycocotools cannot load an empty list of results
        return AveragePrecision(0.0, 0.0)
    with contextlib.redirect_stdout(io.StringIO()):  # it reports its progress there
        truth = coco_type()
        truth.dataset = _truth(labels, classes)
        truth.createIndex()
        judge = judge_type(truth, truth.loadRes(found), "bbox")
        judge.params.areaRng, judge.params.areaRngLbl = [[0, 1e10]], ["all"]
        judge.params.maxDets = [MOST]
        judge.evaluate()
        judge.accumulate()
    # [thresholds, recalls, classes]; -1 for classes that do not occur.
    precision = judge.eval["precision"][:, :, :, 0, 0]
    return AveragePrecision(_mean(precision), _mean(precision[:1]))


def _mean(precision: np.ndarray) -> float:
    known = precision[precision > -1]
    return float(known.mean()) if known.size else 0.0


def _truth(labels: Tensor, classes: int) -> dict[str, Any]:
    annotations: list[dict[str, Any]] = []
    for image, rows in enumerate(labels.tolist()):
        for kind, x1, y1, x2, y2 in rows:
            if kind >= 0:
                box = [x1, y1, x2 - x1, y2 - y1]
                # An identifier of 0 would count as "no match" in pycocotools.
                entry = {"id": len(annotations) + 1, "image_id": image, "category_id": int(kind)}
                annotations.append({**entry, "bbox": box, "area": box[2] * box[3], "iscrowd": 0})
    return {
        "images": [{"id": image} for image in range(len(labels))],
        "categories": [{"id": kind} for kind in range(classes)],
        "annotations": annotations,
    }


def _rows(detections: Sequence[Detections]) -> np.ndarray:
    """Image, x, y, width, height, score, class of every detection; float64 [n, 7]."""
    parts = [np.zeros((0, 7))]
    for image, one in enumerate(detections):
        boxes = one.boxes.cpu().double().numpy()
        rest = np.stack([one.scores.cpu().double().numpy(), one.classes.cpu().double().numpy()], axis=1)
        number = np.full((len(boxes), 1), float(image))
        parts.append(np.hstack([number, boxes[:, :2], boxes[:, 2:] - boxes[:, :2], rest]))
    return np.concatenate(parts)

"""Do two detectors, or one detector in two runtimes, find the same objects?"""

from collections.abc import Sequence

from torch import Tensor

from amc.detection.boxes import iou
from amc.detection.decoding import Detections

SURE = 0.4
"""Detections that count; below it lie many guesses at one object, and which of them wins is arbitrary."""
FOUND = 0.2
"""The score that a counterpart needs: a detection just above `SURE` may come out just below it."""
OVERLAP = 0.75
"""Least IoU with the counterpart, the middle of COCO's thresholds."""


def same_detections(one: Sequence[Detections], other: Sequence[Detections]) -> float:
    """Share, 0 to 1, of the sure detections of either side that the other side has too.

    A counterpart has the same class, overlaps by `OVERLAP` and scores at least `FOUND`. Without a sure
    detection on any side both decide the same, and the share is 1.

    Args:
        one: what was found in each image.
        other: what was found in the same images.
    """
    found = [
        has
        for left, right in zip(one, other, strict=True)
        for has in (*_has_counterpart(left, right).tolist(), *_has_counterpart(right, left).tolist())
    ]
    return sum(found) / len(found) if found else 1.0


def _has_counterpart(wanted: Detections, offered: Detections) -> Tensor:
    """For each sure detection of the first, whether the second has it; bool [n]."""
    sure = wanted.scores > SURE
    near = iou(wanted.boxes[sure][:, None], offered.boxes[None]) >= OVERLAP
    same = wanted.classes[sure][:, None] == offered.classes[None]
    return (near & same & (offered.scores > FOUND)[None]).any(dim=1)

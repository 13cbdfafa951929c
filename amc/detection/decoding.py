"""From raw maps to detections: best locations, boxes, non-maximum suppression."""

from dataclasses import dataclass

import torch
from torch import Tensor

from amc.detection.boxes import suppress
from amc.detection.maps import boxes_at, locations, split_maps, stride_of

LEAST_SCORE = 0.05
CANDIDATES = 200
"""Best pairs of location and class that enter the suppression."""
LARGEST_OVERLAP = 0.6
MOST = 100
"""Detections of an image, as in COCO's protocol."""


@dataclass(frozen=True)
class Detections:
    """What a detector found in one image, the surest first.

    Attributes:
        boxes: [n, 4], x1, y1, x2, y2 in pixels, inside the image.
        scores: [n] in [0, 1].
        classes: int64 [n].
    """

    boxes: Tensor
    scores: Tensor
    classes: Tensor


def decode(maps: Tensor, height: int, width: int) -> list[Detections]:
    """The detections of every image.

    The score of a location is the geometric mean of its class probability and its centredness, as in the
    later version of FCOS: boxes predicted from an object's border are poor.

    Args:
        maps: [B, classes + 5, h, w], see `amc.detection.maps`.
        height: of the images, in pixels.
        width: of the images, in pixels.
    """
    stride = stride_of(maps, height)
    logits, logarithms, centred = split_maps(maps)
    scores = (logits.sigmoid() * centred.sigmoid()[..., None]).sqrt().flatten(1)
    best, index = scores.topk(min(CANDIDATES, scores.shape[1]), dim=1)
    place, classes = index // logits.shape[2], index % logits.shape[2]
    boxes = boxes_at(locations(maps, stride), logarithms, stride)
    boxes = boxes.gather(1, place[..., None].expand(-1, -1, 4))
    limits = torch.tensor([width, height, width, height], device=maps.device, dtype=boxes.dtype)
    boxes = torch.minimum(boxes.clamp(min=0), limits)
    stays = suppress(boxes, classes, best > LEAST_SCORE, LARGEST_OVERLAP)
    return [
        Detections(boxes[i][kept][:MOST], best[i][kept][:MOST], classes[i][kept][:MOST])
        for i, kept in enumerate(stays)
    ]

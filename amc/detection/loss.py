"""The loss of a detector: focal loss for classes, GIoU for boxes, cross-entropy for the centredness."""

import torch
import torch.nn.functional as F
from torch import Tensor

from amc.detection.assignment import assign
from amc.detection.boxes import generalised_iou
from amc.detection.maps import boxes_at, locations, split_maps, stride_of

ALPHA, GAMMA = 0.25, 2.0
"""Of the focal loss; the values of its paper."""


def focal_loss(logits: Tensor, wanted: Tensor) -> Tensor:
    """Sum of -a (1 - p)^2 log p over all entries, p the probability of the right answer.

    Lin et al. 2017 (arXiv:1708.02002), equation 5: the many easy background locations weigh little.

    Args:
        logits: any shape.
        wanted: 0 or 1, the same shape.
    """
    plain = F.binary_cross_entropy_with_logits(logits, wanted, reduction="none")
    right = torch.exp(-plain)
    alpha = ALPHA * wanted + (1 - ALPHA) * (1 - wanted)
    return (alpha * (1 - right) ** GAMMA * plain).sum()


def detection_loss(maps: Tensor, labels: Tensor, height: int) -> Tensor:
    """Mean over the objects' locations of focal + GIoU + centredness loss; a scalar.

    Args:
        maps: [B, classes + 5, h, w], see `amc.detection.maps`.
        labels: [B, M, 5]: class, x1, y1, x2, y2; rows of class -1 are padding.
        height: of the images, in pixels.
    """
    stride = stride_of(maps, height)
    points = locations(maps, stride)
    logits, logarithms, centred = split_maps(maps)
    target = assign(labels, points, stride)
    positive = target.positive
    count = positive.sum().clamp(min=1)
    wanted = F.one_hot(target.classes + 1, logits.shape[2] + 1)[..., 1:].to(logits)
    boxes = boxes_at(points, logarithms, stride)[positive]
    # Boxes seen from the middle of an object count more; they are also the ones that win later.
    weight = target.centredness[positive]
    missed = (1 - generalised_iou(boxes, target.boxes[positive])) * weight
    centring = F.binary_cross_entropy_with_logits(centred[positive], weight, reduction="sum")
    box_loss = missed.sum() / weight.sum().clamp(min=1e-6)
    return focal_loss(logits, wanted) / count + box_loss + centring / count

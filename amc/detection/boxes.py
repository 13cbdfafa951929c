"""Geometry of axis-aligned boxes (x1, y1, x2, y2) in pixels, and non-maximum suppression."""

import torch
from torch import Tensor

SMALLEST = 1e-7
"""Keeps quotients of areas finite."""


def area(boxes: Tensor) -> Tensor:
    """Areas of boxes [..., 4]; [...]."""
    return (boxes[..., 2] - boxes[..., 0]).clamp(min=0) * (boxes[..., 3] - boxes[..., 1]).clamp(min=0)


def intersection(one: Tensor, other: Tensor) -> Tensor:
    """Common areas of boxes [..., 4] and [..., 4], which broadcast; [...]."""
    low = torch.maximum(one[..., :2], other[..., :2])
    high = torch.minimum(one[..., 2:], other[..., 2:])
    return area(torch.cat([low, high], dim=-1))


def iou(one: Tensor, other: Tensor) -> Tensor:
    """Intersection over union of boxes [..., 4] and [..., 4], which broadcast; [...] in [0, 1]."""
    common = intersection(one, other)
    return common / (area(one) + area(other) - common).clamp(min=SMALLEST)


def generalised_iou(one: Tensor, other: Tensor) -> Tensor:
    """IoU minus the empty share of the smallest box around both; [...] in (-1, 1].

    Rezatofighi et al. 2019 (arXiv:1902.09630), algorithm 1. It has a gradient where boxes do not meet.
    """
    common = intersection(one, other)
    union = area(one) + area(other) - common
    low = torch.minimum(one[..., :2], other[..., :2])
    high = torch.maximum(one[..., 2:], other[..., 2:])
    around = area(torch.cat([low, high], dim=-1))
    return common / union.clamp(min=SMALLEST) - (around - union) / around.clamp(min=SMALLEST)


def suppress(boxes: Tensor, classes: Tensor, alive: Tensor, threshold: float) -> Tensor:
    """Greedy non-maximum suppression within each class, for a batch of images at once.

    A box stays if no better one that stays overlaps it by more than the threshold. Applying that rule to
    all boxes until nothing changes ends at the greedy answer, in as many rounds as the longest chain.

    Args:
        boxes: [B, K, 4], the best first.
        classes: int64 [B, K].
        alive: bool [B, K]; the others neither stay nor suppress.
        threshold: largest IoU of two boxes of one class that both stay.

    Returns:
        bool [B, K].
    """
    overlapping = iou(boxes[:, :, None], boxes[:, None]) > threshold
    same = classes[:, :, None] == classes[:, None]
    # Entry [b, i, j]: j comes before i and would suppress it.
    rivals = (overlapping & same).tril(-1).float()
    stays = alive
    while True:
        suppressed = (rivals @ stays.float()[..., None])[..., 0] > 0
        after = alive & ~suppressed
        if torch.equal(after, stays):
            return stays
        stays = after

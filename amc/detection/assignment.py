"""Which location of the map answers for which object."""

from dataclasses import dataclass

import torch
from torch import Tensor

from amc.detection.boxes import area

CENTRE_RADIUS = 1.5
"""Strides around an object's centre in which locations answer for it (centre sampling of FCOS)."""


@dataclass(frozen=True)
class Assignment:
    """What every location of a batch should say.

    Attributes:
        classes: int64 [B, P], -1 for background.
        boxes: [B, P, 4] in pixels; meaningless for background.
        centredness: [B, P] in [0, 1]; 0 for background.
    """

    classes: Tensor
    boxes: Tensor
    centredness: Tensor

    @property
    def positive(self) -> Tensor:
        """The locations that answer for an object; bool [B, P]."""
        return self.classes >= 0


def assign(labels: Tensor, points: Tensor, stride: float) -> Assignment:
    """Give every object the locations near its centre; where objects compete, the smaller one wins.

    Args:
        labels: [B, M, 5]: class, x1, y1, x2, y2; rows of class -1 are padding.
        points: locations [P, 2] in pixels.
        stride: pixels between two locations.
    """
    boxes = labels[:, None, :, 1:]
    place = points[None, :, None]
    centre = (boxes[..., :2] + boxes[..., 2:]) / 2
    away = (place - centre).abs().amax(dim=-1)
    inside = ((place > boxes[..., :2]) & (place < boxes[..., 2:])).all(dim=-1)
    # An object smaller than a cell may hold no location: then its own cell answers for it.
    near = (inside & (away <= CENTRE_RADIUS * stride)) | (away <= stride / 2)
    near &= (labels[..., 0] >= 0)[:, None]
    sizes = torch.where(near, area(boxes), torch.inf)
    smallest, chosen = sizes.min(dim=2)
    picked = labels.gather(1, chosen[..., None].expand(-1, -1, labels.shape[2]))
    classes = torch.where(smallest.isfinite(), picked[..., 0].long(), -1)
    centredness = centredness_of(picked[..., 1:], points) * (classes >= 0)
    return Assignment(classes, picked[..., 1:], centredness)


def centredness_of(boxes: Tensor, points: Tensor) -> Tensor:
    """sqrt(min(l, r) / max(l, r) * min(t, b) / max(t, b)) (FCOS, equation 3); [B, P] in [0, 1].

    Args:
        boxes: [B, P, 4].
        points: the location of each, [P, 2].
    """
    before, after = (points - boxes[..., :2]).clamp(min=0), (boxes[..., 2:] - points).clamp(min=0)
    shares = torch.minimum(before, after) / torch.maximum(before, after).clamp(min=1e-6)
    return shares.prod(dim=-1).sqrt()

"""What a detector's network gives: one map with `classes + 5` channels, and what they mean.

| channels | meaning at one location |
|---|---|
| 0 .. classes - 1 | logits: is an object of this class centred around here? |
| classes .. classes + 3 | logarithms of the distances to its left, top, right and bottom side, in strides |
| classes + 4 | logit of the centredness: 1 in the middle of the object, 0 at its border |

The layout is FCOS's on a single scale (Tian et al. 2019, arXiv:1904.01355). The stride is the height of the
image divided by that of the map; a location (i, j) stands for the pixel in the middle of its cell.
"""

import torch
from torch import Tensor

EXTRA = 5
"""Channels beside the classes: four distances and the centredness."""
LARGEST_LOGARITHM = 6.0
"""Distances up to 400 strides; an untrained or broken network must not overflow."""


def outputs(classes: int) -> int:
    """Channels of the map."""
    return classes + EXTRA


def stride_of(maps: Tensor, height: int) -> float:
    """Pixels between two locations, for images of this height."""
    return height / maps.shape[2]


def locations(maps: Tensor, stride: float) -> Tensor:
    """Pixels (x, y) in the middle of the cells, row by row; [h * w, 2]."""
    height, width = maps.shape[2:]
    y, x = torch.meshgrid(
        (torch.arange(height, device=maps.device) + 0.5) * stride,
        (torch.arange(width, device=maps.device) + 0.5) * stride,
        indexing="ij",
    )
    return torch.stack([x.flatten(), y.flatten()], dim=1)


def split_maps(maps: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Class logits [B, P, classes], log distances [B, P, 4] and centredness logits [B, P], P = h * w."""
    flat = maps.flatten(2).transpose(1, 2)
    return flat[..., :-EXTRA], flat[..., -EXTRA:-1], flat[..., -1]


def boxes_at(points: Tensor, logarithms: Tensor, stride: float) -> Tensor:
    """The boxes that log distances [..., P, 4] at locations [P, 2] mean; [..., P, 4] in pixels."""
    distances = logarithms.clamp(max=LARGEST_LOGARITHM).exp() * stride
    return torch.cat([points - distances[..., :2], points + distances[..., 2:]], dim=-1)

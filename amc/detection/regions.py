"""Regions of a feature map: labelled boxes with jittered copies, pooled to a small grid."""

import torch
import torch.nn.functional as F
from torch import Tensor

GRID = 3
"""Cells of a pooled region in each direction."""
SAMPLES = 2
"""Samples of a cell in each direction, which are averaged."""


def regions_of(labels: Tensor, jitter: float, generator: torch.Generator | None = None) -> Tensor:
    """Image index and corners of every labelled box, and of a jittered copy of each; [n, 5].

    Args:
        labels: [B, M, 5]: class, x1, y1, x2, y2; rows of class -1 are padding.
        jitter: largest shift of a side, as a share of the box's size; 0 gives no copies.
        generator: draws the shifts; the global one by default, which `fit` seeds.
    """
    present = labels[..., 0] >= 0
    image = torch.arange(len(labels), device=labels.device)[:, None].expand_as(present)[present]
    boxes = labels[present][:, 1:]
    rows = torch.cat([image[:, None].to(boxes), boxes], dim=1)
    if not jitter:
        return rows
    size = (boxes[:, 2:] - boxes[:, :2]).repeat(1, 2)
    shift = (2 * torch.rand(boxes.shape, generator=generator) - 1).to(boxes) * jitter
    return torch.cat([rows, torch.cat([rows[:, :1], boxes + shift * size], dim=1)])


def pool_regions(features: Tensor, regions: Tensor, height: int) -> Tensor:
    """Features of regions on a grid of 3 x 3 cells by bilinear samples (RoIAlign, arXiv:1703.06870).

    Args:
        features: [B, C, h, w].
        regions: [n, 5]: image index, x1, y1, x2, y2 in pixels of the image.
        height: of the images, in pixels.

    Returns:
        [n, C, 3, 3].
    """
    grid = _sampling_grid(features, regions, height)
    pooled, places = [features.new_zeros(0, features.shape[1], GRID, GRID)], []
    # One call an image and not one a region, which would need a copy of the whole map for each.
    for image in range(len(features)):
        rows = (regions[:, 0] == image).nonzero()[:, 0]
        below = grid[rows].flatten(0, 1)[None]
        found = F.grid_sample(features[image, None], below, align_corners=False, padding_mode="border")
        cells = found[0].unflatten(1, (len(rows), GRID * SAMPLES)).transpose(0, 1)
        if len(rows):
            pooled.append(F.avg_pool2d(cells, SAMPLES))
        places.append(rows)
    return torch.cat(pooled)[torch.cat(places).argsort()]


def _sampling_grid(features: Tensor, regions: Tensor, height: int) -> Tensor:
    """Places (x, y) of all samples in the coordinates of `grid_sample`; [n, 6, 6, 2]."""
    steps = (torch.arange(GRID * SAMPLES, device=features.device) + 0.5) / (GRID * SAMPLES)
    low, size = regions[:, 1:3, None], (regions[:, 3:] - regions[:, 1:3])[..., None]
    stride = height / features.shape[2]
    extent = torch.tensor([features.shape[3], features.shape[2]], device=features.device)[:, None] * stride
    x, y = (2 * (low + size * steps) / extent - 1).unbind(1)
    across, down = x[:, None].expand(-1, len(steps), -1), y[..., None].expand(-1, -1, len(steps))
    return torch.stack([across, down], dim=-1)

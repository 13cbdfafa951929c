"""The inputs of a layer as rows of a design matrix: patches at drawn output positions.

Columns are in the order (kernel position, input), in which a network's channels-last values lie in memory:
gathering whole channels takes a fifth of the time of gathering single values.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

POSITIONS_PER_IMAGE = 16


def design(weight: Tensor) -> Tensor:
    """A layer's weight [out, in, ...] as the matrix [out, kernel x in] that multiplies the rows."""
    return weight.movedim(1, -1).flatten(1)


def from_design(matrix: Tensor, shape: torch.Size) -> Tensor:
    """The weight of this shape, [out, in, ...], whose `design` a matrix is."""
    return matrix.reshape(shape[0], *shape[2:], shape[1]).movedim(-1, 1)


def by_group(rows: Tensor, weight: Tensor, groups: int) -> Tensor:
    """What each group of a convolution sees of rows [rows, kernel x in]: [groups, rows, kernel x in/groups].

    Args:
        rows: of a `PatchSampler`.
        weight: of the convolution, [out, in / groups, ...].
        groups: of the convolution; with 1, as of a linear layer, the result shares the memory of the rows.
    """
    if groups == 1:
        return rows[None]
    return rows.unflatten(1, (-1, groups, weight.shape[1])).permute(2, 0, 1, 3).flatten(2)


def outputs_of(rows: Tensor, weight: Tensor, groups: int) -> Tensor:
    """A layer's outputs without bias, [rows, out], from rows of its inputs; arguments as in `by_group`."""
    parts = zip(by_group(rows, weight, groups), design(weight).chunk(groups), strict=True)
    return torch.cat([part @ own.T for part, own in parts], dim=1)


class PatchSampler:
    """Turns a layer's inputs into rows, batch after batch.

    The positions depend on the seed and the height and width of the batches alone, so two networks that
    differ in channels only give rows of the same images and positions.

    Args:
        module: a Conv2d or Linear; rows hold the inputs of all of its groups, which `by_group` splits.
        positions: output positions drawn for each batch, the same for all of its images.
        seed: draws them.
    """

    def __init__(self, module: nn.Module, positions: int = POSITIONS_PER_IMAGE, seed: int = 0):
        self.module, self.positions = module, positions
        self.generator = torch.Generator().manual_seed(seed)
        self.drawn = torch.empty(0, dtype=torch.long)

    def __call__(self, x: Tensor) -> Tensor:
        """Rows [N x positions, kernel x in] of a batch [N, in, H, W]; for a linear layer its own rows."""
        if not isinstance(self.module, nn.Conv2d):
            return x.reshape(-1, x.shape[-1])
        (kh, kw), (sh, sw), (dh, dw) = self.module.kernel_size, self.module.stride, self.module.dilation
        vertical, horizontal = (int(p) for p in self.module.padding)
        padded = F.pad(x.permute(0, 2, 3, 1), (0, 0, horizontal, horizontal, vertical, vertical))
        height = (padded.shape[1] - dh * (kh - 1) - 1) // sh + 1
        width = (padded.shape[2] - dw * (kw - 1) - 1) // sw + 1
        count = min(self.positions, height * width)
        drawn = self.drawn = torch.randperm(height * width, generator=self.generator)[:count]
        rows = (drawn // width * sh)[:, None] + torch.arange(kh) * dh
        columns = (drawn % width * sw)[:, None] + torch.arange(kw) * dw
        places = rows[:, :, None] * padded.shape[2] + columns[:, None, :]  # [positions, kh, kw]
        return _gathered(padded, places).reshape(-1, kh * kw * x.shape[1])

    def outputs(self, y: Tensor) -> Tensor:
        """Rows [N x positions, out] of what has the size of the layer's outputs, for the batch seen last."""
        if not isinstance(self.module, nn.Conv2d):
            return y.reshape(-1, y.shape[-1])
        return _gathered(y.permute(0, 2, 3, 1), self.drawn).flatten(0, 1)


def _gathered(values: Tensor, places: Tensor) -> Tensor:
    """The channels of values [N, H, W, C] at these places, counted row by row: [N, places, C]."""
    return values.reshape(len(values), -1, values.shape[-1]).index_select(1, places.flatten())

"""The inputs of a layer as rows of a design matrix: patches at drawn output positions."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

POSITIONS_PER_IMAGE = 16


class PatchSampler:
    """Turns a layer's inputs into rows, batch after batch.

    The positions depend on the seed and the height and width of the batches alone, so two networks that
    differ in channels only give rows of the same images and positions.

    Args:
        module: a Conv2d (groups are not looked at) or Linear.
        positions: output positions drawn for each batch, the same for all of its images.
        seed: draws them.
    """

    def __init__(self, module: nn.Module, positions: int = POSITIONS_PER_IMAGE, seed: int = 0):
        self.module, self.positions = module, positions
        self.generator = torch.Generator().manual_seed(seed)
        self.drawn = torch.empty(0, dtype=torch.long)

    def __call__(self, x: Tensor) -> Tensor:
        """Rows [N x positions, in x kernel] of a batch [N, in, H, W]; for a linear layer its own rows.

        Columns are in the order of the flattened weight.
        """
        if not isinstance(self.module, nn.Conv2d):
            return x.reshape(-1, x.shape[-1])
        (kh, kw), (sh, sw), (dh, dw) = self.module.kernel_size, self.module.stride, self.module.dilation
        vertical, horizontal = (int(p) for p in self.module.padding)
        padded = F.pad(x, (horizontal, horizontal, vertical, vertical))
        height = (padded.shape[2] - dh * (kh - 1) - 1) // sh + 1
        width = (padded.shape[3] - dw * (kw - 1) - 1) // sw + 1
        count = min(self.positions, height * width)
        drawn = self.drawn = torch.randperm(height * width, generator=self.generator)[:count]
        rows = (drawn // width * sh)[:, None] + torch.arange(kh) * dh
        columns = (drawn % width * sw)[:, None] + torch.arange(kw) * dw
        patches = padded[:, :, rows[:, :, None], columns[:, None, :]]  # [N, C, positions, kh, kw]
        return patches.transpose(1, 2).reshape(-1, x.shape[1] * kh * kw)

    def outputs(self, y: Tensor) -> Tensor:
        """Rows [N x positions, out] of what has the size of the layer's outputs, for the batch seen last."""
        if not isinstance(self.module, nn.Conv2d):
            return y.reshape(-1, y.shape[-1])
        return y.flatten(2)[:, :, self.drawn].transpose(1, 2).flatten(0, 1)

"""Calibration on unlabeled data: batch-norm re-normalization and activation ranges.

Compression shifts the mean and variance in front of every batch norm. Replacing the statistics by those of
the *compressed* network repairs most of the loss at the price of one forward pass (He and Cheng, ECCV 2018,
"Learning Compression from Limited Unlabeled Data", section 3.2). Statistics of several batches are pooled,
E[y^2] - E[y]^2: averaging their variances would be biased low.
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from amc.groups import NORMS
from amc.quantization.protocol import PointQuantizer


def calibrate(model: nn.Module, batches: Sequence[Tensor]) -> None:
    """Fit activation ranges on the first batch and batch-norm statistics on all, in place.

    One pass does both: a quantization point fits its range when the first batch reaches it and quantizes
    from then on, so that every statistic is taken on inputs that are already quantized and re-normalized.

    Args:
        model: a compressed network; left in evaluation mode.
        batches: unlabeled images [N, C, H, W], disjoint from the reward split.
    """
    model.eval()
    norms = [m for m in model.modules() if isinstance(m, NORMS) and m.track_running_stats]
    points = [m for m in model.modules() if isinstance(m, PointQuantizer) and m.calibrating]
    if not batches or not (norms or points):
        return
    statistics = [_PooledStatistics(norm) for norm in norms]
    with torch.no_grad():
        for batch in batches if norms else batches[:1]:
            model(batch)
        for pooled in statistics:
            pooled.finish()


class _PooledStatistics:
    """Mean and variance in front of one batch norm, pooled over equally weighted calls of it."""

    def __init__(self, norm: nn.BatchNorm1d | nn.BatchNorm2d):
        self.norm, self.momentum, self.count = norm, norm.momentum, 0
        norm.train()
        norm.momentum = 1.0  # the running statistics become the batch's
        assert norm.running_mean is not None and norm.running_var is not None
        self.mean, self.square = torch.zeros_like(norm.running_mean), torch.zeros_like(norm.running_var)
        self.hook = norm.register_forward_hook(self.add)

    def add(self, *_: object) -> None:
        """Add the batch that the norm has just seen."""
        mean, variance = self.norm.running_mean, self.norm.running_var
        assert mean is not None and variance is not None
        self.mean += mean
        self.square += variance + mean.square()
        self.count += 1

    def finish(self) -> None:
        """Write the pooled statistics into the norm and put it back into evaluation mode."""
        self.hook.remove()
        mean, square = self.mean / self.count, self.square / self.count
        self.norm.running_mean = mean
        self.norm.running_var = (square - mean.square()).clamp_min_(0)
        self.norm.momentum = self.momentum
        self.norm.eval()


def has_norms(model: nn.Module) -> bool:
    """Whether re-normalization can do anything for this network."""
    return any(isinstance(module, NORMS) for module in model.modules())

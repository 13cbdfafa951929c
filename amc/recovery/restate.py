"""Batch norms in terms of chosen images: re-normalization then repairs what compression changed, no more.

Re-normalization (`amc.recovery.calibrate`) replaces the statistics of a batch norm by those in front of it on
some images. It then undoes what compression has changed, and also what these images have of their own: they
are few, and they are not the augmented ones from which the network's statistics come. A network that nothing
has compressed loses by that, too.

Here the original's norms are written anew beforehand, in terms of the same images. With mu and sigma the
statistics that a norm has, m and s those in front of it on the images,

    gamma (y - mu) / sigma + beta = gamma' (y - m) / s + beta'
    gamma' = gamma s / sigma,  beta' = beta + gamma (m - mu) / sigma

Whoever re-normalizes a compressed copy on these images gives the outputs of every norm the moments that they
have in the original on the very same images: what is peculiar to the images cancels.
"""

from collections.abc import Sequence
from functools import partial

import torch
from torch import Tensor, nn

from amc.groups import NORMS

Norm = nn.BatchNorm1d | nn.BatchNorm2d


def restate_norms(module: nn.Module, batches: Sequence[Tensor]) -> None:
    """Write the batch norms in terms of these images, in place; the module computes what it did.

    Args:
        module: left in evaluation mode. Norms without scale or shift get them.
        batches: unlabeled images [N, C, H, W], of equal weight as in `amc.recovery.calibrate`.
    """
    module.eval()
    norms = [m for m in module.modules() if isinstance(m, NORMS) and m.track_running_stats]
    if not batches or not norms:
        return
    seen: dict[Norm, list[tuple[Tensor, Tensor]]] = {norm: [] for norm in norms}
    handles = [norm.register_forward_pre_hook(partial(_see, seen[norm])) for norm in norms]
    try:
        with torch.no_grad():
            for batch in batches:
                module(batch)
    finally:
        for handle in handles:
            handle.remove()
    for norm, moments in seen.items():
        if moments:
            means, squares = (torch.stack(values).mean(0) for values in zip(*moments, strict=True))
            _restate(norm, means, (squares - means.square()).clamp_min_(0))


def _see(moments: list[tuple[Tensor, Tensor]], norm: nn.Module, inputs: tuple[Tensor, ...]) -> None:
    """Remember mean and mean square of a norm's inputs, float64 [channels], unbiased as norms take them."""
    (x,) = inputs
    others = [dim for dim in range(x.ndim) if dim != 1]
    unbiased = x.numel() > x.shape[1]
    variance, mean = torch.var_mean(x.float(), dim=others, correction=int(unbiased))
    mean = mean.double()
    moments.append((mean, variance.double() + mean.square()))


def _restate(norm: Norm, mean: Tensor, variance: Tensor) -> None:
    assert norm.running_mean is not None and norm.running_var is not None
    known = (norm.running_var.double() + norm.eps).sqrt()
    scale = torch.ones_like(known) if norm.weight is None else norm.weight.detach().double()
    shift = torch.zeros_like(known) if norm.bias is None else norm.bias.detach().double()
    # New tensors: norms that share them have statistics of their own.
    norm.bias = _like(norm.bias, shift + scale * (mean - norm.running_mean.double()) / known, norm)
    norm.weight = _like(norm.weight, scale * (variance + norm.eps).sqrt() / known, norm)
    norm.affine = True
    norm.running_mean.copy_(mean)
    norm.running_var.copy_(variance)


def _like(old: nn.Parameter | None, values: Tensor, norm: Norm) -> nn.Parameter:
    """A parameter with these values, trained where the old one was; one that there was not is not trained."""
    assert norm.running_mean is not None
    return nn.Parameter(
        values.to(norm.running_mean.dtype), requires_grad=old is not None and old.requires_grad
    )

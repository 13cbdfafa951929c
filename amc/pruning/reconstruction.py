"""Least-squares reconstruction: a layer that lost inputs learns to do without them.

Channel pruning after He, Zhang and Sun (ICCV 2017), as AMC uses it: the kept weights minimise
|| Y - X_S W'^T ||^2, where Y = X W^T are the original outputs on unlabeled images and X_S are the kept
inputs. Since Y is linear in X, everything follows from one matrix a layer, the second moment of its inputs,
computed once; every policy then solves a sub-matrix: W'^T = G_SS^-1 G_S: W^T.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from amc.network import Layer, Network

RIDGE = 1e-6
"""Added to the diagonal, relative to its mean: inputs that are always equal make the matrix singular."""

POSITIONS_PER_IMAGE = 16


@dataclass(frozen=True)
class InputMoments:
    """Moments of one layer's inputs, unfolded to columns in the order of the flattened weight.

    Attributes:
        second: float64 [d, d]; centred where an intercept is free.
        mean: float64 [d]; zero where no intercept is free.
    """

    second: Tensor
    mean: Tensor


def input_moments(
    network: Network, batches: Sequence[Tensor], positions: int = POSITIONS_PER_IMAGE, seed: int = 0
) -> dict[str, InputMoments]:
    """Input moments of every layer whose inputs can be pruned, from one pass over unlabeled images.

    Layers with a bias or a batch norm behind them have a free intercept (the batch norm is re-normalized
    afterwards), so their inputs are centred: only the variance of the error is left to minimise.

    Args:
        network: the original network.
        batches: augmented unlabeled images.
        positions: output positions drawn for each image.
        seed: draws them.
    """
    inputs = {m.module for g in network.groups if not g.frozen for m in g.members if m.side == "in"}
    layers = [v for v in network.layers if v.name in inputs and v.kind != "depthwise"]
    gatherers = {v.name: _Gatherer(network.module.get_submodule(v.name), positions, seed) for v in layers}
    model = network.copy()
    for name, gatherer in gatherers.items():
        model.get_submodule(name).register_forward_pre_hook(gatherer)
    with torch.no_grad():
        for batch in batches:
            model(batch)
    return {layer.name: gatherers[layer.name].moments(_has_intercept(layer)) for layer in layers}


def _has_intercept(layer: Layer) -> bool:
    return layer.has_bias or layer.norm is not None


class _Gatherer:
    """A forward pre-hook that adds up the moments of a layer's inputs."""

    def __init__(self, module: nn.Module, positions: int, seed: int):
        self.module, self.positions = module, positions
        self.generator = torch.Generator().manual_seed(seed)
        self.rows = 0
        self.total: Tensor | None = None
        self.products: Tensor | None = None

    def __call__(self, _: nn.Module, arguments: tuple[Tensor, ...]) -> None:
        columns = self._columns(arguments[0]).double()
        if self.total is None or self.products is None:
            size = columns.shape[1]
            self.total, self.products = columns.new_zeros(size), columns.new_zeros(size, size)
        self.rows += len(columns)
        self.total += columns.sum(dim=0)
        self.products += columns.T @ columns

    def _columns(self, x: Tensor) -> Tensor:
        """Input patches at drawn output positions, [rows, in x kernel]; for a linear layer its rows."""
        if not isinstance(self.module, nn.Conv2d):
            return x.reshape(-1, x.shape[-1])
        (kh, kw), (sh, sw), (dh, dw) = self.module.kernel_size, self.module.stride, self.module.dilation
        vertical, horizontal = (int(p) for p in self.module.padding)
        padded = F.pad(x, (horizontal, horizontal, vertical, vertical))
        height = (padded.shape[2] - dh * (kh - 1) - 1) // sh + 1
        width = (padded.shape[3] - dw * (kw - 1) - 1) // sw + 1
        count = min(self.positions, height * width)
        drawn = torch.randperm(height * width, generator=self.generator)[:count]
        rows = (drawn // width * sh)[:, None] + torch.arange(kh) * dh
        columns = (drawn % width * sw)[:, None] + torch.arange(kw) * dw
        patches = padded[:, :, rows[:, :, None], columns[:, None, :]]  # [N, C, positions, kh, kw]
        return patches.transpose(1, 2).reshape(-1, x.shape[1] * kh * kw)

    def moments(self, centred: bool) -> InputMoments:
        assert self.total is not None and self.products is not None
        mean = self.total / self.rows
        second = self.products / self.rows
        if not centred:
            return InputMoments(second, torch.zeros_like(mean))
        return InputMoments(second - mean[:, None] * mean[None, :], mean)


def reconstruct_weight(weight: Tensor, moments: InputMoments, kept: Tensor) -> tuple[Tensor, Tensor]:
    """Least-squares weight of a layer that keeps some of its inputs.

    Args:
        weight: original weight [out, in, ...].
        moments: of its inputs.
        kept: int64, sorted positions of the kept inputs along dimension 1.

    Returns:
        The new weight [out, kept, ...], and what a bias must gain to keep the mean output, [out].
    """
    per_input = weight[0, 0].numel()
    columns = (kept[:, None] * per_input + torch.arange(per_input)).reshape(-1)
    flat = weight.detach().reshape(len(weight), -1).double().cpu()
    block = moments.second[columns][:, columns]
    ridge = RIDGE * block.diagonal().mean().clamp_min(1e-12)
    block = block + ridge * torch.eye(len(block), dtype=block.dtype)
    wanted = moments.second[columns] @ flat.T + ridge * flat[:, columns].T
    solution = torch.linalg.solve(block, wanted).T
    shift = flat @ moments.mean - solution @ moments.mean[columns]
    return solution.reshape(len(weight), len(kept), *weight.shape[2:]).to(weight.dtype), shift.to(
        weight.dtype
    )


def reconstruct(
    model: nn.Module,
    network: Network,
    moments: Mapping[str, InputMoments],
    positions: Mapping[tuple[str, str], Tensor],
) -> None:
    """Refit every layer of a sliced model that lost inputs, in place.

    Args:
        model: a copy of the network, already sliced.
        network: the original.
        moments: `input_moments` of the original.
        positions: what slicing kept (`amc.slicing.kept_positions`).
    """
    for name, known in moments.items():
        kept = positions.get((name, "in"))
        if kept is None:
            continue
        original = network.module.get_submodule(name).get_parameter("weight")
        rows = positions.get((name, "out"))
        weight, shift = reconstruct_weight(original if rows is None else original[rows], known, kept)
        layer = model.get_submodule(name)
        layer.get_parameter("weight").data.copy_(weight)
        if isinstance(layer.bias, nn.Parameter):
            layer.bias.data += shift

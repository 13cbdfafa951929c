"""Least squares of one layer: from rows of its inputs to what its outputs should be.

Where a ReLU follows, a target that it clips need not be met: every output beyond the same end does as well
(Zhang, Zou, He and Sun, "Accelerating Very Deep Convolutional Networks for Classification and Detection",
TPAMI 2016, section 3.2, fit the response behind the ReLU). With t the clipped targets, that is
min_W sum max(0, z W^T - t)^2 over them and the plain squares over the others, which is convex. The outputs of
the last solution take the place of clipped targets wherever they lie beyond the end, and the same equations
are solved again; a step that goes further than to that solution needs fewer of them.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from amc.decomposition.responses import Responses
from amc.pruning.reconstruction import RIDGE, normal_equations

CLIPPED_ROUNDS, CLIPPED_STEP = 4, 1.8
"""Solutions after the first one where outputs are clipped, and how far each goes, 1 being to the solution."""


@dataclass(frozen=True)
class Live:
    """Where changes of a layer's outputs make a difference; beyond, something clips them.

    Attributes:
        low, high: ends for outputs without bias, [out] or [rows, out]; infinite where nothing clips.
    """

    low: Tensor
    high: Tensor

    def reached(self, targets: Tensor, outputs: Tensor) -> Tensor:
        """The targets [rows, out], but the outputs where these lie as far beyond an end as the targets do."""
        below = torch.where(targets <= self.low, torch.minimum(outputs, self.low), targets)
        return torch.where(targets >= self.high, torch.maximum(outputs, self.high), below)

    def chunk(self, count: int) -> list["Live"]:
        """Of so many groups of outputs."""
        ends = zip(self.low.chunk(count, dim=-1), self.high.chunk(count, dim=-1), strict=True)
        return [Live(low, high) for low, high in ends]


@dataclass(frozen=True)
class Fit:
    """A least-squares fit.

    Attributes:
        weight: float64 [out, d].
        shift: of the outputs, float64 [out]; zero without an intercept.
        mean: of the outputs, [out]; zero without an intercept.
        responses: what it was fitted to, its inputs in the order of the rows.
    """

    weight: Tensor
    shift: Tensor
    mean: Tensor
    responses: Responses


def asymmetric_fit(
    inputs: Tensor,
    targets: Tensor,
    prior: Tensor,
    intercept: bool,
    ridge: float = RIDGE,
    live: Live | None = None,
) -> Fit:
    """Least squares from rows of inputs and targets.

    Args:
        inputs: of the pruned network, [rows, d]; with an intercept they are centred, in place.
        targets: of the original, [rows, out].
        prior: weight [out, d], for what the rows leave open.
        intercept: whether a shift of the outputs is free.
        ridge: how firmly the weight is held to the prior.
        live: where the outputs make a difference; None where nothing clips them.
    """
    mean_z = inputs.mean(dim=0) if intercept else inputs.new_zeros(inputs.shape[1])
    # Products in float32 take half the time; centred first, they lose nothing that the ridge would keep.
    z = inputs.sub_(mean_z)
    second, mean = (z.T @ z).double() / len(z), mean_z.double()
    solve = normal_equations(second, prior.double(), ridge)

    def fitted(wanted: Tensor) -> Fit:
        mean_y = wanted.mean(dim=0) if intercept else wanted.new_zeros(wanted.shape[1])
        cross = (z.T @ (wanted - mean_y)).double() / len(z)
        weight = solve(cross)
        shift = weight @ mean
        return Fit(weight, mean_y - shift, mean_y, Responses(second, cross, mean, shift))

    return fitted(targets) if live is None else _clipped_fit(fitted, z, targets, live)


def _clipped_fit(fitted: Callable[[Tensor], Fit], z: Tensor, targets: Tensor, live: Live) -> Fit:
    """The fit to targets that are met where they are live.

    Args:
        fitted: solves for targets.
        z, targets, live: inputs, centred where an intercept is free, and the rest as of `asymmetric_fit`.
    """
    fit, ahead = fitted(targets), None
    for _ in range(CLIPPED_ROUNDS):
        outputs = z @ fit.weight.to(z.dtype).T + fit.mean
        ahead = outputs if ahead is None else torch.lerp(ahead, outputs, CLIPPED_STEP)
        fit = fitted(live.reached(targets, ahead))
    return fit


def grouped_fits(
    inputs: Tensor, targets: Tensor, prior: Tensor, intercept: bool, ridge: float, live: Live | None = None
) -> list[Fit]:
    """The fits of all groups of a convolution, each to its own inputs.

    Args:
        inputs: [groups, rows, d]; with an intercept they are centred, in place.
        targets, prior, intercept, ridge, live: as of `asymmetric_fit`; the outputs of the groups lie one
            after the other.
    """
    count = len(inputs)
    ranges = live.chunk(count) if live else [None] * count
    parts = zip(inputs, targets.chunk(count, dim=1), prior.chunk(count), ranges, strict=True)
    return [asymmetric_fit(z, y, own, intercept, ridge, ends) for z, y, own, ends in parts]

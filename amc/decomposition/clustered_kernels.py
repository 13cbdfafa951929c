"""Clustering of 2-D kernels (Son, Nah and Lee, ECCV 2018): few kernels, turned and scaled, serve a network.

Every k x k kernel w_ij that links an input to an output becomes a scale times a centroid in one of up to
eight poses, w_ij ~ s_ij T_t(mu_l). Clustering runs on kernels of norm 1 with a positive centre,

    s_ij = sign(centre of w_ij) ||w_ij||,   min over mu, l, t of sum || w_ij / s_ij - T_t(mu_l) ||^2,

by Lloyd's iterations: assignment to the nearest of all turned centroids, then each centroid is the mean of
its members turned back. Stored are the centroids, one index and one fp16 scale a kernel.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from amc.errors import UserError

ITERATIONS = 100
TINY = 1e-12
CHUNK = 1 << 16
"""Kernels that are compared with all centroids at once."""

Pose = Callable[[Tensor], Tensor]
POSES: tuple[Pose, ...] = (
    lambda w: w,
    lambda w: w.flip(-1),
    lambda w: w.flip(-2),
    lambda w: w.flip(-1, -2),
    lambda w: w.rot90(1, (-2, -1)),
    lambda w: w.flip(-1).rot90(1, (-2, -1)),
    lambda w: w.flip(-2).rot90(1, (-2, -1)),
    lambda w: w.flip(-1, -2).rot90(1, (-2, -1)),
)
"""The symmetries of a square; the first 2, 4 or 8 of them are groups."""
POSE_COUNTS = (1, 2, 4, 8)


def pose_permutations(side: int, poses: int) -> Tensor:
    """Which element of a flattened kernel comes where in each pose, int64 [poses, side^2].

    Args:
        side: of the square kernel.
        poses: 1, 2 (mirrored), 4 (and upside down) or 8 (and turned by 90 degrees).
    """
    if poses not in POSE_COUNTS:
        raise UserError(f"Kernels can be clustered in 1, 2, 4 or 8 poses, not in {poses}.")
    grid = torch.arange(side * side).reshape(side, side)
    return torch.stack([pose(grid).reshape(-1) for pose in POSES[:poses]])


def posed(centroids: Tensor, permutations: Tensor) -> Tensor:
    """Every centroid [K, d] in every pose, [poses * K, d]: entry t * K + l is pose t of centroid l."""
    return centroids[:, permutations].transpose(0, 1).reshape(-1, centroids.shape[1])


def normalised(kernels: Tensor) -> tuple[Tensor, Tensor]:
    """Kernels of norm 1 with a centre that is not negative, and their scales.

    A centre of zero counts as positive: with sign(0) = 0 the scale would be 0 and the kernel lost. A kernel
    of zeros has scale 0 and stays as it is.

    Args:
        kernels: [N, k, k].

    Returns:
        [N, k^2] and [N].
    """
    flat = kernels.reshape(len(kernels), -1)
    centre = kernels[:, kernels.shape[1] // 2, kernels.shape[2] // 2]
    norm = flat.norm(dim=1)
    scale = torch.where(centre < 0, -norm, norm)
    return torch.where(norm[:, None] > TINY, flat / _divisor(scale)[:, None], 0.0), scale


def _divisor(values: Tensor) -> Tensor:
    return torch.where(values.abs() > TINY, values, torch.ones_like(values))


@dataclass(frozen=True)
class Clustering:
    """What k-means found.

    Attributes:
        centroids: [K, k, k], the most frequent first.
        index: int64 [N], t * K + l for pose t of centroid l.
        scale: [N], refitted: <w, T mu> / <mu, mu>, as a mean of unit vectors is shorter than 1.
        costs: summed squared distance of the normalised kernels before each update.
    """

    centroids: Tensor
    index: Tensor
    scale: Tensor
    costs: tuple[float, ...]

    def kernels(self, poses: int) -> Tensor:
        """The kernels that are stored, [N, k, k]."""
        flat = self.centroids.flatten(1)
        table = posed(flat, pose_permutations(self.centroids.shape[-1], poses))
        return (self.scale[:, None] * table[self.index]).unflatten(1, self.centroids.shape[1:])


def cluster_kernels(
    kernels: Tensor,
    centroids: int,
    poses: int = 8,
    seed: int = 0,
    iterations: int = ITERATIONS,
    start: Tensor | None = None,
) -> Clustering:
    """Cluster kernels up to scale and pose.

    Args:
        kernels: float [N, k, k].
        centroids: K; with less than K kernels there are N.
        poses: 1, 2, 4 or 8.
        seed: draws the kernels to start from, distinct ones as far as there are enough.
        iterations: at most; it stops when no index changes.
        start: centroids [K, k, k] to begin with, the most frequent first, instead of some of the kernels.

    Raises:
        UserError: no centroids are asked for, kernels are not square, or the poses are none of these.
    """
    if centroids < 1:
        raise UserError(f"Clustering needs at least 1 centroid, not {centroids}.")
    if kernels.shape[1] != kernels.shape[2]:
        raise UserError(f"Only square kernels can be turned, not {kernels.shape[1]} x {kernels.shape[2]}.")
    kernels = kernels.detach().float().cpu()
    permutations = pose_permutations(kernels.shape[-1], poses)
    points, _ = normalised(kernels)
    # Kernels of zeros would draw centroids towards 0; they have scale 0 wherever they belong.
    alive = points.square().sum(dim=1) > 0
    count = min(centroids, len(points))
    if start is None or len(start) < count:
        found = _start(points[alive] if alive.any() else points, count, seed)
    else:
        found = start[:count].flatten(1)
    index = torch.full((len(points),), -1)
    costs: list[float] = []
    for _ in range(iterations):
        new, cost = _assign(points, found, permutations)
        costs.append(cost)
        if torch.equal(new, index):
            break
        index = new
        found = _means(points[alive], index[alive], found, permutations)
    else:
        index, _ = _assign(points, found, permutations)
    found, index = _by_frequency(found, index)
    scale = _scales(kernels.flatten(1), found, index, permutations)
    return Clustering(found.reshape(-1, *kernels.shape[1:]), index, scale, tuple(costs))


def _start(points: Tensor, count: int, seed: int) -> Tensor:
    """Random points, [count, d]; equal ones are taken only when all distinct ones are."""
    order = torch.randperm(len(points), generator=torch.Generator().manual_seed(seed))
    _, which = torch.unique(points, dim=0, return_inverse=True)
    seen: set[int] = set()
    again: list[int] = []
    chosen: list[int] = []
    for place in order.tolist():
        if len(chosen) == count:
            break
        (again if int(which[place]) in seen else chosen).append(place)
        seen.add(int(which[place]))
    filled = (chosen + again + chosen * count)[:count]
    return points[torch.tensor(filled)].clone()


def _assign(points: Tensor, centroids: Tensor, permutations: Tensor) -> tuple[Tensor, float]:
    """The nearest turned centroid of each point, int64 [N], and the summed squared distance."""
    table = posed(centroids, permutations)
    offset = table.square().sum(dim=1)
    nearest, total = [], 0.0
    for part in points.split(CHUNK):
        distance, place = torch.addmm(offset, part, table.T, alpha=-2).min(dim=1)
        nearest.append(place)
        total += float((distance + part.square().sum(dim=1)).double().sum())
    return torch.cat(nearest), total


def _means(points: Tensor, index: Tensor, old: Tensor, permutations: Tensor) -> Tensor:
    """Means of the members turned back; a centroid without members stays where it is."""
    count = len(old)
    back = permutations.argsort(dim=1)[index // count]
    turned = points.gather(1, back)
    sums = torch.zeros_like(old).index_add_(0, index % count, turned)
    members = torch.bincount(index % count, minlength=count)[:, None]
    return torch.where(members > 0, sums / members.clamp_min(1), old)


def _by_frequency(centroids: Tensor, index: Tensor) -> tuple[Tensor, Tensor]:
    count = len(centroids)
    order = torch.bincount(index % count, minlength=count).argsort(descending=True, stable=True)
    return centroids[order], index // count * count + order.argsort()[index % count]


def _scales(kernels: Tensor, centroids: Tensor, index: Tensor, permutations: Tensor) -> Tensor:
    """Least-squares scales for the centroids as they are, [N]."""
    chosen = posed(centroids, permutations)[index]
    return (kernels * chosen).sum(dim=1) / _divisor(chosen.square().sum(dim=1))

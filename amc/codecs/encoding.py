"""Choose the codes of vectors: iterated local search with iterated conditional modes (ICM).

Martinez, Zakhmi, Hoos and Little, ECCV 2018, "LSQ++"; the encoder is that of LSQ (ECCV 2016). The squared
error of a vector x is |x|^2 plus a unary term of every codebook, |c|^2 - 2<x, c>, plus a pairwise term of
every two, 2<c, c'>: a small, fully connected random field. ICM sets one code at a time to its best value.
Its fixed points are poor, so some codes are drawn anew, ICM runs again, and a vector keeps what is strictly
better.

Everywhere: vectors float32 [n, d], codes int64 [n, M], codebooks float32 [M, K, d].
"""

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

CHUNK = 2048
"""Vectors at a time: the unary terms take 4 * CHUNK * M * K bytes, 15 MB for 7 codebooks of 256."""


@dataclass(frozen=True)
class LocalSearch:
    """Effort of the local search; the defaults are those of the paper's training.

    Attributes:
        rounds: perturbations of every vector, each followed by ICM.
        sweeps: passes of ICM over all codebooks.
        perturbations: codes drawn anew; their places are drawn with replacement, so some may coincide.
    """

    rounds: int = 8
    sweeps: int = 4
    perturbations: int = 4


def decode(codebooks: Tensor, codes: Tensor) -> Tensor:
    """Sums of the entries that codes point to, [n, d]."""
    return F.embedding_bag(codes + _offsets(codebooks), codebooks.flatten(0, 1), mode="sum")


def squared_errors(vectors: Tensor, codes: Tensor, codebooks: Tensor) -> Tensor:
    """|x - decoded|^2 of every vector, [n]."""
    return (vectors - decode(codebooks, codes)).square().sum(dim=1)


def unary_terms(vectors: Tensor, codebooks: Tensor) -> Tensor:
    """What an entry costs by itself, |c|^2 - 2<x, c>: [M, n, K]."""
    squares = codebooks.square().sum(dim=2)[:, None, :]
    return torch.baddbmm(squares, vectors.expand(len(codebooks), -1, -1), codebooks.mT, alpha=-2)


def pair_terms(codebooks: Tensor) -> Tensor:
    """What two entries cost together, 2<c, c'>: [M, M * K, K].

    Table j holds, in row i * K + k, the costs of all entries of codebook j beside entry k of codebook i. Its
    rows of codebook j itself have no meaning.
    """
    count, entries, _ = codebooks.shape
    flat = codebooks.flatten(0, 1)
    return (2 * flat @ flat.T).view(count * entries, count, entries).transpose(0, 1).contiguous()


def icm(unary: Tensor, pairs: Tensor, codes: Tensor, sweeps: int, generator: torch.Generator) -> Tensor:
    """Set one code after the other to its best value given the rest; no step raises an error.

    Args:
        unary: [M, n, K].
        pairs: `pair_terms` of the codebooks.
        codes: where to start.
        sweeps: passes over all codebooks, each in an order that is drawn for it.
        generator: draws the orders.

    Returns:
        New codes.
    """
    codes, moving = codes.clone(), torch.arange(len(codes))
    for _ in range(sweeps):
        order = torch.randperm(len(unary), generator=generator).tolist()
        before = codes[moving]
        after = _sweep(unary, pairs, before, moving, order)
        codes[moving] = after
        # A vector that no codebook moved is at a fixed point: later sweeps would leave it as it is.
        moving = moving[(after != before).any(dim=1)]
        if len(moving) == 0:
            break
    return codes


def _sweep(unary: Tensor, pairs: Tensor, codes: Tensor, rows: Tensor, order: list[int]) -> Tensor:
    """One pass over the codebooks for these rows of the unary terms."""
    count, entries = len(unary), unary.shape[2]
    places = codes + torch.arange(count) * entries
    whole = len(rows) == unary.shape[1]
    for j in order:
        others = torch.cat([places[:, :j], places[:, j + 1 :]], dim=1)
        costs = unary[j] if whole else unary[j][rows]
        if count > 1:
            costs = F.embedding_bag(others, pairs[j], mode="sum").add_(costs)
        # NumPy's argmin is vectorised; PyTorch's took ten times as long on the CPUs that it was tried on.
        places[:, j] = torch.from_numpy(costs.numpy().argmin(axis=1)) + j * entries
    return places - torch.arange(count) * entries


def perturbed(codes: Tensor, entries: int, places: int, generator: torch.Generator) -> Tensor:
    """Codes with some drawn anew, each at a random place."""
    size = (len(codes), places)
    where = torch.randint(codes.shape[1], size, generator=generator)
    return codes.scatter(1, where, torch.randint(entries, size, generator=generator))


def random_codes(vectors: int, codebooks: int, entries: int, generator: torch.Generator) -> Tensor:
    """Codes [vectors, codebooks] without any meaning."""
    return torch.randint(entries, (vectors, codebooks), generator=generator)


def encode(
    vectors: Tensor, codebooks: Tensor, codes: Tensor, search: LocalSearch, generator: torch.Generator
) -> Tensor:
    """Improve the codes of vectors; no vector's error rises.

    Memory beyond arguments and result is bounded by `CHUNK` and the pairwise terms, 4 * (M * K)^2 bytes.
    """
    pairs = pair_terms(codebooks)
    chunks = zip(vectors.split(CHUNK), codes.split(CHUNK), strict=True)
    return torch.cat([_encode_chunk(x, codebooks, pairs, b, search, generator) for x, b in chunks])


def _encode_chunk(
    vectors: Tensor,
    codebooks: Tensor,
    pairs: Tensor,
    codes: Tensor,
    search: LocalSearch,
    generator: torch.Generator,
) -> Tensor:
    unary = unary_terms(vectors, codebooks)
    best = squared_errors(vectors, codes, codebooks)
    for _ in range(search.rounds):
        start = perturbed(codes, codebooks.shape[1], search.perturbations, generator)
        found = icm(unary, pairs, start, search.sweeps, generator)
        errors = squared_errors(vectors, found, codebooks)
        better = errors < best
        codes, best = torch.where(better[:, None], found, codes), torch.where(better, errors, best)
    return codes


def _offsets(codebooks: Tensor) -> Tensor:
    """Where the entries of each codebook begin among all, [M]."""
    return torch.arange(len(codebooks), device=codebooks.device) * codebooks.shape[1]

"""Where the training of additive codes starts: random codes, or rotated data and the codes of OPQ or ChainQ.

The authors start from optimized product quantization (25 iterations, "natural" order), then a chain of
codebooks (25 iterations), then LSQ. Faiss starts from random codes. Training takes no more of a start than
the rotation and the codes, as its first step fits the codebooks.

Rotations are orthogonal [d, d]; rotated vectors are `vectors @ rotation`.
"""

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from amc.codecs.encoding import decode, random_codes, unary_terms
from amc.codecs.fitting import fit_codebooks

StartName = Literal["random", "opq", "chain"]
CELLS = 2**21
"""Sums of two entries that the chain's encoder holds at a time."""
MARGIN = 4096
"""Vectors at a time whose distances to the entries of one block are held."""


@dataclass(frozen=True)
class Start:
    """Where training starts.

    Attributes:
        rotation: of the data.
        codes: of the rotated data.
    """

    rotation: Tensor
    codes: Tensor


def start(
    vectors: Tensor,
    name: StartName,
    codebooks: int,
    entries: int,
    generator: torch.Generator,
    iterations: int = 25,
) -> Start:
    """The start of this name; `iterations` each of OPQ and, for "chain", of ChainQ after it."""
    if name == "random":
        return Start(torch.eye(vectors.shape[1]), random_codes(len(vectors), codebooks, entries, generator))
    found = opq(vectors, codebooks, entries, iterations, generator)
    return found if name == "opq" else chain(vectors, found, entries, iterations)


def opq(vectors: Tensor, codebooks: int, entries: int, iterations: int, generator: torch.Generator) -> Start:
    """Optimized product quantization (Ge et al., Norouzi and Fleet, 2013) from the natural order.

    Codebook i only knows the i-th block of the rotated dimensions; blocks differ by one where they must.
    """
    rotation = torch.eye(vectors.shape[1])
    blocks = torch.arange(vectors.shape[1]).tensor_split(codebooks)
    chosen = [torch.randperm(len(vectors), generator=generator)[:entries] for _ in blocks]
    books = [vectors[rows][:, block] for rows, block in zip(chosen, blocks, strict=True)]
    codes = _nearest_by_block(vectors, books, blocks)
    for _ in range(iterations):
        decoded = torch.cat([book[codes[:, i]] for i, book in enumerate(books)], dim=1)
        rotation = procrustes(vectors, decoded)
        turned = vectors @ rotation
        books = [_means(turned[:, block], codes[:, i], books[i]) for i, block in enumerate(blocks)]
        codes = _nearest_by_block(turned, books, blocks)
    return Start(rotation, codes)


def procrustes(vectors: Tensor, decoded: Tensor) -> Tensor:
    """The rotation of the vectors that brings them closest to what was decoded, [d, d]."""
    left, _, right = torch.linalg.svd(vectors.double().T @ decoded.double())
    return (left @ right).float()


def _nearest_by_block(vectors: Tensor, books: list[Tensor], blocks: tuple[Tensor, ...]) -> Tensor:
    columns = [
        torch.cat([torch.cdist(x, book).argmin(dim=1) for x in vectors[:, block].split(MARGIN)])
        for book, block in zip(books, blocks, strict=True)
    ]
    return torch.stack(columns, dim=1)


def _means(vectors: Tensor, codes: Tensor, before: Tensor) -> Tensor:
    """Means of the vectors by code; an entry without vectors stays where it was."""
    counts = torch.bincount(codes, minlength=len(before))[:, None]
    sums = torch.zeros_like(before).index_add_(0, codes, vectors)
    return torch.where(counts > 0, sums / counts.clamp_min(1), before)


def chain(vectors: Tensor, begin: Start, entries: int, iterations: int) -> Start:
    """ChainQ: dimension block i is the sum of codebooks i and i + 1, so that encoding is exact (Viterbi).

    As in the authors' code the rotation goes on learning.
    """
    rotation, codes = begin.rotation, begin.codes
    if codes.shape[1] == 1:
        return begin  # a chain of one is what OPQ found
    for _ in range(iterations):
        turned = vectors @ rotation
        books = fit_chain(turned, codes, entries)
        codes = encode_chain(turned, books)
        rotation = procrustes(vectors, decode(books, codes))
    return Start(rotation, codes)


def fit_chain(vectors: Tensor, codes: Tensor, entries: int) -> Tensor:
    """Codebooks [M, K, d] of a chain by least squares, zero outside their one or two blocks."""
    count = codes.shape[1]
    books = torch.zeros(count, entries, vectors.shape[1])
    for i, block in enumerate(torch.arange(vectors.shape[1]).tensor_split(count - 1)):
        first, last = int(block[0]), int(block[-1]) + 1
        books[i : i + 2, :, first:last] = fit_codebooks(vectors[:, first:last], codes[:, i : i + 2], entries)
    return books


def encode_chain(vectors: Tensor, codebooks: Tensor) -> Tensor:
    """The best codes [n, M] of a chain of codebooks, by dynamic programming."""
    links = 2 * codebooks[:-1] @ codebooks[1:].mT
    size = max(1, CELLS // codebooks.shape[1] ** 2)
    return torch.cat([_viterbi(unary_terms(x, codebooks), links) for x in vectors.split(size)])


def _viterbi(unary: Tensor, links: Tensor) -> Tensor:
    """Codes [n, M] of least cost for unary terms [M, n, K] and links [M - 1, K, K] between neighbours."""
    costs = [unary[0]]
    for own, link in zip(unary[1:], links, strict=True):
        costs.append((costs[-1][:, None, :] + link.T).amin(dim=2) + own)
    codes = [costs[-1].argmin(dim=1)]
    for cost, link in zip(reversed(costs[:-1]), links.flip(0), strict=True):
        codes.append((cost + link.T[codes[-1]]).argmin(dim=1))
    return torch.stack(codes[::-1], dim=1)

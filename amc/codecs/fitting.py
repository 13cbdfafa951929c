"""Fit codebooks to vectors whose codes are fixed: LSQ++'s fast update by least squares.

With the codes as a matrix B of zeros and ones, one column a vector, the codebooks C minimise
|X - C B|^2 + ridge |C|^2. B is sparse, but B B^T is small, and counting makes it: its diagonal blocks are the
histograms of the codes, the others count how often two entries meet. B X^T is a sum of vectors by code. What
remains is one Cholesky solution for all dimensions, whose cost does not depend on how many vectors there are.
"""

import torch
from torch import Tensor

RIDGE = 1e-4
"""The paper's; without it B B^T is singular, as the blocks of any two codebooks count the same vectors."""
CHUNK = 16384
"""Vectors at a time that are widened to float64."""


def co_occurrences(codes: Tensor, entries: int) -> Tensor:
    """B B^T: how often entries meet in one vector, float64 [M * K, M * K]."""
    count = codes.shape[1]
    blocks = torch.zeros(count, entries, count, entries, dtype=torch.float64)
    for i in range(count):
        blocks[i, :, i].diagonal().copy_(torch.bincount(codes[:, i], minlength=entries))
        for j in range(i):
            met = torch.bincount(codes[:, i] * entries + codes[:, j], minlength=entries**2)
            blocks[i, :, j] = met.view(entries, entries)
            blocks[j, :, i] = blocks[i, :, j].T
    return blocks.view(count * entries, count * entries)


def sums_by_code(vectors: Tensor, codes: Tensor, entries: int) -> Tensor:
    """B X^T: the sum of the vectors that use an entry, float64 [M * K, d]."""
    count = codes.shape[1]
    sums = torch.zeros(count * entries, vectors.shape[1], dtype=torch.float64)
    for x, b in zip(vectors.split(CHUNK), codes.split(CHUNK), strict=True):
        wide = x.double()
        for j in range(count):
            sums.index_add_(0, b[:, j] + j * entries, wide)
    return sums


def fit_codebooks(vectors: Tensor, codes: Tensor, entries: int, ridge: float = RIDGE) -> Tensor:
    """The codebooks float32 [M, K, d] that minimise |X - C B|^2 + ridge |C|^2; an unused entry is zero."""
    gram = co_occurrences(codes, entries)
    gram.diagonal().add_(ridge)
    factor = torch.linalg.cholesky(gram)
    solved = torch.cholesky_solve(sums_by_code(vectors, codes, entries), factor)
    return solved.view(codes.shape[1], entries, -1).float()

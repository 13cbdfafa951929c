"""Scores of a database for queries: queries as they are, the database as codes."""

import torch
from torch import Tensor


def asymmetric_scores(table: Tensor, codes: Tensor) -> Tensor:
    """The inner product of every query with every decoded item, sum_m table[q, m, b_m]; [Q, N].

    Looked up and not multiplied: items with equal codes get exactly equal scores.

    Args:
        table: of the queries, [Q, M, K].
        codes: of the database, int64 [N, M].
    """
    total = table[:, 0].index_select(1, codes[:, 0])
    for part in range(1, codes.shape[1]):
        total += table[:, part].index_select(1, codes[:, part])
    return total


def leave_one_out(pairs: Tensor) -> Tensor:
    """Entries [N, N] without the diagonal, [N, N - 1]: every image asks for all others."""
    count = len(pairs)
    others = ~torch.eye(count, dtype=torch.bool, device=pairs.device)
    return pairs[others].view(count, count - 1)

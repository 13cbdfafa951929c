"""Product quantization of embeddings: softly while a network learns, hard in the database."""

import torch
from torch import Tensor

ALPHA = 5.0
"""Sharpness of the soft assignment; the paper finds little difference from 1 to 20."""


def soft_assignment(table: Tensor, alpha: float = ALPHA) -> Tensor:
    """Shares a_mk = exp(-alpha |x_m - c_mk|^2) / sum_k' exp(-alpha |x_m - c_mk'|^2); [..., M, K].

    Between vectors of length 1 the squared distance is 2 - 2 <x_m, c_mk>, so the shares are a softmax of the
    table. With alpha towards infinity they become hard; with 0 all are equal.

    Args:
        table: inner products of unit sub-vectors and words, [..., M, K].
        alpha: sharpness.
    """
    return torch.softmax(2 * alpha * table, dim=-1)


def hard_codes(table: Tensor) -> Tensor:
    """The nearest word of every sub-vector, int64 [..., M]."""
    return table.argmax(dim=-1)


def decode(codes: Tensor, words: Tensor) -> Tensor:
    """The vectors [N, M, S] that codes int64 [N, M] stand for, given the words [M, K, S]."""
    return words[torch.arange(words.shape[0], device=words.device), codes]


def soft_vectors(assignment: Tensor, words: Tensor) -> Tensor:
    """The softly quantized sub-vectors s_m = sum_k a_mk c_mk; [N, M, S].

    Args:
        assignment: shares [N, M, K].
        words: [M, K, S].
    """
    return torch.einsum("nmk,mks->nms", assignment, words)

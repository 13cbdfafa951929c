"""A search: queries in floats, a database in codes, judged by labels."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from amc.retrieval.average_precision import mean_average_precision
from amc.retrieval.scores import asymmetric_scores

QUERIES = 100
"""That are ranked at once."""


@dataclass(frozen=True)
class Collection:
    """Images as a network sees them.

    Attributes:
        vectors: unit sub-vectors, [N, M, S].
        labels: int64 [N].
    """

    vectors: Tensor
    labels: Tensor

    def take(self, chosen: Tensor) -> "Collection":
        """The chosen ones, bool [N]."""
        return Collection(self.vectors[chosen], self.labels[chosen])

    def with_more(self, other: "Collection") -> "Collection":
        """These, then the others."""
        return Collection(torch.cat([self.vectors, other.vectors]), torch.cat([self.labels, other.labels]))


def search_precision(queries: Collection, labels: Tensor, codes: Tensor, words: Tensor) -> float:
    """The mAP of queries in a database of codes.

    Args:
        queries: what is asked for.
        labels: of the database, int64 [N].
        codes: of the database, int64 [N, M].
        words: codebooks, [M, K, S].
    """
    table = torch.einsum("nms,mks->nmk", queries.vectors, words)
    return _mean_precision(queries, labels, lambda rows: asymmetric_scores(table[rows], codes))


def float_precision(queries: Collection, database: Collection) -> float:
    """The mAP where nothing is quantized: what codes can at best hope for."""
    vectors = database.vectors.flatten(1)
    return _mean_precision(
        queries, database.labels, lambda rows: queries.vectors[rows].flatten(1) @ vectors.T
    )


def _mean_precision(queries: Collection, labels: Tensor, scores: Callable[[Tensor], Tensor]) -> float:
    """Mean over queries, a few of them at a time: a whole table of scores may not fit."""
    total = 0.0
    for rows in torch.arange(len(queries.labels)).split(QUERIES):
        relevant = queries.labels[rows, None] == labels[None]
        total += mean_average_precision(scores(rows), relevant) * len(rows)
    return total / len(queries.labels)

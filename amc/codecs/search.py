"""Search among coded vectors by look-ups, exact neighbours, and recall."""

import torch
from torch import Tensor
from torch.nn import functional as F

from amc.codecs.additive import AdditiveCodec, StoredVectors

QUERIES = 64
"""Queries at a time: distances take 4 * QUERIES bytes for every vector in the base."""


def nearest(codec: AdditiveCodec, stored: StoredVectors, queries: Tensor, count: int) -> Tensor:
    """Rows of the coded vectors that are nearest to each query, best first, int64 [queries, count].

    Distances are asymmetric: a query [d] is not coded. Each is M look-ups in a table of inner products and
    one in the norms; the query's own norm is left out, as it is the same for all.
    """
    flat = codec.codebooks.flatten(0, 1)
    places = stored.codes.long() + torch.arange(len(codec.codebooks)) * codec.codebooks.shape[1]
    norms = codec.norms[stored.norms.long()]
    found = []
    for some in queries.float().split(QUERIES):
        distances = F.embedding_bag(places, -2 * flat @ some.T, mode="sum") + norms[:, None]
        found.append(distances.topk(count, dim=0, largest=False).indices.T)
    return torch.cat(found)


def exact_neighbours(queries: Tensor, base: Tensor) -> Tensor:
    """Row of the base [n, d] that is nearest to each query [queries, d], by float64 distances."""
    wide, squares = base.double(), base.double().square().sum(dim=1)
    parts = [(squares - 2 * some.double() @ wide.T).argmin(dim=1) for some in queries.split(QUERIES)]
    return torch.cat(parts)


def recall(found: Tensor, true: Tensor, first: int) -> float:
    """Share of the queries whose true neighbour [queries] is among the first of those found [queries, k]."""
    return float((found[:, :first] == true[:, None]).any(dim=1).double().mean())

"""Mean average precision of rankings, exact where scores are tied."""

import torch
from torch import Tensor

CHUNK = 2**22
"""Scores that are ranked at once."""


def mean_average_precision(scores: Tensor, relevant: Tensor) -> float:
    """Mean over queries of the mean precision at the ranks of all relevant items, in [0, 1].

    Short codes give many items the same score. The precision is then its expectation over all orders of the
    tied items (McSherry and Najork 2008), so that no sorting routine decides it.

    Args:
        scores: [Q, N], larger is nearer.
        relevant: bool [Q, N]; queries without a relevant item do not count.

    Returns:
        The mean; 0 if no query has a relevant item.
    """
    counted = relevant.any(dim=1)
    scores, relevant = scores[counted], relevant[counted]
    if not len(scores):
        return 0.0
    rows = max(1, CHUNK // scores.shape[1])
    parts = zip(scores.split(rows), relevant.split(rows), strict=True)
    return float(torch.cat([_average_precision(some, good) for some, good in parts]).mean())


def _average_precision(scores: Tensor, relevant: Tensor) -> Tensor:
    """For each query, float64 [Q]."""
    ranked, order = scores.sort(dim=1, descending=True)
    good = relevant.gather(1, order).double()
    first, last = _ties(ranked)
    so_far = good.cumsum(1)
    before = so_far.gather(1, first) - good.gather(1, first)
    tied_good, tied = so_far.gather(1, last) - before, (last - first + 1).double()
    rank = torch.arange(scores.shape[1], device=scores.device)
    # The item at this rank is relevant with probability tied_good / tied; given that, each of the tied
    # items above it is with probability (tied_good - 1) / (tied - 1).
    above = (rank - first) * (tied_good - 1) / (tied - 1).clamp(min=1)
    precision = (before + 1 + above) / (rank + 1)
    return (tied_good / tied * precision).sum(1) / good.sum(1)


def _ties(ranked: Tensor) -> tuple[Tensor, Tensor]:
    """For each place in sorted rows [Q, N], the first and the last place with the same score."""
    count = ranked.shape[1]
    places = torch.arange(count, device=ranked.device).expand_as(ranked)
    edge = torch.ones_like(ranked[:, :1], dtype=torch.bool)
    differs = ranked[:, 1:] != ranked[:, :-1]
    starts, ends = torch.cat([edge, differs], 1), torch.cat([differs, edge], 1)
    first = torch.where(starts, places, 0).cummax(1).values
    last = torch.where(ends, places, count).flip(1).cummin(1).values.flip(1)
    return first, last

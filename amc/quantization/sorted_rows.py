"""Rows of numbers, sorted once, that tell how many lie between thresholds and what they sum to.

Learning one-dimensional quantizers means to ask this again and again for the same numbers; sorted, one answer
takes as many binary searches as there are thresholds, however many numbers there are.
"""

import torch
from torch import Tensor
from torch.nn import functional as F


class SortedRows:
    """Numbers [rows, n] in float64.

    Attributes:
        values: sorted, [rows, n].
        squares: sum of their squares, [rows].
    """

    def __init__(self, rows: Tensor):
        self.values = rows.detach().double().sort(dim=1).values
        self.squares = self.values.square().sum(dim=1)
        self._sums = F.pad(self.values.cumsum(dim=1), (1, 0))

    def cells(self, thresholds: Tensor) -> tuple[Tensor, Tensor]:
        """How many numbers lie in each cell, and their sums.

        Args:
            thresholds: ascending [rows, m]; a number on a threshold belongs to the lower cell.

        Returns:
            Counts int64 and sums float64, both [rows, m + 1].
        """
        inner = torch.searchsorted(self.values, thresholds.double().contiguous(), right=True)
        edges = F.pad(F.pad(inner, (1, 0)), (0, 1), value=self.values.shape[1])
        return edges.diff(dim=1), self._sums.gather(1, edges).diff(dim=1)

    def error(self, levels: Tensor, counts: Tensor, sums: Tensor) -> Tensor:
        """Squared error [rows] when cell l of [rows, cells] is represented by levels [rows, cells]."""
        levels = levels.double()
        return self.squares - 2 * (levels * sums).sum(dim=1) + (levels.square() * counts).sum(dim=1)


def midpoints(levels: Tensor) -> Tensor:
    """Thresholds [..., m - 1] halfway between ascending levels [..., m]."""
    return (levels[..., 1:] + levels[..., :-1]) / 2

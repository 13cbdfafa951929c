"""Which networks are worth having: those that no other one beats in both score and cost."""

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Point:
    """A network in the plane of cost and score.

    Attributes:
        cost: in the cost's unit, lower is better.
        score: in [0, 1], higher is better.
        series: which networks it belongs to: a searcher's, say.
    """

    cost: float
    score: float
    series: str = ""


def front(points: Sequence[Point]) -> list[int]:
    """Indices of the points that no other one dominates, by rising cost.

    A point is dominated by one that is no worse in both and better in one; equal points stay together.
    """
    order = sorted(range(len(points)), key=lambda i: (points[i].cost, -points[i].score, i))
    found: list[int] = []
    for index in order:
        point, last = points[index], points[found[-1]] if found else None
        if last is None or point.score > last.score or (point.cost, point.score) == (last.cost, last.score):
            found.append(index)
    return found

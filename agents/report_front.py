"""What a search's score-against-cost drawing adds to the dots: the front, and measured milliseconds."""

from collections.abc import Sequence

from matplotlib.axes import Axes

from agents.figures import GREY, ORANGE
from agents.log import Row
from agents.outcome import ORIGINAL
from agents.pareto import Point, front
from agents.report_data import Figures, Record
from agents.report_text import COST_NAMES


def draw_front(axes: Axes, rows: Sequence[Row], cost: str, divisor: float) -> None:
    """Join the evaluations that no other one beats in both score and cost; one alone is no line."""
    _draw_line(axes, [Point(row.costs[cost] / divisor, row.score) for row in rows])


def measured_networks(record: Record) -> list[Figures]:
    """The networks that were timed at the end of a search that counts no latency; none or several."""
    found = [each for each in record.networks if each.latency_source and not each.case]
    return found if len(found) > 1 else []


def draw_measured(axes: Axes, record: Record, networks: Sequence[Figures]) -> None:
    """Score against measured latency, one named mark a network, and the front of them."""
    points = [Point(each.costs["latency"], each.reward_score) for each in networks]
    _draw_line(axes, points)
    for each, point in zip(networks, points, strict=True):
        best = each.name == record.algorithm
        axes.scatter([point.cost], [100 * point.score], s=130 if best else 40, marker="*" if best else "D")
        axes.collections[-1].set_color(ORANGE if best else GREY)
        # The slowest stands at the right edge.
        side = "right" if each.name == ORIGINAL else "left"
        place = (-7 if side == "right" else 7, -9)
        axes.annotate(
            each.name, (point.cost, 100 * point.score), place, textcoords="offset points", ha=side, fontsize=7
        )
    axes.set_xlabel(f"{COST_NAMES['latency']}, measured ({record.latency_unit})")
    axes.margins(x=0.12)
    axes.grid(alpha=0.3)
    axes.spines[["top", "right"]].set_visible(False)


def measured_caption(record: Record) -> str:
    """What the last panel shows; "" without one."""
    if not measured_networks(record):
        return ""
    return " Last panel: milliseconds, measured once at the end of the search for these networks alone."


def _draw_line(axes: Axes, points: Sequence[Point]) -> None:
    best = [points[place] for place in front(points)]
    if len(best) > 1:
        across, up = [each.cost for each in best], [100 * each.score for each in best]
        axes.plot(across, up, color=GREY, linewidth=1.2, drawstyle="steps-post", zorder=1)

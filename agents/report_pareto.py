"""Score against cost over several runs: what is worth having in full colour, what another one beats faded."""

from collections.abc import Sequence
from dataclasses import dataclass

from matplotlib.axes import Axes
from matplotlib.colors import to_rgba
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from agents.figures import series_style
from agents.pareto import Point, front
from agents.report_data import Record
from agents.report_figures import GREY, WIDTH, add_legend, text_sizes
from agents.report_groups import by_network
from agents.report_text import COST_NAMES, cost_scale

FADED = 0.25
PANEL_HEIGHT = 3.9
"""Inches."""


@dataclass(frozen=True)
class Panel:
    """The best networks of the runs of one original, in the plane of one cost and the score.

    Attributes:
        network: name of the original.
        cost: name of the cost.
        tested: whether scores are those of the test split, as they are where every run knows its own.
        records: the runs.
        points: one a run.
    """

    network: str
    cost: str
    tested: bool
    records: tuple[Record, ...]
    points: tuple[Point, ...]


def panels(records: Sequence[Record]) -> list[Panel]:
    """One panel for each original network and each cost that its runs budget or minimise."""
    made = []
    for runs in by_network([record for record in records if record.best is not None]):
        names = dict.fromkeys(name for record in runs for name in record.costs)
        made += [_panel(runs, name) for name in names]
    return [panel for panel in made if panel.points]


def dominated(records: Sequence[Record]) -> dict[str, bool]:
    """Folder of each run with a result to whether another one is better, by the first cost it asks for.

    Better: no worse in score and cost, and better in one of them.
    """
    found: dict[str, bool] = {}
    for panel in panels(records):
        worthy = front(panel.points)
        for place, record in enumerate(panel.records):
            if record.costs[0] == panel.cost:
                found[str(record.folder)] = place not in worthy
    return found


def pareto_figure(records: Sequence[Record]) -> Figure:
    """The best network of each run, one panel an original and cost.

    The line joins those that no other one dominates; the others are faded. Dashed: the original's score.
    """
    shown = panels(records)
    columns = min(2, len(shown))
    lines = -(-len(shown) // columns)
    figure = Figure(figsize=(WIDTH, PANEL_HEIGHT * lines), layout="constrained")
    axes = figure.subplots(lines, columns, squeeze=False).flat
    names = list(dict.fromkeys(point.series for panel in shown for point in panel.points))
    for place, panel in zip(axes, shown, strict=False):
        _draw(place, panel, names)
    for place in list(figure.axes)[len(shown) :]:
        place.remove()
    add_legend(figure.axes[0], _handles(names))
    return text_sizes(figure)


def _panel(runs: Sequence[Record], cost: str) -> Panel:
    records = [r for r in runs if r.best is not None and cost in r.best.costs and cost in r.original.costs]
    scores = [_test_score(record) for record in records]
    tested = all(score is not None for score in scores)
    points = [
        Point(
            record.best.costs[cost],
            score if tested and score is not None else record.best.score,
            record.algorithm,
        )
        for record, score in zip(records, scores, strict=True)
        if record.best is not None
    ]
    return Panel(
        records[0].config.source.model if records else "", cost, tested, tuple(records), tuple(points)
    )


def _test_score(record: Record) -> float | None:
    return next((each.test_score for each in record.networks if each.name == record.algorithm), None)


def _draw(axes: Axes, panel: Panel, names: Sequence[str]) -> None:
    record, largest = panel.records[0], max(point.cost for point in panel.points)
    divisor, unit = cost_scale(panel.cost, largest, record.latency_unit)
    worthy = front(panel.points)
    for place, (x, y) in enumerate(_places(panel.points, divisor)):
        color, marker = series_style(names.index(panel.points[place].series))
        faded = to_rgba(color, 1.0 if place in worthy else FADED)
        axes.scatter([x], [y], s=46, color=faded, marker=marker, linewidths=0, zorder=2 + (place in worthy))
    best = _places([panel.points[place] for place in worthy], divisor)
    axes.plot(*zip(*best, strict=True), color=GREY, linewidth=1.2, drawstyle="steps-post", zorder=1)
    height = record.original.test_score if panel.tested else record.original.reward_score
    if height is not None:
        axes.axhline(100 * height, color=GREY, linewidth=1, linestyle="--", zorder=1)
    axes.set_xlabel(f"{COST_NAMES.get(panel.cost, panel.cost)} ({unit})")
    axes.set_ylabel(f"{record.score_name}, {'test' if panel.tested else 'reward'} split (%)")
    axes.set_title(panel.network, fontsize=9, loc="right", color=GREY)
    axes.grid(alpha=0.3)
    axes.spines[["top", "right"]].set_visible(False)


def _places(points: Sequence[Point], divisor: float) -> list[tuple[float, float]]:
    return [(point.cost / divisor, 100 * point.score) for point in points]


def _handles(names: Sequence[str]) -> list[Line2D]:
    handles = []
    for place, name in enumerate(names):
        color, marker = series_style(place)
        handles.append(Line2D([], [], marker=marker, linestyle="none", color=color, label=name))
    dashed = Line2D([], [], linestyle="--", linewidth=1, color=GREY, label="original")
    return [*handles, Line2D([], [], linewidth=1.2, color=GREY, label="front"), dashed]

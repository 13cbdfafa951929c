"""The drawings of a report, as PNG for slides and as SVG that follows the page's light or dark colours."""

import io
import math
import re
from collections.abc import Sequence

import matplotlib
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.colors import to_rgba
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch

from agents.figures import BLUE, GREY, ORANGE, best_so_far_figure, policy_figure
from agents.log import Row
from agents.report_data import Record
from agents.report_front import draw_front, draw_measured, measured_networks
from agents.report_references import draw_references
from agents.report_text import COST_NAMES, cost_scale

WIDTH, HEIGHT = 9.9, 3.6
"""Inches; at 96 pixels an inch the width of the page, so that all text has the size that it is given here."""


def curve_figure(record: Record) -> Figure:
    """Best score so far (best reward, where a cost is minimised) against evaluations, each of them a dot.

    The reference policy's value is a dashed line; uniform and random ones are drawn where they are known.
    """
    rows, scored = record.log.rows, record.config.problem.goal == "accuracy"
    values = [row.score * 100 if scored else row.reward for row in rows]
    # What misses a latency budget is no best, whatever its score.
    leading = [value if row.feasible else -math.inf for value, row in zip(values, rows, strict=True)]
    figure = best_so_far_figure({record.name: leading})
    axes = figure.axes[0]
    axes.plot(range(1, len(values) + 1), values, "o", markersize=3, alpha=0.45, color=BLUE)
    axes.lines[0].set(color=BLUE, linewidth=2, label="best so far")
    axes.axhline(values[0], linestyle="--", linewidth=1, color=GREY, zorder=1)
    axes.set_ylabel(f"{record.score_name}, reward split (%)" if scored else "reward")
    figure.set_size_inches(WIDTH, HEIGHT)
    dashed = Line2D([], [], linestyle="--", linewidth=1, color=GREY, label=record.reference)
    handles, _ = axes.get_legend_handles_labels()
    add_legend(axes, [*handles, dashed, *draw_references(axes, record)])
    return text_sizes(figure)


def labels(records: Sequence[Record]) -> list[str]:
    """A name for each run that tells it from the others: its directory's, or its path."""
    names = [record.name for record in records]
    return [
        name if names.count(name) == 1 else str(each.folder)
        for name, each in zip(names, records, strict=True)
    ]


def best_policy_figure(record: Record) -> Figure:
    """The best policy over the layers: bars are keep ratios, colours bits; the outline is the original."""
    assert record.best is not None
    policy = record.best.policy
    figure = policy_figure(policy, record.original_widths)
    figure.set_size_inches(max(WIDTH, 0.26 * len(policy.decisions)), HEIGHT)
    axes = figure.axes[0]
    if record.original_widths is not None:
        axes.bar(range(len(policy.decisions)), 1.0, facecolor="none", edgecolor=GREY, linewidth=0.6)
    axes.margins(x=0.01)
    bits = policy.values("weight_bits")
    for bar, decision in zip(axes.patches, policy.decisions, strict=False):
        bar.set(edgecolor=GREY, linewidth=0.6)  # few bits are dark, and so may be the page
        if bits.get(decision.point, 32) != 32:
            place = (bar.get_x() + bar.get_width() / 2, bar.get_height())  # type: ignore[attr-defined]
            axes.annotate(
                str(bits[decision.point]),
                place,
                (0, 2),
                textcoords="offset points",
                ha="center",
                fontsize=7,
            )
    handles = [each for each in axes.get_legend().legend_handles if each]  # type: ignore[union-attr]
    for each in handles:
        if isinstance(each, Patch):
            each.set(edgecolor=GREY, linewidth=0.6)
    add_legend(axes, handles)
    return text_sizes(figure)


def scatter_figure(record: Record) -> Figure:
    """Score against each cost that was asked for, one dot an evaluation; late ones are stronger.

    A line joins what no other one beats. A last panel has the networks whose latency was measured at the
    end, if there are any.
    """
    rows, best, first = record.log.rows, record.best, record.first
    assert best is not None and first is not None
    figure = Figure(figsize=(WIDTH, HEIGHT), layout="constrained")
    timed = measured_networks(record)
    panels = figure.subplots(1, len(record.costs) + bool(timed), squeeze=False)[0]
    # The original's score in the last panel would press the dots of the others together.
    for axes in panels[1 : len(record.costs)]:
        axes.sharey(panels[0])
        axes.tick_params(labelleft=False)
    for axes, name in zip(panels, record.costs, strict=False):
        divisor, unit = cost_scale(name, max(row.costs[name] for row in rows), record.latency_unit)
        _dots(axes, rows, name, divisor)
        draw_front(axes, [row for row in rows if not _is_predicted(row, name)], name, divisor)
        for row, marker, color, size in ((first, "D", GREY, 40), (best, "*", ORANGE, 130)):
            axes.scatter([row.costs[name] / divisor], [row.score * 100], s=size, marker=marker, color=color)
        _budget_line(axes, record, name, divisor)
        axes.set_xlabel(f"{COST_NAMES.get(name, name)} ({unit})")
        axes.grid(alpha=0.3)
        axes.spines[["top", "right"]].set_visible(False)
    if timed:
        draw_measured(panels[-1], record, timed)
    panels[0].set_ylabel(f"{record.score_name}, reward split (%)")
    add_legend(panels[0], _markers(bool(record.predicted), record.reference))
    return text_sizes(figure)


def _dots(axes: Axes, rows: Sequence[Row], name: str, divisor: float) -> None:
    """One dot an evaluation, hollow where the cost is predicted."""
    for hollow in (False, True):
        chosen = [row for row in rows if hollow == _is_predicted(row, name)]
        if not chosen:
            continue
        colors = [to_rgba(BLUE, 0.3 + 0.5 * (row.index + 1) / len(rows)) for row in chosen]
        axes.scatter(
            [row.costs[name] / divisor for row in chosen],
            [row.score * 100 for row in chosen],
            s=18,
            facecolors="none" if hollow else colors,
            edgecolors=colors,
            linewidths=1.0 if hollow else 0.0,
        )


def _is_predicted(row: Row, name: str) -> bool:
    return name == "latency" and row.latency_source == "predicted"


def _budget_line(axes: Axes, record: Record, name: str, divisor: float) -> None:
    if name in record.limits:
        axes.axvline(record.limits[name] / divisor, color=GREY, linewidth=1, linestyle=":")


def _markers(predicted: bool, reference: str) -> list[Line2D]:
    shapes = (
        ("o", BLUE, "measured" if predicted else "evaluation"),
        ("D", GREY, reference),
        ("*", ORANGE, "best"),
    )
    handles = [
        Line2D([], [], marker=marker, linestyle="none", color=color, label=label)
        for marker, color, label in shapes
    ]
    hollow = Line2D([], [], marker="o", linestyle="none", color=BLUE, fillstyle="none", label="predicted")
    return [handles[0], hollow, *handles[1:]] if predicted else handles


def add_legend(axes: Axes, handles: Sequence[Artist]) -> None:
    """Above the axes and without a frame, so that it hides nothing and has no colour of its own."""
    columns = min(len(handles), 8)
    axes.legend(handles=handles, loc="lower left", bbox_to_anchor=(0.0, 1.0), ncols=columns, frameon=False)


def text_sizes(figure: Figure) -> Figure:
    """The figure, with the sizes of text that all drawings of a page have."""
    for axes in figure.axes:
        legend = axes.get_legend()
        for text in [axes.xaxis.label, axes.yaxis.label, *(legend.get_texts() if legend else ())]:
            text.set_fontsize(9)
        axes.tick_params(labelsize=8)
    return figure


def png(figure: Figure) -> bytes:
    """The figure on white."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=150)
    return buffer.getvalue()


def svg(figure: Figure, description: str) -> str:
    """The figure as an inline SVG element whose black is the page's text colour.

    Args:
        figure: what to draw.
        description: for those who do not see it; must be escaped already.
    """
    buffer = io.StringIO()
    # The salt makes the ids of clip paths and markers unique in a page with several figures.
    with matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": description}):
        figure.savefig(buffer, format="svg", transparent=True, metadata={"Date": None})
    text = buffer.getvalue()
    text = text[text.index("<svg") :]
    text = re.sub(r"<metadata>.*?</metadata>", "", text, flags=re.DOTALL)
    text = re.sub(r' id="[A-Za-z0-9.]+_\d+"', "", text)
    text = text.replace("#000000", "currentColor")
    width = round(figure.get_figwidth() * 96)
    # On a narrow screen a figure shrinks to what can still be read, and is scrolled from there.
    size = f"width:100%;height:auto;min-width:{round(width * 0.75)}px;max-width:{width}px"
    return text.replace("<svg", f'<svg role="img" aria-label="{description}" style="{size}"', 1)

"""The drawings of the search results."""

import io
from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from scripts.search_comparison import Setting, best_so_far
from scripts.search_rows import FIXED

PANEL = (5.4, 4.0)
"""Inches."""
COLOURS = {
    "uniform": "#8a8f98",
    "shallow": "#b0a17a",
    "deep": "#7a97b0",
    "balanced": "#404448",
    "random": "#e8710a",
    "evolution": "#2a9d5c",
    "bayes": "#8e44ad",
    "ddpg": "#3b7dd8",
}


def curves_png(panels: Sequence[Setting], goals: Mapping[str, Mapping[str, float]]) -> bytes:
    """Best so far on the reward split over evaluations: mean, and the range over seeds as a band.

    Args:
        panels: one panel each.
        goals: budget to the label and height of its goal lines.
    """
    size = (PANEL[0] * len(panels), PANEL[1])
    figure = Figure(figsize=size, dpi=150, layout="constrained")
    for axes, setting in zip(figure.subplots(1, len(panels), squeeze=False).flat, panels, strict=True):
        for searcher in setting.searchers:
            draw(axes, setting, searcher)
        for label, height in goals.get(setting.budget, {}).items():
            axes.axhline(100 * height, color="black", linewidth=0.9, linestyle=":")
            place = (0.01, 100 * height)
            axes.annotate(label, place, xycoords=("axes fraction", "data"), fontsize=7, va="bottom")
        finish(axes, setting)
    figure.axes[0].set_ylabel("best so far, reward split (%)")
    png = io.BytesIO()
    figure.savefig(png, format="png")
    return png.getvalue()


def draw(axes: Axes, setting: Setting, searcher: str) -> None:
    """The curve of one searcher; the height of what a rule has found."""
    rows, colour = setting.of(searcher), COLOURS[searcher]
    if searcher in FIXED:
        height = 100 * rows[0]["best"][-1]["reward_accuracy"]
        axes.axhline(height, color=colour, linewidth=1.0, linestyle="--", label=searcher)
        return
    longest = max(row["best"][-1]["evaluations"] for row in rows)
    curves = 100 * np.array([best_so_far(row, longest) for row in rows])
    evaluations = np.arange(1, longest + 1)
    label = f"{searcher} ({len(rows)} seed{'s' if len(rows) > 1 else ''})"
    axes.plot(evaluations, curves.mean(axis=0), color=colour, linewidth=1.6, label=label)
    axes.fill_between(evaluations, curves.min(axis=0), curves.max(axis=0), color=colour, alpha=0.15, lw=0)


def finish(axes: Axes, setting: Setting) -> None:
    """Title, labels and grid."""
    axes.set_title(setting.title, fontsize=10)
    axes.set_xlabel("evaluations")
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(alpha=0.3, linewidth=0.6)
    axes.legend(framealpha=0.9, edgecolor="none", fontsize=8, loc="lower right")

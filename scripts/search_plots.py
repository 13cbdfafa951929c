"""The drawings of the search results."""

import io
from collections.abc import Mapping, Sequence
from typing import Any

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
LINES: dict[str, dict[str, Any]] = {
    "l1": {"color": "#b0a17a", "linewidth": 1.0},
    "l2": {"color": "#e8710a", "linewidth": 1.0},
    "bn": {"color": "#7a97b0", "linewidth": 1.0},
    "taylor": {"color": "#8e44ad", "linewidth": 1.0},
    "obs": {"color": "#2a9d5c", "linewidth": 1.2},
    "obs, balanced": {"color": "#3b7dd8", "linewidth": 2.2, "marker": "o"},
    "the same, refitted symmetrically": {"color": "#3b7dd8", "linewidth": 1.4, "linestyle": "--"},
    "the same, not refitted": {"color": "#3b7dd8", "linewidth": 1.4, "linestyle": ":"},
}
"""What a policy without a search follows, to its line."""


def curves_png(panels: Sequence[Setting]) -> bytes:
    """Best so far on the reward split over evaluations: mean, and the range over seeds as a band.

    Args:
        panels: one panel each.
    """
    size = (PANEL[0] * len(panels), PANEL[1])
    figure = Figure(figsize=size, dpi=150, layout="constrained")
    for axes, setting in zip(figure.subplots(1, len(panels), squeeze=False).flat, panels, strict=True):
        for searcher in setting.searchers:
            draw(axes, setting, searcher)
        finish(axes, setting.caption.replace(" (", "\n("), "evaluations")
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


def untuned_png(rows: Sequence[Mapping[str, Any]]) -> bytes:
    """Test accuracy of policies that take no search against MACs, a panel a network.

    Args:
        rows: ranking rows; their scores by budget, by what was followed, and by split.
    """
    size = (PANEL[0] * len(rows), PANEL[1])
    figure = Figure(figsize=size, dpi=150, layout="constrained")
    for axes, row in zip(figure.subplots(1, len(rows), squeeze=False).flat, rows, strict=True):
        budgets = sorted(row["scores"], key=float)
        for name in next(iter(row["scores"].values())):
            heights = [100 * row["scores"][budget][name]["test"] for budget in budgets]
            axes.plot([100 * float(budget) for budget in budgets], heights, label=name, **LINES[name])
        finish(axes, row["network"], "MACs left (%)", "test split, no fine-tuning (%)")
    png = io.BytesIO()
    figure.savefig(png, format="png")
    return png.getvalue()


def finish(axes: Axes, title: str, x: str, y: str = "") -> None:
    """Title, labels and grid."""
    axes.set_title(title, fontsize=10)
    axes.set_xlabel(x)
    axes.set_ylabel(y)
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(alpha=0.3, linewidth=0.6)
    axes.legend(framealpha=0.9, edgecolor="none", fontsize=8, loc="lower right")

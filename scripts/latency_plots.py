"""The drawings of the latency results."""

import io
from collections.abc import Sequence
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from scripts.latency_rows import HEADLINE_EPOCHS, TUNED_EPOCHS
from scripts.latency_words import tuned_name

BLUE, ORANGE, GREY, GREEN = "#3b7dd8", "#e8710a", "#8a8f98", "#2a9d5c"
PANEL = (4.6, 3.6)
"""Inches."""
STYLES: dict[str, dict[str, Any]] = {
    "joint": {"color": BLUE, "marker": "o", "linewidth": 1.6},
    "uniform": {"color": GREY, "marker": "s", "linewidth": 1.2, "linestyle": "--"},
    "int8 only": {"color": ORANGE, "marker": "D", "linestyle": "none", "markersize": 7},
    tuned_name(TUNED_EPOCHS): {"color": GREEN, "marker": "^", "linestyle": "none", "markersize": 7},
    tuned_name(HEADLINE_EPOCHS): {"color": GREEN, "marker": "*", "linestyle": "none", "markersize": 13},
    tuned_name(HEADLINE_EPOCHS, True): {"color": BLUE, "marker": "*", "linestyle": "none", "markersize": 13},
}
OTHER = {"color": "black", "marker": "*", "linestyle": "none", "markersize": 13}
"""Rows made when the epochs were others."""
Points = Sequence[tuple[float, float]]
ORIGINAL: dict[str, Any] = {"color": "black", "marker": "X", "linestyle": "none", "markersize": 8}


def curves_png(panels: dict[str, dict[str, Points]], originals: dict[str, float]) -> bytes:
    """Test accuracy against latency, one panel a network and target.

    Args:
        panels: title to series name to (latency ratio, accuracy) pairs.
        originals: accuracy of the uncompressed network by panel title, where it is known.
    """
    figure, places = _panels(len(panels))
    for axes, (title, series) in zip(places, panels.items(), strict=True):
        for name, points in series.items():
            if points:
                ratios, accuracies = zip(*sorted(points), strict=True)
                style = STYLES.get(name, OTHER)
                axes.plot(ratios, [100 * value for value in accuracies], label=name, **style)
        if title in originals:
            axes.plot([1], [100 * originals[title]], label="original", **ORIGINAL)
        axes.set_title(title, fontsize=10)
        _finish(axes, "latency, fraction of the original's")
    figure.axes[0].set_ylabel("test accuracy (%)")
    return _png(figure)


def scatter_png(panels: dict[str, tuple[Points, float]]) -> bytes:
    """Measured latency against counted instructions, both as fractions of the original's.

    Args:
        panels: title to the pairs (instructions, latency) and their correlation.
    """
    figure, places = _panels(len(panels))
    for axes, (title, (points, pearson)) in zip(places, panels.items(), strict=True):
        axes.loglog(*zip(*points, strict=True), "o", color=BLUE, markersize=4, alpha=0.8)
        axes.xaxis.set_major_formatter("{x:g}")
        axes.yaxis.set_major_formatter("{x:g}")
        axes.set_title(f"{title}: r = {pearson:.3f} (logarithms)", fontsize=10)
        axes.set_xlabel("instructions, fraction of the original's")
        axes.set_ylabel("latency, fraction of the original's")
        axes.spines[["top", "right"]].set_visible(False)
    return _png(figure)


def _panels(count: int) -> tuple[Figure, list[Axes]]:
    """A figure with so many panels, two in a row."""
    columns = min(count, 2)
    lines = -(-count // columns)
    figure = Figure(figsize=(PANEL[0] * columns, PANEL[1] * lines), dpi=150, layout="constrained")
    places = list(figure.subplots(lines, columns, squeeze=False).flat)
    for spare in places[count:]:
        spare.remove()
    return figure, places[:count]


def _finish(axes: Axes, label: str) -> None:
    axes.set_xlabel(label)
    axes.set_xlim(0, 1.05 * max(1.0, axes.dataLim.x1))
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(alpha=0.3, linewidth=0.6)
    axes.legend(framealpha=0.9, edgecolor="none", fontsize=8, loc="lower right")


def _png(figure: Figure) -> bytes:
    png = io.BytesIO()
    figure.savefig(png, format="png")
    return png.getvalue()

"""The drawings of the latency results."""

import io
import itertools
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from scripts.latency_rows import HEADLINE_EPOCHS, TUNED_EPOCHS
from scripts.latency_words import tuned_name

BLUE, ORANGE, GREY, GREEN, PURPLE = "#3b7dd8", "#e8710a", "#8a8f98", "#2a9d5c", "#8e44ad"
PANEL = (4.6, 3.6)
"""Inches."""


def _spots(color: str, marker: str, size: float) -> dict[str, Any]:
    style = {"color": color, "marker": marker, "linestyle": "none", "markersize": size}
    return style | {"markeredgecolor": "white", "markeredgewidth": 0.7}  # tells neighbours apart


STYLES: dict[str, dict[str, Any]] = {
    "joint": {"color": BLUE, "marker": "o", "linewidth": 1.6},
    "uniform": {"color": GREY, "marker": "s", "linewidth": 1.2, "linestyle": "--"},
    "prune": _spots(ORANGE, "v", 7),
    "int8 only": _spots(ORANGE, "D", 6),
    "prune-int8": _spots(ORANGE, "P", 8),
    "blocks": _spots(PURPLE, "o", 6),
    tuned_name(TUNED_EPOCHS): _spots(GREEN, "^", 7),
    tuned_name(HEADLINE_EPOCHS): _spots(GREEN, "*", 12),
    tuned_name(HEADLINE_EPOCHS, True): _spots(PURPLE, "*", 12),
}
OTHER_MARKERS = "phX8d"
"""Of rows made when the epochs were others."""
ACCURACIES = (0, 50, 70, 80, 85, 90, 95)
FULL = 102.0
"""Per cent at which the axis of accuracies would never arrive; all of them lie below."""
Points = Sequence[tuple[float, float]]
ORIGINAL: dict[str, Any] = {"color": "black", "marker": "x", "linestyle": "none", "markeredgewidth": 2}


def curves_png(panels: dict[str, dict[str, Points]], originals: dict[str, float]) -> bytes:
    """Test accuracy against latency, one panel a network and target.

    Args:
        panels: title to series name to (latency ratio, accuracy) pairs.
        originals: accuracy of the uncompressed network by panel title, where it is known.
    """
    figure, places = _panels(len(panels))
    styles = styles_of(name for series in panels.values() for name, points in series.items() if points)
    for axes, (title, series) in zip(places, panels.items(), strict=True):
        for name, points in series.items():
            if points:
                ratios, accuracies = zip(*sorted(points), strict=True)
                axes.plot(ratios, [100 * value for value in accuracies], label=name, **styles[name])
        if title in originals:
            axes.plot([1], [100 * originals[title]], label="original", **ORIGINAL)
        axes.set_title(title, fontsize=10)
    _finish(places)
    figure.supxlabel("latency, fraction of the original's", fontsize=10)
    figure.supylabel("test accuracy (%)", fontsize=10)
    _legend(figure, [*styles, "original"])
    return _png(figure)


def styles_of(names: Iterable[str]) -> dict[str, dict[str, Any]]:
    """How each series is drawn, the known ones first; the others have the colour of their kind."""
    found = dict.fromkeys(names)
    markers = itertools.cycle(OTHER_MARKERS)
    others = {
        name: _spots(PURPLE if name.startswith("blocks") else GREEN, next(markers), 9)
        for name in found
        if name not in STYLES
    }
    return {name: style for name, style in STYLES.items() if name in found} | others


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


def _finish(places: Sequence[Axes]) -> None:
    """The same scales in all panels, so that these can be compared; accuracies spread by their errors."""
    slowest = max(1.0, *(axes.dataLim.x1 for axes in places))
    best = max(axes.dataLim.y1 for axes in places)
    for axes in places:
        axes.set_xlim(0, 1.05 * slowest)
        axes.set_yscale("function", functions=(_spread, _gathered))
        axes.set_yticks(ACCURACIES)
        axes.set_ylim(0, min(best + 1.5, 100))
        axes.spines[["top", "right"]].set_visible(False)
        axes.grid(alpha=0.3, linewidth=0.6)


def _spread(accuracies: np.ndarray) -> np.ndarray:
    """Where per cents lie on the axis: halving the error is about as far anywhere."""
    return -np.log2(FULL - np.minimum(accuracies, 100.0))


def _gathered(places: np.ndarray) -> np.ndarray:
    """The per cents that lie at these places."""
    return FULL - np.exp2(-places)


def _legend(figure: Figure, names: Sequence[str]) -> None:
    """One for all panels, in this order."""
    drawn: dict[str, Any] = {}
    for axes in figure.axes:
        handles, labels = axes.get_legend_handles_labels()
        drawn |= zip(labels, handles, strict=True)
    shown = [name for name in names if name in drawn]
    style = {"ncols": 4, "frameon": False, "fontsize": 9}
    figure.legend([drawn[name] for name in shown], shown, loc="outside upper center", **style)


def _png(figure: Figure) -> bytes:
    png = io.BytesIO()
    figure.savefig(png, format="png")
    return png.getvalue()

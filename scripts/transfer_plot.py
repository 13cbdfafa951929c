"""The Pareto curve of one actor: score against the fraction of the MACs, beside uniform and other agents."""

import io
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from scripts.results_runner import Row
from scripts.transfer_tables import ARMS

PANEL = (6.4, 4.2)
"""Inches."""
STYLES: dict[str, dict[str, Any]] = {
    "uniform": {"color": "#8a8f98", "marker": "D"},
    "one agent, its actor alone": {"color": "#3b7dd8", "marker": "o"},
    "five agents of N / 5": {"color": "#e8710a", "marker": "s"},
    "five agents of N": {"color": "#2a9d5c", "marker": "^"},
}
"""What is drawn of the arms of the table."""


def pareto_png(networks: Mapping[str, Sequence[Row]]) -> bytes:
    """One panel a network: means over seeds on the test split, and their range as a band.

    Args:
        networks: name to the rows of its one training for every budget and of its agents for one each.
    """
    size = (PANEL[0] * len(networks), PANEL[1])
    figure = Figure(figsize=size, dpi=150, layout="constrained")
    panels = figure.subplots(1, len(networks), squeeze=False)[0]
    for axes, (name, rows) in zip(panels, networks.items(), strict=True):
        for label, how, policy in ARMS:
            if label in STYLES:
                _draw(axes, label, [row for row in rows if row["how"] == how], policy)
        original = 100 * rows[0]["original_test"]
        axes.axhline(original, color="black", linewidth=0.9, linestyle=":", label="original")
        axes.set_title(name, fontsize=10)
        axes.set_xlabel("fraction of the MACs")
        axes.grid(alpha=0.3)
        axes.spines[["top", "right"]].set_visible(False)
        axes.legend(fontsize=8)
    panels[0].set_ylabel("test split, no fine-tuning (%)")
    png = io.BytesIO()
    figure.savefig(png, format="png")
    return png.getvalue()


def curve(rows: Sequence[Row], policy: str) -> tuple[list[float], np.ndarray]:
    """Levels as fractions, rising, and the scores [seeds, levels] on the test split in percent."""
    names = [level for level in rows[0]["levels"] if all(level in row["levels"] for row in rows)]
    names.sort(key=_fraction)
    scores = [[100 * row["levels"][name][policy]["test"] for name in names] for row in rows]
    return [_fraction(name) for name in names], np.array(scores)


def _draw(axes: Axes, label: str, rows: Sequence[Row], policy: str) -> None:
    if not rows:
        return
    levels, scores = curve(rows, policy)
    line = "-" if label == "one agent, its actor alone" else "--"
    axes.plot(levels, scores.mean(0), line, label=label, markersize=4, linewidth=1.6, **STYLES[label])
    if len(rows) > 1 and policy != "uniform":
        low, high = scores.min(0), scores.max(0)
        axes.fill_between(levels, low, high, color=STYLES[label]["color"], alpha=0.13, linewidth=0)


def _fraction(level: str) -> float:
    return float(level.removeprefix("macs="))

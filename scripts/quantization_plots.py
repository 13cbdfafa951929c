"""The drawings of the quantization results."""

from collections.abc import Sequence

from matplotlib.figure import Figure

from agents.figures import SERIES
from agents.report_figures import png
from scripts.results_runner import Row

PANEL = (6.0, 4.2)
"""Inches."""
BARS = (9.0, 2.2)


def errors_png(rows: Sequence[Row]) -> bytes | None:
    """Signal to noise against the bits that are really stored, a panel a network; None without rows."""
    if not rows:
        return None
    figure = Figure(figsize=(PANEL[0] * len(rows), PANEL[1]), dpi=150, layout="constrained")
    for axes, row in zip(figure.subplots(1, len(rows), squeeze=False).flat, rows, strict=True):
        for (name, heights), (colour, marker) in zip(row["sqnr"].items(), SERIES, strict=False):
            axes.plot(row["stored"][name], heights, color=colour, marker=marker, markersize=4, label=name)
        axes.set_title(row["network"], fontsize=10)
        axes.set_xlabel("stored bits a weight")
        axes.set_ylabel("signal to quantization noise (dB)")
        axes.grid(alpha=0.3)
    figure.axes[0].legend(fontsize=8)
    return png(figure)


def bits_png(rows: Sequence[Row]) -> bytes | None:
    """Bits of every layer as bars, a panel a search; None without rows.

    Inputs get bars of their own where not all have the same bits, and a line shows the channels that are left
    where the search has decided them.
    """
    if not rows:
        return None
    figure = Figure(figsize=(BARS[0], BARS[1] * len(rows)), dpi=120, layout="constrained")
    for axes, row in zip(figure.subplots(len(rows), 1, squeeze=False).flat, rows, strict=True):
        names, both = list(row["weight_bits"]), len({*row["activation_bits"].values()}) > 1
        for place, kind in enumerate(("weight", "activation") if both else ("weight",)):
            left = [layer - 0.4 + 0.4 * place for layer in range(len(names))]
            heights = [row[f"{kind}_bits"].get(name, 0) for name in names]
            label = "weights" if kind == "weight" else "inputs"
            axes.bar(left, heights, 0.4 if both else 0.8, align="edge", color=SERIES[place][0], label=label)
        if both:
            axes.legend(fontsize=6, ncols=2, loc="upper right")
        if row["budget"].startswith("joint"):
            channels = axes.twinx()
            channels.plot(range(len(names)), [row["width"].get(name) for name in names], color=SERIES[2][0])
            channels.set_ylabel("channels")
        title = f"{row['network']} {row['budget']}, {row['searcher']}: {row['test_untuned']:.2%} un-tuned"
        axes.set_title(title, fontsize=9)
        axes.set_ylim(0, 8.5)
        axes.set_ylabel("bits")
        axes.set_xticks(range(len(names)), names, rotation=90, fontsize=5)
    return png(figure)

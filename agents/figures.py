"""Drawings of policies and searches, without pyplot's global state, for TensorBoard and the report."""

from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib import colormaps
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.patches import Patch, Rectangle

from amc.decomposition.operator import AMOUNT
from amc.decomposition.registry import OPERATORS
from amc.policy import REMOVED, CompressionPolicy

BLUE, ORANGE, GREY = "#3b7dd8", "#e8710a", "#8a8f98"
"""Readable on white and on nearly black."""
DENSITY = ORANGE
"""Readable on every colour of a bar, on white and on nearly black."""
FIELD = 0.085
"""Height of the field that names an operator, as a share of the axes."""
SERIES = (
    ("#3b7dd8", "o"),
    ("#e8710a", "s"),
    ("#2a9d5c", "^"),
    ("#a567d6", "D"),
    ("#d64a5b", "v"),
    ("#1a9ba1", "P"),
    ("#a3871c", "X"),
    ("#d65b9b", "p"),
)
"""Colour and marker of the series of a drawing, readable on white and on nearly black."""


def policy_figure(
    policy: CompressionPolicy, original_widths: Mapping[str, int] | None = None, title: str = ""
) -> Figure:
    """Bars, one a decision point: how much is kept, coloured by the bits of its weights.

    A layer that is left out has no bar but these words. Where single weights are pruned, a dash tells the
    share that stays. A field below the bar of a replaced layer has its operator's colour and the amount.

    Args:
        policy: what to draw.
        original_widths: output channels of the uncompressed layers by point; without them the bars are
            the widths themselves. A point without a width is drawn at 1 (or at its tallest neighbour).
        title: above the bars.
    """
    points = [decision.point for decision in policy.decisions]
    figure, axes = _axes(width=max(6.0, 0.28 * len(points) + 2.0), title=title)
    heights = _heights(policy, original_widths)
    bits = [decision.values.get("weight_bits", 32) for decision in policy.decisions]
    axes.bar(range(len(points)), heights, color=[_bits_color(each) for each in bits])
    _name_removed(axes, policy)
    axes.set_xticks(range(len(points)), points, rotation=90, fontsize=7)
    axes.set_ylabel("output channels kept" if original_widths is None else "keep ratio")
    if original_widths is not None:
        axes.set_ylim(0.0, 1.05)
    seen = sorted({each for point, each in zip(points, bits, strict=True) if point not in policy.removed})
    labels = [(each, "not quantized" if each == 32 else f"{each} bits") for each in seen]
    handles: list[Artist] = [Patch(color=_bits_color(each), label=label) for each, label in labels]
    handles += _draw_densities(axes, policy) if original_widths is not None else []
    handles += _draw_operators(axes, policy)
    axes.legend(handles=handles, fontsize=7, loc="upper left", bbox_to_anchor=(1.0, 1.0))
    return figure


def best_so_far_figure(rewards: Mapping[str, Sequence[float]], title: str = "") -> Figure:
    """Curves of the highest reward so far against evaluations, one a search.

    Args:
        rewards: name of the search to its rewards in the order of evaluation.
        title: above the curves.
    """
    figure, axes = _axes(width=6.0, title=title)
    for name, values in rewards.items():
        axes.step(range(1, len(values) + 1), np.maximum.accumulate(values), where="post", label=name)
    axes.set_xlabel("evaluations")
    axes.set_ylabel("best reward so far")
    axes.grid(alpha=0.3)
    axes.legend(fontsize=8)
    return figure


def series_style(place: int) -> tuple[str, str]:
    """Colour and marker of the series at a place; after the last the first comes again."""
    return SERIES[place % len(SERIES)]


def operator_color(name: str) -> str:
    """The colour of an operator, one for all that do not ship with the package."""
    own = [*OPERATORS]
    return series_style(1 + own.index(name) if name in own else 1 + len(own))[0]


def figure_image(figure: Figure) -> np.ndarray:
    """Render a figure: uint8 [height, width, 3]."""
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    return np.asarray(canvas.buffer_rgba())[..., :3].copy()


def keep_ratios(policy: CompressionPolicy, original_widths: Mapping[str, int]) -> dict[str, float]:
    """Kept share of the output channels of each point that has a width; 0 for layers that are left out."""
    widths = policy.values("width")
    kept = {point: width / original_widths[point] for point, width in widths.items()}
    return kept | dict.fromkeys(sorted(policy.removed), 0.0)


def _heights(policy: CompressionPolicy, original_widths: Mapping[str, int] | None) -> list[float]:
    known: Mapping[str, float] = policy.values("width")
    if original_widths is not None:
        known = keep_ratios(policy, original_widths)
    full = 1.0 if original_widths is not None else max(known.values(), default=1.0)
    return [0.0 if d.operator == REMOVED else known.get(d.point, full) for d in policy.decisions]


def _name_removed(axes: Axes, policy: CompressionPolicy) -> None:
    in_axes = axes.get_xaxis_transform()
    for place, decision in enumerate(policy.decisions):
        if decision.operator == REMOVED:
            axes.text(
                place, 0.03, "left out", transform=in_axes, rotation=90, ha="center", va="bottom", fontsize=7
            )


def _draw_densities(axes: Axes, policy: CompressionPolicy) -> list[Artist]:
    """Draw the shares of single weights that stay, and return what the legend needs for them."""
    densities = policy.values("density")
    places = [place for place, each in enumerate(policy.decisions) if each.point in densities]
    shares = [densities[policy.decisions[place].point] / 100 for place in places]
    if not shares:
        return []
    lines = axes.plot(places, shares, "_", color=DENSITY, markersize=12, label="density of the weights")
    return [*lines]


def _draw_operators(axes: Axes, policy: CompressionPolicy) -> list[Artist]:
    """Draw what replaces layers between the bars and their names, and return what the legend needs for it."""
    replaced = [(place, each) for place, each in enumerate(policy.decisions) if each.replaced]
    if not replaced:
        return []
    in_axes = axes.get_xaxis_transform()
    axes.tick_params(axis="x", length=0, pad=15)
    for place, each in replaced:
        corner, color = (place - 0.42, -FIELD - 0.01), operator_color(each.operator)
        axes.add_patch(Rectangle(corner, 0.84, FIELD, transform=in_axes, clip_on=False, color=color))
        axes.text(
            place,
            -FIELD / 2 - 0.012,
            str(each.values.get(AMOUNT, "")),
            transform=in_axes,
            ha="center",
            va="center_baseline",
            fontsize=6.5,
            color="white",
        )
    used = dict.fromkeys(each.operator for _, each in replaced)
    return [Patch(color=operator_color(name), label=name) for name in used]


def _axes(width: float, title: str) -> tuple[Figure, Axes]:
    figure = Figure(figsize=(width, 3.6), dpi=110, layout="constrained")
    axes = figure.add_subplot()
    axes.set_title(title, fontsize=9)
    axes.spines[["top", "right"]].set_visible(False)
    return figure, axes


def _bits_color(bits: int) -> tuple[float, float, float, float]:
    """Few bits dark, 8 bits light, not quantized grey."""
    if bits == 32:
        return (0.6, 0.6, 0.6, 1.0)
    return colormaps["viridis"]((bits - 2) / 6)

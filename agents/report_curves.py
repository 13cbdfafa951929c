"""Best so far against evaluations, one curve a searcher: the mean of its seeds, and their range as a band."""

import numpy as np
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator

from agents.figures import series_style
from agents.report_figures import GREY, HEIGHT, WIDTH, add_legend, text_sizes
from agents.report_groups import Group, best_so_far


def group_figure(group: Group) -> Figure:
    """The searchers of a group; dashed, the reference policy's value, with which every search begins.

    Of a cooled search the last round is drawn, and with what that begins.
    """
    scored = group.records[0].config.problem.goal == "accuracy"
    figure = Figure(figsize=(WIDTH, HEIGHT), layout="constrained")
    axes = figure.add_subplot()
    begun = [record for series in group.series for record in series.begun]
    longest = max(len(record.log) for record in begun)
    for place, series in enumerate(group.series):
        if not series.begun:
            continue
        color, _ = series_style(place)
        curves = best_so_far(series, longest, scored)
        evaluations = np.arange(1, curves.shape[1] + 1)
        # One curve without a value, as no policy kept the budget yet, leaves the mean without one.
        axes.step(
            evaluations,
            curves.mean(axis=0),
            where="post",
            color=color,
            linewidth=1.8,
            label=_legend_text(series.label, len(curves)),
        )
        if len(curves) > 1:
            axes.fill_between(
                evaluations,
                curves.min(axis=0),
                curves.max(axis=0),
                step="post",
                color=color,
                alpha=0.18,
                linewidth=0,
            )
    firsts = [record.log.rows[record.round_start] for record in begun]
    for start in sorted({100 * first.score if scored else first.reward for first in firsts}):
        axes.axhline(start, linestyle="--", linewidth=1, color=GREY, zorder=1)
    axes.set_xlabel("evaluations")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    if scored and axes.get_ylim()[1] > 100:
        axes.set_ylim(top=100)
    axes.set_ylabel(f"{group.records[0].score_name}, reward split (%)" if scored else "reward")
    axes.grid(alpha=0.3)
    axes.spines[["top", "right"]].set_visible(False)
    dashed = Line2D([], [], linestyle="--", linewidth=1, color=GREY, label="reference policy")
    add_legend(axes, [*axes.get_legend_handles_labels()[0], dashed])
    return text_sizes(figure)


def _legend_text(label: str, runs: int) -> str:
    return f"{label}, {runs} seeds" if runs > 1 else label

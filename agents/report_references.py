"""What a search's curve is drawn against: the uniform policy, and random ones."""

import math
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
from matplotlib.axes import Axes
from matplotlib.lines import Line2D

from agents.figures import GREY, ORANGE, series_style
from agents.log import Row
from agents.report_data import Record, differences
from agents.report_settings import SCREENING
from amc.errors import UserError

UNIFORM, RANDOM = "uniform", "random"


def with_runs(record: Record, others: Sequence[Record]) -> Record:
    """The record, to be drawn against other searches.

    Raises:
        UserError: one of them asks for something else, or searched in rounds or at several levels, so that
            its curve would say nothing.
    """
    for each in (record, *others):
        if each.rounds or each.log.cases:
            raise UserError(
                f"--against draws one curve into another, and {each.folder} has several, of its rounds or "
                "levels; scripts/report.py RUN RUN2 compares such runs."
            )
    for other in others:
        different = differences([record, other])
        if different:
            raise UserError(
                f"{other.folder} does not ask for what {record.folder} asks for: they differ in "
                f"{', '.join(different)}."
            )
    return replace(record, against=tuple(others))


def warmup_rows(record: Record) -> list[Row]:
    """The random policies that an agent began with, after the reference policy; none where others are drawn.

    They are what random search would have proposed first: both draw around the reference policy.
    """
    agent, rows = record.config.agent, record.log.rows
    known = agent.algorithm not in SCREENING or agent.start_from is not None or record.config.cooling.is_on
    if known or record.log.cases or any(each.algorithm == RANDOM for each in record.against):
        return []
    exploration = agent.exploration(record.config.search.evaluations)
    drawn = [row for row in rows if exploration.warming_up(row.index)][1:]
    return [row for row in drawn if row.feasible] if len(drawn) + 1 < len(rows) else []


def uniform_score(record: Record) -> float | None:
    """The uniform policy's score, where it is not the reference policy anyway."""
    if record.config.problem.goal != "accuracy" or record.reference == UNIFORM:
        return None
    return next((each.reward_score for each in record.networks if each.name == UNIFORM), None)


def draw_references(axes: Axes, record: Record) -> list[Line2D]:
    """Draw what is known of uniform and random policies and of other searches; returns the legend's lines."""
    lines = [_other_search(axes, record, place) for place in range(len(record.against))]
    uniform, random = uniform_score(record), warmup_rows(record)
    if uniform is not None:
        lines.append(axes.axhline(100 * uniform, linestyle=":", linewidth=1.3, color=GREY, zorder=1))
        lines[-1].set_label(UNIFORM)
    if random:
        best = max(_value(record, row) for row in random)
        across = [random[-1].index + 1, len(record.log)]
        lines += axes.plot(across, [best, best], linestyle="-.", linewidth=1.2, color=ORANGE, zorder=1)
        lines[-1].set_label(f"best of {len(random)} random ones")
    return lines


def references_caption(record: Record) -> str:
    """What besides the reference policy is drawn."""
    text = " Dotted: the uniform policy." if uniform_score(record) is not None else ""
    if random := warmup_rows(record):
        text += (
            f" Dash-dotted: the best of the {len(random)} random policies that the agent began with; a whole "
            "random search is drawn with report.py RUN --against RUN2."
        )
    if record.against:
        names = ", ".join(f"{each.algorithm} ({each.name})" for each in record.against)
        text += f" Beside it: {names}."
    return text


def _other_search(axes: Axes, record: Record, place: int) -> Line2D:
    """The best so far of another search; what misses a budget is no best."""
    other = record.against[place]
    values = [_value(other, row) if row.feasible else -math.inf for row in other.log.rows]
    same = [each.algorithm for each in (record, *record.against)].count(other.algorithm) > 1
    (line,) = axes.step(
        range(1, len(values) + 1),
        np.maximum.accumulate(values) if values else [],
        where="post",
        color=series_style(place + 1)[0],
        linewidth=1.5,
        label=f"{other.algorithm}, {other.name}" if same else other.algorithm,
    )
    return line


def _value(record: Record, row: Row) -> float:
    return row.score * 100 if record.config.problem.goal == "accuracy" else row.reward

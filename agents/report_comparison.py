"""The body of a page that compares several runs: the front, each question with its answers, the runs."""

import statistics
from collections.abc import Sequence
from html import escape

from agents.report_curves import group_figure
from agents.report_data import Record, differences
from agents.report_figures import labels
from agents.report_groups import Group, Series, by_network, grouped
from agents.report_pareto import dominated, panels, pareto_figure
from agents.report_sections import figure_html, run_sections, table_html
from agents.report_text import COST_NAMES, NO_BREAK, cost_text, gain, goal, is_tie, percent, points, status

MOST_DETAILED = 12
"""Runs whose own sections are on the page too; more would make it slow to open."""


def comparison_sections(records: Sequence[Record]) -> str:
    """What several runs asked for and found, side by side where they can be compared."""
    groups = grouped(records)
    parts = [_introduction(records, groups)]
    if panels(records):
        parts.append(_front(records))
    parts += [_group(group, alone=len(groups) == 1) for group in groups]
    return "\n".join([*parts, "<h2>Runs</h2>", _runs_table(records), *_details(records)])


def _introduction(records: Sequence[Record], groups: Sequence[Group]) -> str:
    if len(groups) == 1:
        return f"<p>Asked for: {escape(goal(records[0]))}.</p>"
    networks = len(by_network(records))
    settings, some = escape(", ".join(differences(records))), "s" if networks > 1 else ""
    return (
        f"<p>These searches do not ask for the same thing; they differ in {settings}. Curves and tables "
        f"stand under what was asked for, {len(groups)} questions about {networks} network{some}; only "
        "runs of the same network are drawn together.</p>"
    )


def _front(records: Sequence[Record]) -> str:
    caption = (
        "The best network of each run before fine-tuning. The line joins those that no other run beats in "
        "score and cost; the others are faded. Dashed: the uncompressed network."
    )
    if any(record.rounds for record in records):
        caption += " What was searched in rounds has been fine-tuned between them."
    if not all(panel.tested for panel in panels(records)):
        caption += (
            " Where not every run has test figures, scores are those of the reward split, by which the best "
            "of a search was chosen."
        )
    drawing = figure_html(pareto_figure(records), "Score against cost, one mark a run", caption)
    return f"<h2>What is worth having</h2>\n{drawing}"


def _group(group: Group, alone: bool) -> str:
    title = "Searchers" if alone else group.title
    parts = [f"<h2>{escape(title)}</h2>", _series_table(group)]
    if any(series.begun for series in group.series):
        caption = (
            "Best so far at equal evaluations: the mean over the seeds, and a band from the lowest of them "
            "to the highest. Dashed: the reference policy, every search's first evaluation."
        )
        if any(record.rounds for record in group.records):
            caption += " Of a search in rounds the last one alone is drawn, whose budgets are the others'."
        parts.append(
            figure_html(group_figure(group), "Best so far against evaluations, one curve a searcher", caption)
        )
    return "\n".join(parts)


def _series_table(group: Group) -> str:
    costs = _costs(group.records)
    head = [
        "searcher",
        "seeds",
        "reference",
        "best",
        "difference",
        "best, test",
        *(COST_NAMES[name] for name in costs),
    ]
    tested = any(_tests(series) for series in group.series)
    if not tested:
        head.remove("best, test")
    rows = [[escape(series.label), *_series_row(series, costs, tested)] for series in group.series]
    note = "<p class='faint'>Plus or minus: the standard deviation over the seeds.</p>"
    several = any(len(series.begun) > 1 for series in group.series)
    return table_html(head, rows) + (note if several else "")


def _series_row(series: Series, costs: Sequence[str], tested: bool) -> list[str]:
    begun = [record for record in series.begun if record.best is not None and record.first is not None]
    seeds = ", ".join(str(record.config.agent.seed) for record in series.records)
    if not begun:
        return [seeds, "not started", *[""] * (2 + tested + len(costs))]
    best = [record.best.score for record in begun if record.best]
    first = [record.first.score for record in begun if record.first]
    cells = [seeds, _share(first), _share(best), points(statistics.mean(map(gain, begun)))]
    if tested:
        cells.append(_share(_tests(series)))
    for name in costs:
        values = [record.best.costs[name] for record in begun if record.best and name in record.best.costs]
        cells.append(_cost(name, values, begun[0].latency_unit))
    return [escape(cell) for cell in cells]


def _share(scores: Sequence[float]) -> str:
    """Mean of scores, with their standard deviation where there are several."""
    if not scores:
        return ""
    spread = f"{NO_BREAK}± {100 * statistics.stdev(scores):.2f}" if len(scores) > 1 else ""
    return percent(statistics.mean(scores)) + spread


def _cost(name: str, values: Sequence[float], unit: str) -> str:
    return cost_text(name, statistics.mean(values), max(values), unit) if values else ""


def _tests(series: Series) -> list[float]:
    """Test scores of the best networks of the runs that know theirs."""
    return [
        each.test_score
        for record in series.begun
        for each in record.networks
        if each.name == record.algorithm and each.test_score is not None
    ]


def _costs(records: Sequence[Record]) -> list[str]:
    return [name for name in COST_NAMES if any(name in record.costs for record in records)]


def _runs_table(records: Sequence[Record]) -> str:
    costs = _costs(records)
    head = [
        "run",
        "searcher",
        "evaluations",
        "reference",
        "best",
        "difference",
        *(COST_NAMES[name] for name in costs),
    ]
    beaten = dominated(records)
    rows = [
        [escape(label), *map(escape, _run_row(record, costs))]
        for label, record in zip(labels(records), records, strict=True)
    ]
    faded = [beaten.get(str(record.folder), False) for record in records]
    note = "<p class='faint'>Faint: another run of the same network is better in score and cost.</p>"
    return table_html(head, rows, faint=faded) + (note if any(faded) else "")


def _run_row(record: Record, costs: Sequence[str]) -> list[str]:
    searcher = f"{record.algorithm}, seed {record.config.agent.seed}"
    best, first = record.best, record.first
    if best is None or first is None:
        return [searcher, status(record), *[""] * (3 + len(costs))]
    gained = f"{points(gain(record))}{' (tie)' if is_tie(record) else ''}"
    unit = record.latency_unit
    figures = [
        cost_text(name, best.costs[name], best.costs[name], unit) if name in best.costs else ""
        for name in costs
    ]
    return [searcher, f"{len(record.log):,}", percent(first.score), percent(best.score), gained, *figures]


def _details(records: Sequence[Record]) -> list[str]:
    if len(records) > MOST_DETAILED:
        return ["<p>Each run's own page: <code>python scripts/report.py RUN</code>.</p>"]
    return [
        f"<details><summary>{escape(label)}</summary>\n{run_sections(record)}\n</details>"
        for label, record in zip(labels(records), records, strict=True)
    ]

"""The sections of a report about one run, as HTML."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from html import escape
from typing import Any

from matplotlib.figure import Figure

from agents.report_boxes import boxes_caption, boxes_figure, boxes_of
from agents.report_commands import commands
from agents.report_cooling import compared_in_rounds, round_cells, round_note, rounds_figure
from agents.report_data import Figures, Record
from agents.report_figures import best_policy_figure, curve_figure, scatter_figure, svg
from agents.report_front import measured_caption
from agents.report_levels import level_cells, level_figure, level_verdict
from agents.report_neighbours import neighbours_caption, neighbours_figure, neighbours_of
from agents.report_references import references_caption
from agents.report_settings import (
    blocks_left_out,
    latency_predictor,
    quantizers,
    rounds,
    scoring,
    searcher,
)
from agents.report_stages import Stage, stage_sentences, stages
from agents.report_text import (
    COST_NAMES,
    NO_BREAK,
    change,
    cost_text,
    duration,
    goal,
    percent,
    points,
    speed,
    status,
    verdict,
)
from amc.policy import ORIGINAL_OPERATOR, REMOVED, LayerDecision


def run_sections(record: Record) -> str:
    """What was asked, what was gained, the policy, the curves, the commands and the settings of one run."""
    parts = [_asked(record), _gained(record), *_rounds(record)]
    if record.best is not None:
        parts += [_policy(record), _search(record), *_examples(record)]
    return "\n".join([*parts, _commands(record), _settings(record)])


def table_html(
    head: Sequence[str], rows: Sequence[Sequence[str]], columns: str = "", faint: Sequence[bool] = ()
) -> str:
    """A table that scrolls on a narrow screen; cells are HTML already, the head is text.

    Args:
        head: headings of the columns.
        rows: the first cell of each is the row's heading.
        columns: class of the table, where its cells are not numbers.
        faint: rows that matter less; by default none.
    """
    headings = "".join(f"<th scope='col'>{escape(each)}</th>" for each in head)
    kinds = [" class='faint'" if each else "" for each in faint] or [""] * len(rows)
    lines = [
        f"<tr{kind}><th scope='row'>{first}</th>{''.join(f'<td>{cell}</td>' for cell in cells)}</tr>"
        for (first, *cells), kind in zip(rows, kinds, strict=True)
    ]
    kind = f" class='{columns}'" if columns else ""
    body = "\n".join(lines)
    table = f"<table{kind}><thead><tr>{headings}</tr></thead><tbody>{body}</tbody></table>"
    return f"<div class='wide'>{table}</div>"


def figure_html(figure: Figure, description: str, caption: str) -> str:
    """A drawing with its caption; both texts are escaped here."""
    drawing = svg(figure, escape(description))
    return f"<figure><div class='wide'>{drawing}</div><figcaption>{escape(caption)}</figcaption></figure>"


def _asked(record: Record) -> str:
    source, problem = record.config.source, record.config.problem
    rows = {
        "Network": source.model,
        "Data": source.data,
        "Target": f"{problem.target} {record.facts.get('target_version', '')}".strip(),
        "Latency predictor": latency_predictor(record),
        "Quantizers": quantizers(record.config),
        "Searcher": searcher(record.config),
        "Search": f"{status(record)}{_spent(record)}",
        "Blocks left out": blocks_left_out(record),
    }
    items = "".join(f"<dt>{name}</dt><dd>{escape(value)}</dd>" for name, value in rows.items() if value)
    return f"<p>Asked for: {escape(goal(record))}.</p>\n<dl>{items}</dl>"


def _spent(record: Record) -> str:
    rows = record.log.rows
    again = sum(row.cached for row in rows)
    met = f", {again:,} of them met before" if again else ""
    how = f" {rounds(record.config)}".rstrip()
    return f"{met}, {duration(sum(row.seconds for row in rows))} of measuring{how}" if rows else ""


def _gained(record: Record) -> str:
    levels = bool(record.log.cases)
    first, *rest = level_verdict(record) if levels else [*verdict(record), *stage_sentences(record)]
    rest = [*compared_in_rounds(record), *rest]
    sentences = f"<p class='verdict'>{escape(first)}</p>" + "".join(f"<p>{escape(each)}</p>" for each in rest)
    if record.best is None:
        return f"<h2>What was gained</h2>\n{sentences}"
    caution = (
        f"The best of {len(record.log) - record.round_start:,} policies was chosen by its figure on the "
        "reward split, which therefore flatters it. Scores of searched policies are those "
        f"{scoring(record.config)}. Small "
        "figures are differences from the original network."
    )
    gained = [table_html(*level_cells(record))] if levels else [_tiles(record), _networks(record)]
    parts = [sentences, *gained, f"<p class='faint'>{escape(caution)}</p>"]
    return "\n".join(["<h2>What was gained</h2>", *parts])


def _tiles(record: Record) -> str:
    before = record.original
    (after,) = (each for each in record.networks if each.name == record.algorithm)
    pair, split = (before.reward_score, after.reward_score), "reward split"
    if before.test_score is not None and after.test_score is not None:
        pair, split = (before.test_score, after.test_score), "test split"
    against = f"{percent(pair[0])} before, {points(pair[1] - pair[0])}"
    tiles = [_tile(f"{record.score_name}, {split}", percent(pair[1]), against)]
    tuned = [each.test_score for each in stages(record)[:1] if each.test_score is not None]
    if tuned:
        text = (
            "" if before.test_score is None else f"{points(tuned[0] - before.test_score)} from the original"
        )
        tiles.append(_tile(f"{record.score_name}, test split, fine-tuned", percent(tuned[0]), text))
    unit = record.latency_unit
    for name in dict.fromkeys((*record.costs, "macs", "size", "latency")):
        if name in before.costs and name in after.costs:
            old, new = before.costs[name], after.costs[name]
            text = f"{cost_text(name, old, old, unit)} before, {_against(record, name, new, old)}"
            tiles.append(_tile(COST_NAMES.get(name, name), cost_text(name, new, old, unit), text))
    return f"<div class='tiles'>{''.join(tiles)}</div>"


def _against(record: Record, name: str, new: float, old: float) -> str:
    """A cost beside the original's; of milliseconds nothing that noise explains."""
    if name != "latency" or record.latency_unit != "ms":
        return change(new, old)
    sources = [each.latency_source for each in record.networks]
    sources += [] if record.best is None else [record.best.latency_source]
    return speed(new, old, "unreliable" not in sources)


def _tile(name: str, figure: str, text: str) -> str:
    texts = (escape(each) for each in (name, figure, text))
    return "<div class='tile'><span>{}</span><b>{}</b><span>{}</span></div>".format(*texts)


def _networks(record: Record) -> str:
    networks: list[Figures | Stage] = [*record.networks, *stages(record)]
    tested = any(each.test_score is not None for each in networks)
    costs = [name for name in COST_NAMES if any(name in each.costs for each in networks)]
    rows = [[f"{escape(record.score_name)}, reward split", *_scores([n.reward_score for n in networks])]]
    if tested:
        rows.append([f"{escape(record.score_name)}, test split", *_scores([n.test_score for n in networks])])
    for name in dict.fromkeys(name for each in networks for name in each.further):
        rows.append([f"{escape(name)}, test split", *_scores([n.further.get(name) for n in networks])])
    rows += [[COST_NAMES[name], *_cost_cells(record, name, networks)] for name in costs]
    return table_html(["", *(each.name for each in networks)], rows)


def _scores(scores: Sequence[float | None]) -> list[str]:
    first = scores[0]
    known = [
        ("", "") if score is None else (percent(score), "" if first is None else points(score - first))
        for score in scores
    ]
    return _cells(known)


def _cost_cells(record: Record, name: str, networks: Sequence[Figures | Stage]) -> list[str]:
    costs = [each.costs.get(name) for each in networks]
    largest = max(each for each in costs if each is not None)
    first = costs[0]
    known = [
        ("", "")
        if cost is None
        else (
            cost_text(name, cost, largest, record.latency_unit),
            _against(record, name, cost, first) if first else "",
        )
        for cost in costs
    ]
    return _cells(known)


def _cells(figures: Sequence[tuple[str, str]]) -> list[str]:
    """Figures with their difference from the first network in small; the first has none."""
    return [
        f"{escape(figure)}<small>{escape(against)}</small>" if index and against else escape(figure)
        for index, (figure, against) in enumerate(figures)
    ]


def _policy(record: Record) -> str:
    best = record.best
    assert best is not None
    widths = record.original_widths
    heights = "Output channels kept" if widths is None else "Share of the output channels kept; outline: all"
    densities = " Dash: share of the single weights that stay." if best.policy.values("density") else ""
    replaced = any(decision.replaced for decision in best.policy.decisions)
    operators = " Field below a bar: what replaces the layer, and its amount." if replaced else ""
    colours = "Colour and number: bits of the weights."
    caption = f"{heights}. {colours}{densities}{operators} Evaluation {best.index + 1:,}."
    drawing = figure_html(best_policy_figure(record), "The best policy, one bar a layer", caption)
    knobs = list(dict.fromkeys(knob for each in best.policy.decisions for knob in each.values))
    rows = [
        [
            escape(each.point) + _instead(each),
            *(_decision(knob, each.values.get(knob), each.point, widths) for knob in knobs),
        ]
        for each in best.policy.decisions
    ]
    table = table_html(["layer", *(knob.replace("_", " ") for knob in knobs)], rows)
    return f"<h2>The policy</h2>\n{drawing}\n<details><summary>Layer by layer</summary>{table}</details>"


def _instead(decision: LayerDecision) -> str:
    """What stands in the place of a layer, below its name."""
    if decision.operator == ORIGINAL_OPERATOR:
        return ""
    return f"<small>{'left out' if decision.operator == REMOVED else escape(decision.operator)}</small>"


def _decision(knob: str, value: int | None, point: str, widths: Mapping[str, int] | None) -> str:
    if value is None:
        return ""
    if knob == "width" and widths is not None:
        return f"{value:,} of {widths[point]:,}<small>{percent(value / widths[point])}</small>"
    if knob == "density":
        return f"{value:,}{NO_BREAK}%"
    return "not quantized" if knob.endswith("bits") and value == 32 else f"{value:,}"


def _rounds(record: Record) -> list[str]:
    """The rounds of a cooled search."""
    if not record.rounds:
        return []
    note = f"<p class='faint'>{escape(round_note(record))}</p>"
    return ["<h2>The rounds</h2>", table_html(*round_cells(record)), note]


def _search(record: Record) -> str:
    if record.rounds:
        curve = figure_html(
            rounds_figure(record),
            "Score against evaluations, round by round",
            "One dot an evaluation; the line is the best of each round so far, dashed the reference policy "
            "of the round. Rounds have different budgets and networks.",
        )
    elif record.log.cases:
        text = "Score at every level of the budget"
        curve = figure_html(
            level_figure(record), text, f"{text}: the {record.reference} policy and what was learned."
        )
    else:
        curve = figure_html(
            curve_figure(record),
            "Best so far against evaluations",
            f"One dot an evaluation; the line is the best so far, dashed the {record.reference} policy."
            f"{references_caption(record)}",
        )
    scatter = figure_html(
        scatter_figure(record),
        "Score against cost, one dot an evaluation",
        "Score against cost; later evaluations are stronger. Dotted: the budget. The line joins what no other"
        " one beats in both."
        + (" Hollow: the latency is predicted." if record.predicted else "")
        + measured_caption(record),
    )
    return f"<h2>The search</h2>\n{curve}\n{scatter}"


def _examples(record: Record) -> list[str]:
    """Example searches or detections, where the task has them."""
    parts = []
    if (neighbours := neighbours_of(record)) is not None:
        figure, caption = neighbours_figure(neighbours), neighbours_caption(neighbours)
        parts.append(figure_html(figure, "Queries and the images found for them", caption))
    if (boxes := boxes_of(record)) is not None:
        parts.append(figure_html(boxes_figure(boxes), "Images with boxes", boxes_caption(boxes)))
    return ["<h2>What is found</h2>", *parts] if parts else []


def _commands(record: Record) -> str:
    texts = [
        f"<h3>{escape(purpose)}</h3><pre><code>{escape(command)}</code></pre>"
        for purpose, command in commands(
            record.config, record.folder, record.best.policy if record.best else None
        )
    ]
    note = "<p class='faint'>To be run where the search was: its paths are relative to that folder.</p>"
    return "\n".join(["<h2>Commands</h2>", note, *texts])


def _settings(record: Record) -> str:
    tables = [f"<h3>{part}</h3>\n{_setting_table(values)}" for part, values in asdict(record.config).items()]
    hidden = {"command", "original", "widths", "blocks"}
    facts = {name: value for name, value in _flat(record.facts).items() if name.split(".")[0] not in hidden}
    tables.append(f"<h3>machine and versions</h3>\n{_setting_table(facts)}")
    return f"<h2>Settings</h2>\n<details><summary>Every setting</summary>{''.join(tables)}</details>"


def _flat(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    result: dict[str, Any] = {}
    for name, value in values.items():
        result |= _flat(value, f"{prefix}{name}.") if isinstance(value, Mapping) else {prefix + name: value}
    return result


def _setting_table(values: Mapping[str, Any]) -> str:
    rows = [[escape(name), escape(_setting(value))] for name, value in values.items()]
    return table_html(["setting", "value"], rows, columns="texts")


def _setting(value: Any) -> str:
    if isinstance(value, tuple | list):
        return ", ".join(str(each) for each in value) or "none"
    return "none" if value is None else str(value)

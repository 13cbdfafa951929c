"""What a report says of a search in rounds: what its verdict compares, a table, and a drawing."""

from html import escape
from itertools import pairwise

from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator

from agents.cooling_rounds import budget_share
from agents.cooling_schedule import fractions
from agents.report_data import Record
from agents.report_figures import BLUE, GREY, HEIGHT, WIDTH, add_legend, text_sizes
from agents.report_rounds import Round
from agents.report_settings import epochs_text
from agents.report_text import COST_NAMES, percent


def compared_in_rounds(record: Record) -> list[str]:
    """Which policies a verdict compares; nothing to say of a search without rounds."""
    if not record.rounds:
        return []
    latest, cooling = record.rounds[-1], record.config.cooling
    last = latest.number == cooling.rounds
    budgets = "the final budgets" if last else "its own, looser budgets"
    before = "" if latest.summary and last else "The rounds have not come to their end. "
    return [
        f"{before}This is about round {latest.number} of {cooling.rounds} alone, under {budgets}: its "
        f"policies are compared with each other, in {_start(record, latest)}."
    ]


def _start(record: Record, latest: Round) -> str:
    """The network that a round prunes."""
    epochs = record.config.cooling.round_epochs
    if latest.number == 1:
        return "the original network"
    tuned = f"fine-tuned for {epochs_text(epochs)} after each of them" if epochs else "without fine-tuning"
    return f"the network that the rounds before have left, {tuned}"


def round_cells(record: Record) -> tuple[list[str], list[list[str]]]:
    """Headings and rows of the table of rounds."""
    ends = fractions(record.config.problem.budgets)
    costs = [name for name in COST_NAMES if name in ends]
    head = ["round", *(f"{COST_NAMES[name]}, {what}" for name in costs for what in ("may be", "are"))]
    head += ["evaluations", "reference", "best", "fine-tuned", "best, test", "fine-tuned, test"]
    return head, [_cells(record, each, {name: ends[name] for name in costs}) for each in record.rounds]


def _cells(record: Record, here: Round, ends: dict[str, float]) -> list[str]:
    rows = record.log.rows
    end = next((each.start for each in record.rounds if each.start > here.start), len(rows))
    best, cells = rows[rows[end - 1].best_index], [str(here.number)]
    for name, final in ends.items():
        original = record.original.costs.get(name)
        share = best.costs[name] / original if original and name in best.costs else None
        cells += [percent(budget_share(record.config.cooling, here.number, final)), _known(share)]
    scores = (here.summary.get(name) for name in ("tuned_score", "test_score", "tuned_test_score"))
    reference = f"{percent(rows[here.start].score)}<small>{escape(here.reference)}</small>"
    return [*cells, f"{end - here.start:,}", reference, percent(best.score), *map(_known, scores)]


def _known(share: float | None) -> str:
    return "" if share is None else percent(share)


def round_note(record: Record) -> str:
    """What the table of rounds holds, and what was trained between them."""
    cooling = record.config.cooling
    tuned = (
        "After each round but the last its best network was fine-tuned for "
        f"{epochs_text(cooling.round_epochs)}, in floats, taught by the original, with a peak learning rate "
        f"of {cooling.round_lr:g}; the next round prunes the result. After the last round nothing is trained."
        if cooling.round_epochs
        else "Nothing was trained between the rounds; each prunes what the one before has left."
    )
    return (
        f"Costs are shares of the original network's, under the {cooling.cooling} schedule; scores are those "
        f"of the reward split, where nothing else is said. {tuned}"
    )


def rounds_figure(record: Record) -> Figure:
    """Score against evaluations, each a dot; of each round the best so far and, dashed, its reference."""
    rows = record.log.rows
    figure = Figure(figsize=(WIDTH, HEIGHT), layout="constrained")
    axes = figure.add_subplot()
    places = range(1, len(rows) + 1)
    axes.plot(places, [100 * row.score for row in rows], "o", markersize=3, alpha=0.45, color=BLUE)
    starts = [each.start for each in record.rounds]
    for here, (start, end) in zip(record.rounds, pairwise([*starts, len(rows)]), strict=True):
        best = [100 * rows[row.best_index].score for row in rows[start:end]]
        axes.step(places[start:end], best, where="post", color=BLUE, linewidth=2)
        first = 100 * rows[start].score
        axes.plot([start + 0.5, end + 0.5], [first, first], "--", color=GREY, linewidth=1, zorder=1)
        if start:
            axes.axvline(start + 0.5, color=GREY, linewidth=1, linestyle=":")
        corner = axes.get_xaxis_transform()
        text = f"round {here.number}"
        axes.text(start + 0.6, 0.98, text, transform=corner, va="top", fontsize=8, color=GREY)
    axes.set_xlabel("evaluations")
    axes.set_ylabel(f"{record.score_name}, reward split (%)")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.grid(alpha=0.3)
    axes.spines[["top", "right"]].set_visible(False)
    best_line = Line2D([], [], color=BLUE, linewidth=2, label="best of the round so far")
    dashed = Line2D([], [], linestyle="--", linewidth=1, color=GREY, label="the round's reference policy")
    add_legend(axes, [best_line, dashed])
    return text_sizes(figure)

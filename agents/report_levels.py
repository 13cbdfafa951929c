"""What a report says of a training on a range of budgets: every level beside the others."""

from statistics import mean

from matplotlib.figure import Figure

from agents.figures import series_style
from agents.outcome import ACTOR
from agents.report_data import Figures, Record
from agents.report_figures import GREY, HEIGHT, WIDTH, add_legend, text_sizes
from agents.report_text import percent, points


def level_names(record: Record) -> list[str]:
    """The networks of each level, in the order of the report."""
    known = {each.name for each in record.networks if each.case}
    return [name for name in (record.reference, record.algorithm, ACTOR) if name in known]


def level_rows(record: Record) -> list[tuple[str, dict[str, Figures]]]:
    """Every level, the tightest first, with its networks by name."""
    found: dict[str, dict[str, Figures]] = {}
    for each in record.networks:
        if each.case:
            found.setdefault(each.case, {})[each.name] = each
    return list(found.items())


def level_verdict(record: Record) -> list[str]:
    """What was gained over the reference policies, as means over the levels."""
    rows = level_rows(record)
    sentences = []
    for name in level_names(record)[1:]:
        here = [networks for _, networks in rows if name in networks]
        gain = mean(each[name].reward_score - each[record.reference].reward_score for each in here)
        who = "The actor alone" if name == ACTOR else "The best policy of each level"
        text = f"{who}: {points(gain)} of {record.score_name} over the {record.reference} one on the reward "
        text += "split"
        tests = [(each[name].test_score, each[record.reference].test_score) for each in here]
        known = [one - other for one, other in tests if one is not None and other is not None]
        if len(known) == len(here):
            text += f", {points(mean(known))} on the test split"
        sentences.append(f"{text}; mean of {len(here)} levels.")
    return sentences


def level_cells(record: Record) -> tuple[list[str], list[list[str]]]:
    """Headings and rows of the table of levels; the first row is the original network."""
    names, original = level_names(record), record.original
    head = [""]
    lines = [["original"], *([case] for case, _ in level_rows(record))]
    for split in ("reward", "test"):
        columns = [
            [getattr(each[name], f"{split}_score") for _, each in level_rows(record)] for name in names
        ]
        if any(score is None for column in columns for score in column):
            continue
        for name, column in zip(names, columns, strict=True):
            head.append(f"{name}, {split} split")
            scores = [getattr(original, f"{split}_score"), *column]
            for line, score in zip(lines, scores, strict=True):
                line.append("" if score is None else percent(score))
    return head, lines


def level_figure(record: Record) -> Figure:
    """Score against level, one line each for the reference policies, the best ones and the actor's."""
    rows = level_rows(record)
    tested = all(each.test_score is not None for _, networks in rows for each in networks.values())
    figure = Figure(figsize=(WIDTH, HEIGHT), layout="constrained")
    axes = figure.add_subplot()
    places = range(len(rows))
    for place, name in enumerate(level_names(record)):
        color, marker = (GREY, "D") if name == record.reference else series_style(place - 1)
        scores = [
            100 * ((networks[name].test_score or 0.0) if tested else networks[name].reward_score)
            for _, networks in rows
        ]
        axes.plot(places, scores, color=color, marker=marker, markersize=4, label=name)
    axes.set_xticks(places, [case for case, _ in rows], rotation=45, ha="right")
    axes.set_ylabel(f"{record.score_name}, {'test' if tested else 'reward'} split (%)")
    axes.grid(alpha=0.3)
    axes.spines[["top", "right"]].set_visible(False)
    add_legend(axes, axes.get_legend_handles_labels()[0])
    return text_sizes(figure)

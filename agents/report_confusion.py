"""The report of a training on few labels: which classes its estimated labels confuse."""

from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.colors import to_rgba
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from agents.report_figures import BLUE, ORANGE, WIDTH
from agents.report_page import page
from agents.report_sections import figure_html, table_html
from agents.report_text import percent
from amc.errors import UserError
from amc.files import read_json

FEW_LABELS_FILE = "few_labels.json"
"""Figures of a training on few labels, in its folder."""
MOST_NUMBERS = 20
"""Classes up to which every cell of the matrix says its share."""


def has_few_labels(folder: Path) -> bool:
    """Whether a folder holds a training on few labels."""
    return (folder / FEW_LABELS_FILE).is_file()


def read_few_labels(folder: Path) -> dict[str, Any]:
    """The figures of a training on few labels.

    Raises:
        UserError: the file is no such thing.
    """
    found = read_json(folder / FEW_LABELS_FILE)
    if not isinstance(found, dict) or not {"confusion", "classes", "test_accuracy"} <= set(found):
        raise UserError(f"{folder / FEW_LABELS_FILE} does not hold the figures of a training on few labels.")
    return found


def few_labels_drawings(found: Mapping[str, Any]) -> dict[str, Figure]:
    """The drawings by the names of their files."""
    drawings = {"confusion": confusion_figure(found["confusion"], found["classes"])}
    return drawings | ({"labels": rounds_figure(found)} if found["losses"] else {})


def few_labels_page(found: Mapping[str, Any]) -> str:
    """The whole HTML page."""
    settings = found["settings"]
    title = f"{settings['model']} trained on {found['labeled']:,} labels of {found['data']}"
    return page(title, "\n".join([_figures(found), *_figure_parts(found), _settings(settings)]))


def confusion_figure(counts: Sequence[Sequence[int]], names: Sequence[str]) -> Figure:
    """The share of every true class (rows, which sum to 100 %) that was given each class (columns).

    Right ones are blue, wrong ones orange, and the stronger the more.

    Args:
        counts: images, [classes][classes].
        names: of the classes.
    """
    size = min(WIDTH, 2.2 + 0.55 * len(names))
    figure = Figure(figsize=(size, size * 0.85), layout="constrained")
    axes = figure.subplots()
    for row, line in enumerate(counts):
        for column, count in enumerate(line):
            share = count / max(sum(line), 1)
            # Not an image: rectangles stay sharp, and the page's text colour shows through.
            colour = to_rgba(BLUE if row == column else ORANGE, 0.85 * share)
            axes.add_patch(Rectangle((column - 0.5, row - 0.5), 1, 1, facecolor=colour, linewidth=0))
            if len(names) <= MOST_NUMBERS and count:
                axes.text(column, row, f"{100 * share:.0f}", ha="center", va="center", fontsize=8)
    _label(axes, names)
    return figure


def _label(axes: Axes, names: Sequence[str]) -> None:
    places = range(len(names))
    axes.set(xlim=(-0.5, len(names) - 0.5), ylim=(len(names) - 0.5, -0.5), aspect="equal")
    upright = 90 if max(map(len, names)) > 2 else 0
    axes.set_xticks(places, names, rotation=upright, fontsize=8)
    axes.set_yticks(places, names, fontsize=8)
    axes.set_xlabel("estimated label", fontsize=9)
    axes.set_ylabel("true label", fontsize=9)


def rounds_figure(found: Mapping[str, Any]) -> Figure:
    """Mean training loss, and the share of labels that changed, against rounds."""
    figure = Figure(figsize=(WIDTH, 3.0), layout="constrained")
    losses, changes = figure.subplots(1, 2)
    rounds = range(1, len(found["losses"]) + 1)
    changed = [100 * share for share in found["changed"]]
    drawn = ((losses, found["losses"], "mean training loss"), (changes, changed, "labels changed (%)"))
    for axes, values, name in drawn:
        axes.plot(rounds, values, "o-", markersize=3, color=BLUE)
        axes.set_xlabel("round", fontsize=9)
        axes.set_ylabel(name, fontsize=9)
        axes.tick_params(labelsize=8)
        axes.grid(alpha=0.3)
        axes.spines[["top", "right"]].set_visible(False)
    return figure


def _figures(found: Mapping[str, Any]) -> str:
    rows = {
        "Labels": f"{found['labeled']:,} known, {found['unlabeled']:,} images without",
        "Arm": str(found["settings"]["arm"]),
        "Accuracy, test split": percent(found["test_accuracy"]),
        "Right labels of those images": f"{percent(found['label_accuracy'])}, {found['label_source']}",
        "Network": f"{found['macs'] / 1e6:,.2f} MMACs, {found['parameters'] / 1e3:,.1f} k parameters",
        "Time": f"{found['cpu_seconds']:,.0f} CPU seconds",
    }
    items = "".join(f"<dt>{name}</dt><dd>{escape(value)}</dd>" for name, value in rows.items())
    note = (
        "No weight has learned from a label beyond those that are known, unless the arm is full; the others "
        "and the test split serve these figures alone."
    )
    return f"<dl>{items}</dl><p class='faint'>{note}</p>"


def _figure_parts(found: Mapping[str, Any]) -> list[str]:
    worst = _worst(found["confusion"], found["classes"])
    caption = f"Images without labels, percent of each true class.{f' {worst}' if worst else ''}"
    drawings = few_labels_drawings(found)
    parts = [
        "<h2>Which labels are confused</h2>",
        figure_html(drawings["confusion"], "True against estimated labels", caption),
    ]
    if "labels" in drawings:
        parts.append(
            figure_html(drawings["labels"], "Loss and changed labels against rounds", "Every round.")
        )
    return parts


def _worst(counts: Sequence[Sequence[int]], names: Sequence[str]) -> str:
    """A sentence on the most frequent confusion; empty where there is none."""
    wrong = [
        (count / sum(line), names[row], names[column])
        for row, line in enumerate(counts)
        for column, count in enumerate(line)
        if row != column and count
    ]
    if not wrong:
        return ""
    share, true, said = max(wrong)
    return f"Most often confused: {percent(share)} of {true} are called {said}."


def _settings(settings: Mapping[str, Any]) -> str:
    rows = [[escape(name), escape(str(value))] for name, value in settings.items()]
    table = table_html(["setting", "value"], rows, columns="texts")
    return f"<h2>Settings</h2>\n<details><summary>Every setting</summary>{table}</details>"

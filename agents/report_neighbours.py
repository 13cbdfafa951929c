"""The drawing of example searches: queries and the images found for them."""

from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from agents.report_data import Record
from agents.report_figures import BLUE, ORANGE, WIDTH
from amc.retrieval.neighbours import Neighbours, load_neighbours
from amc.tasks.retrieval import NEIGHBOURS_FILE

SIZE = 0.5
"""Inches of one image."""


def neighbours_of(record: Record) -> Neighbours | None:
    """The example searches of a run; None where it has none."""
    path = Path(record.folder) / NEIGHBOURS_FILE
    return load_neighbours(path) if path.is_file() else None


def neighbours_caption(neighbours: Neighbours) -> str:
    """What the drawing shows, and how many of the images in it are right."""
    shown = next(iter(neighbours.right.values())).shape[1]
    shares = ", ".join(f"{100 * right.mean():.0f} % by {name}" for name, right in neighbours.right.items())
    return (
        f"Left the query, then the {shown} images of the test split that come first. Blue: of the query's "
        f"class; orange: of another. Right among those shown: {shares}."
    )


def neighbours_figure(neighbours: Neighbours) -> Figure:
    """One row a query; one block of columns a network."""
    names = list(neighbours.found)
    rows, shown = neighbours.right[names[0]].shape
    columns = 1 + len(names) * (shown + 1)
    size = min(SIZE, WIDTH / columns)
    figure = Figure(figsize=(size * columns, size * (rows + 0.6)), layout="constrained")
    axes = figure.subplots()
    for row in range(rows):
        _draw(axes, neighbours.queries[row], 0, row, None)
        for block, name in enumerate(names):
            for place in range(shown):
                column = 1.5 + block * (shown + 0.5) + place
                colour = BLUE if neighbours.right[name][row, place] else ORANGE
                _draw(axes, neighbours.found[name][row, place], column, row, colour)
    for block, name in enumerate(names):
        axes.text(1.5 + block * (shown + 0.5), -0.15, name, fontsize=9, va="bottom")
    axes.set(xlim=(-0.1, 1.5 + len(names) * (shown + 0.5)), ylim=(rows, -0.6), aspect="equal")
    axes.axis("off")
    return figure


def _draw(axes: Axes, image: np.ndarray, left: float, top: float, colour: str | None) -> None:
    """One image [C, H, W] in a square of side 1, with a frame in a colour."""
    pixels = image.transpose(1, 2, 0)
    inside = (left + 0.06, left + 0.92, top + 0.92, top + 0.06)
    grey = pixels.shape[2] == 1
    axes.imshow(pixels[..., 0] if grey else pixels, cmap="gray" if grey else None, extent=inside, zorder=2)
    if colour is not None:
        right, bottom = left + 0.98, top + 0.98
        axes.fill([left, right, right, left], [top, top, bottom, bottom], color=colour, linewidth=0)

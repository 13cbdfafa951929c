"""The drawing of example detections: images with labelled boxes and with those that networks find."""

from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from agents.report_data import Record
from agents.report_figures import BLUE, ORANGE, WIDTH
from amc.detection.examples import (
    CLASS,
    CORNERS,
    EXAMPLES_FILE,
    LEAST_DRAWN,
    SCORE,
    DetectionExamples,
    load_examples,
)

LABELLED = "labelled"


def boxes_of(record: Record) -> DetectionExamples | None:
    """The example detections of a run; None where it has none."""
    path = Path(record.folder) / EXAMPLES_FILE
    return load_examples(path) if path.is_file() else None


def boxes_caption(examples: DetectionExamples) -> str:
    """What the drawing shows."""
    counts = ", ".join(f"{len(rows)} by {name}" for name, rows in examples.found.items())
    return (
        f"Images of the test split. Blue: labelled objects; orange: what a network finds with a score of at "
        f"least {LEAST_DRAWN:g} ({counts}), with that score in percent."
    )


def boxes_figure(examples: DetectionExamples) -> Figure:
    """One column an image; one row the labels, then one a network."""
    rows, count = [LABELLED, *examples.found], len(examples.images)
    height, width = examples.images.shape[2:]
    side = WIDTH / count
    figure = Figure(figsize=(WIDTH, (side * height / width + 0.15) * len(rows)), layout="constrained")
    panels = figure.subplots(len(rows), count, squeeze=False)
    for line, name in zip(panels, rows, strict=True):
        for image, axes in enumerate(line):
            _show(axes, examples.images[image])
            _outline(axes, examples, name, image)
        line[0].set_ylabel(name, fontsize=9)
    return figure


def _show(axes: Axes, image: np.ndarray) -> None:
    """One image [C, H, W] without ticks; its corner is pixel 0, as in the boxes."""
    pixels = image.transpose(1, 2, 0)
    grey = pixels.shape[2] == 1
    extent = (0, pixels.shape[1], pixels.shape[0], 0)
    axes.imshow(pixels[..., 0] if grey else pixels, cmap="gray" if grey else None, extent=extent)
    axes.set(xticks=(), yticks=())


def _outline(axes: Axes, examples: DetectionExamples, name: str, image: int) -> None:
    if name == LABELLED:
        objects = examples.labels[image]
        for each in objects[objects[:, CLASS] >= 0]:
            _box(axes, each[CORNERS], BLUE, _class(examples, each))
        return
    for each in (row for row in examples.found[name] if row[-1] == image):
        _box(axes, each[CORNERS], ORANGE, f"{_class(examples, each)} {100 * each[SCORE]:.0f}")


def _class(examples: DetectionExamples, row: np.ndarray) -> str:
    label = int(row[CLASS])
    return examples.names[label] if label < len(examples.names) else str(label)


def _box(axes: Axes, corners: np.ndarray, colour: str, text: str) -> None:
    x1, y1, x2, y2 = (float(value) for value in corners)
    axes.add_patch(Rectangle((x1, y1), x2 - x1, y2 - y1, fill=False, edgecolor=colour, linewidth=1.5))
    framed = {"facecolor": colour, "alpha": 0.8, "linewidth": 0, "pad": 0.6}
    axes.text(x1, y1, text, fontsize=5, va="bottom", color="white", bbox=framed, clip_on=True)

"""`write_report`: what a search found, as one self-contained HTML page with its drawings as PNG beside it."""

from collections.abc import Sequence
from pathlib import Path

from matplotlib.figure import Figure

from agents.report_boxes import boxes_figure, boxes_of
from agents.report_confusion import few_labels_drawings, few_labels_page, has_few_labels, read_few_labels
from agents.report_cooling import rounds_figure
from agents.report_curves import group_figure
from agents.report_data import Record, load_record
from agents.report_figures import best_policy_figure, curve_figure, png, scatter_figure
from agents.report_groups import grouped
from agents.report_levels import level_figure
from agents.report_neighbours import neighbours_figure, neighbours_of
from agents.report_page import GENERATOR, page_html
from agents.report_pareto import pareto_figure
from agents.report_references import with_runs
from amc.errors import UserError
from amc.files import write_atomically

REPORT_FOLDER, PAGE_FILE, COMPARISON_FILE = "report", "index.html", "comparison.html"


def write_report(
    folders: Sequence[Path], out: Path | None = None, against: Sequence[Path] = ()
) -> list[Path]:
    """Write the report of a run, or of several that are compared; finished or not.

    It reads the run directories alone: no network is built and nothing is evaluated.

    Args:
        folders: run directories; or one of a training on few labels, whose drawings are `confusion.png` and
            `labels.png`.
        out: the HTML page; by default `report/index.html` in the run's directory, and for several runs
            `report/comparison.html` in that of the first.
        against: run directories of other searches for the same thing, such as a random one; their curves
            are drawn on the page of a single run.

    Returns:
        The page, then the PNG drawings: `curve.png`, `policy.png` and `scatter.png` beside it, of a retrieval
        network also `neighbours.png` (of several runs `curve.png`, numbered where they ask for different
        things, and `pareto.png`); with another page name than `index.html`, that name and a hyphen come
        first.

    Raises:
        UserError: a folder holds no run, runs that are drawn together ask for different things, or the page
            cannot be written.
    """
    folders = list(dict.fromkeys(folders))
    if not folders:
        raise UserError("Name at least one run directory.")
    content, drawings = _content(folders, against)
    page = out or _default_page(folders)
    _check_page(page)
    prefix = "" if page.name == PAGE_FILE else f"{page.stem}-"
    written = {page: content.encode()}
    for name, figure in drawings.items():
        written[page.with_name(f"{prefix}{name}.png")] = png(figure)
    _write(written)
    return list(written)


def _content(folders: Sequence[Path], against: Sequence[Path]) -> tuple[str, dict[str, Figure]]:
    """The page and its drawings."""
    few_labels = len(folders) == 1 and has_few_labels(folders[0])
    if against and (few_labels or len(folders) > 1):
        raise UserError("--against belongs to the report of one search; several are compared anyway.")
    if few_labels:
        found = read_few_labels(folders[0])
        return few_labels_page(found), few_labels_drawings(found)
    records = [load_record(folder) for folder in folders]
    if against:
        records = [with_runs(records[0], [load_record(folder) for folder in against])]
    return page_html(records), _drawings(records)


def _default_page(folders: Sequence[Path]) -> Path:
    return folders[0] / REPORT_FOLDER / (PAGE_FILE if len(folders) == 1 else COMPARISON_FILE)


def _check_page(page: Path) -> None:
    """Refuse to replace a file that is not a report."""
    if page.suffix.lower() not in (".html", ".htm"):
        raise UserError(f"The report is an HTML page: {page} should end in .html.")
    if page.is_dir():
        raise UserError(f"{page} is a folder.")
    if page.exists() and GENERATOR.encode() not in page.read_bytes()[:2000]:
        raise UserError(f"{page} exists and is not a report: choose another file.")


def _drawings(records: Sequence[Record]) -> dict[str, Figure]:
    if not any(record.log.rows for record in records):
        return {}
    if len(records) > 1:
        return _comparisons(records)
    (record,) = records
    return {
        "curve": _curve(record),
        "policy": best_policy_figure(record),
        "scatter": scatter_figure(record),
        **({"neighbours": neighbours_figure(neighbours)} if (neighbours := neighbours_of(record)) else {}),
        **({"boxes": boxes_figure(boxes)} if (boxes := boxes_of(record)) else {}),
    }


def _curve(record: Record) -> Figure:
    if record.rounds:
        return rounds_figure(record)
    return level_figure(record) if record.log.cases else curve_figure(record)


def _comparisons(records: Sequence[Record]) -> dict[str, Figure]:
    """The curves of each group, numbered where there are several, and the front."""
    groups = [group for group in grouped(records) if any(series.begun for series in group.series)]
    names = [f"curve-{place}" for place in range(1, len(groups) + 1)] if len(groups) > 1 else ["curve"]
    curves = {name: group_figure(group) for name, group in zip(names, groups, strict=True)}
    return {**curves, "pareto": pareto_figure(records)}


def _write(files: dict[Path, bytes]) -> None:
    for path, content in files.items():
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            write_atomically(path, content)
        except OSError as error:
            raise UserError(f"{path} cannot be written: {error.strerror}.") from error

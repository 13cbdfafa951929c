"""The section of the latency results' page that draws accuracy against latency."""

from collections.abc import Sequence

from scripts.latency_page_targets import Rendered
from scripts.latency_plots import STYLES, Points, curves_png
from scripts.latency_words import Row, made_by, originals, points_of
from scripts.results_page import markdown_table

WITHOUT_BUDGET = "int8 only"
"""The series of the networks that are as fast as they come."""


def curves(page: Rendered) -> list[str]:
    """Accuracy against latency, without and with a short fine-tuning."""
    asked = [*page.of("curve"), *page.of("joint"), *page.of("headline")]
    rows = [row for row in asked if points_of(row)]
    title = "## Accuracy against latency"
    if not rows:
        return [title, "*Not measured yet.*"]
    known = originals(asked)
    crosses = {panel_of(row): known[row["network"]] for row in rows if row["network"] in known}
    headings = ["network, target (machine)", "way", "budget", "latency ratio", "test accuracy"]
    return [
        title,
        "Un-tuned networks are scored in PyTorch; fine-tuned ones as exported files in their runtime.",
        page.draw("latency_curves.png", curves_png(series_of(rows), crosses), "Accuracy against latency"),
        markdown_table(headings, table_of(rows)),
        *out_of_reach(asked),
        made_by(rows),
    ]


def panel_of(row: Row) -> str:
    """Title of the panel that a row's points are drawn in."""
    return f"{row['network']}, {row['target']} ({row['label']})"


def series_of(rows: Sequence[Row]) -> dict[str, dict[str, Points]]:
    """Points of each panel by series."""
    panels: dict[str, dict[str, list[tuple[float, float]]]] = {}
    for row in rows:
        panel = panels.setdefault(panel_of(row), {name: [] for name in STYLES})
        for name, point in points_of(row):
            # Rows made when the epochs were others have names of their own.
            known = panel.setdefault(name, [])
            if point not in known:
                known.append(point)
    return {panel: {name: list(points) for name, points in s.items()} for panel, s in panels.items()}


def table_of(rows: Sequence[Row]) -> list[list[str]]:
    """One line a point: panels in the order of the rows, and in each the loosest budgets first."""
    lines = {}
    for row in rows:
        for name, point in points_of(row):
            budget = 1.0 if name == WITHOUT_BUDGET else float(row["budget"])
            lines[panel_of(row), name, point] = budget
    panels = list(dict.fromkeys(panel for panel, _, _ in lines))
    ordered = sorted(lines.items(), key=lambda line: (panels.index(line[0][0]), -line[1], -line[0][2][1]))
    return [
        [panel, name, "" if name == WITHOUT_BUDGET else f"{budget:g}", f"{point[0]:.3f}", f"{point[1]:.2%}"]
        for (panel, name, point), budget in ordered
    ]


def out_of_reach(rows: Sequence[Row]) -> list[str]:
    """Which budgets of the curves no network keeps that has all of its blocks."""
    found: dict[str, list[str]] = {}
    for row in rows:
        if row["part"] == "curve" and "unreachable" in row and row.get("variant") != "tuned":
            found.setdefault(panel_of(row), []).append(row["budget"])
    if not found:
        return []
    told = "; ".join(f"{panel}: {', '.join(budgets)}" for panel, budgets in found.items())
    return [f"Out of reach of a network that keeps all of its layers, so that there is no point: {told}."]

"""Sections of the page of the latency results that are about targets and what predicts them."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from amc.targets import Profile
from scripts.latency_plots import Points, scatter_png
from scripts.latency_words import Row, made_by, percent
from scripts.profile_page import profile_png, sentences
from scripts.results_page import markdown_table

GOAL_MAPE = 0.05
WITHOUT_GOAL = ("litert", "onnxruntime")
"""Targets whose prediction error is reported only."""


class Rendered(Protocol):
    """The page that a section belongs to."""

    def of(self, part: str) -> list[Row]:
        """The rows of one part."""

    def draw(self, name: str, png: bytes, about: str) -> str:
        """Write a plot; the Markdown that shows it."""


@dataclass(frozen=True)
class MeasuredRuntime:
    """The runtime that a stored profile was measured with."""

    name: str
    runtime_version: str
    unit: str


def predictor(page: Rendered) -> list[str]:
    """Prediction error on unseen policies."""
    rows = page.of("predictor")
    title = "## Predictor error on policies that the fit has not seen"
    if not rows:
        return [title, "*Not measured yet.*"]
    table = [
        [
            f"{row['network']}, {row['target']} ({row['label']})",
            str(row["policies"]),
            *(percent(row[key]) for key in ("mape", "mape_int8", "mape_mixed", "mape_float")),
            f"{row['margin']:.1%}",
            "cached" if row["sampling_seconds"] is None else f"{row['sampling_seconds']:.0f}",
            f"{row['fitting_seconds']:.1f}",
        ]
        for row in rows
    ]
    headings = ["network, target (machine)", "policies", "MAPE", "int8", "mixed", "fp32"]
    headings += ["95 % margin", "sampling s", "fitting s"]
    return [
        title,
        markdown_table(headings, table),
        *_predictor_verdicts(rows),
        made_by(rows),
    ]


def profiles(page: Rendered) -> list[str]:
    """What each target gains from fewer channels and bits."""
    rows = page.of("profile")
    parts = ["## Step shapes of each target"]
    if not rows:
        return [*parts, "*Not measured yet.*"]
    for row in rows:
        profile = Profile.from_json(row)
        runtime = MeasuredRuntime(row["target"], row["runtime"], row["unit"])
        several = sum(other["target"] == row["target"] for other in rows) > 1
        name = f"profile_{row['target']}{'_' + row['label'] if several else ''}.png"
        drawing = page.draw(name, profile_png(profile, runtime), f"Latency on {row['target']}")
        parts += [
            f"### {row['target']} ({row['label']})",
            drawing,
            "\n".join(f"* {sentence}" for sentence in sentences(profile, runtime)),
        ]
    return [*parts, made_by(rows)]


def arm(page: Rendered) -> list[str]:
    """Counted instructions against measured latency."""
    rows = page.of("arm")
    title = "## Instructions of an emulated ARM core against measured latency"
    if not rows:
        return [title, "*Not measured yet.*"]
    row = rows[0]
    panels: dict[str, tuple[Points, float]] = {
        name: (_pairs(row, found), row["correlation"][name]["pearson_log"])
        for name, found in row["latency"].items()
    }
    table = [
        [f"{name} ({row['label']})", f"{found['pearson_log']:.3f}", f"{found['spearman']:.3f}"]
        for row in rows
        for name, found in row["correlation"].items()
    ]
    return [
        title,
        f"{row['policies']} random policies of {row['of']}; {row['core']}.",
        page.draw("latency_arm.png", scatter_png(panels), "Latency against instructions"),
        markdown_table(["latency on", "Pearson of logarithms", "Spearman"], table),
        made_by(rows),
    ]


def _pairs(row: Row, latencies: Sequence[float]) -> Points:
    return list(zip(row["instructions"], latencies, strict=True))


def _predictor_verdicts(rows: Sequence[Row]) -> list[str]:
    judged = [row for row in rows if row["target"] not in WITHOUT_GOAL]
    missed = [
        f"{row['network']} on {row['target']} ({row['label']}): {row['mape']:.1%}"
        for row in judged
        if row["mape"] > GOAL_MAPE
    ]
    floats = sorted({f"{row['target']} ({row['label']})" for row in rows if row["bits"] == [32]})
    said = [f"**Goal of {GOAL_MAPE:.0%} missed** by {'; '.join(missed)}."] if missed else []
    if judged and not missed:
        said.append(f"The goal of {GOAL_MAPE:.0%} on OpenVINO is met by every network above.")
    said += [f"Int8 brings nothing on {', '.join(floats)}: policies differ in widths only."] if floats else []
    return said

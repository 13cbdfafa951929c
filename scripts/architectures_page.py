"""The page of the architectures: which could be halved and exported, and why others could not."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from amc.export.model import FLOAT_TOLERANCE
from scripts.results_page import markdown_table, write_page

HEADINGS = (
    *("network", "pixels", "decision points", "channel groups", "MACs", "after", "parameters", "after"),
    *("ONNX Runtime", "OpenVINO", "LiteRT", "seconds"),
)
Row = Mapping[str, Any]


def write_architectures(figures: Path, rows: Mapping[str, Row], names: Sequence[str]) -> None:
    """Write the page beside its figures.

    Args:
        figures: the JSON file.
        rows: by name.
        names: of all rows, in the order of the page.
    """
    done = [rows[name] for name in names if name in rows]
    good = [row for row in done if "refused" not in row]
    bad = [row for row in done if "refused" in row]
    missing = [name for name in names if name not in rows]
    write_page(
        figures.with_suffix(".md"),
        [
            "# Networks of other libraries",
            _introduction(len(done), len(names), len(good)),
            markdown_table(HEADINGS, [_line(row) for row in good]),
            *_refusals(bad),
            *_frozen(done),
            *([f"Not made yet: {', '.join(missing)}."] if missing else []),
        ],
    )


def _introduction(done: int, planned: int, good: int) -> str:
    return (
        "Each network is built with random weights (its batch norms as training leaves them), traced, pruned "
        "to half of its MACs by the uniform policy, exported and compared with torch. In every row the MACs "
        "that were counted while the small network ran equal the claimed ones to the digit, and its outputs "
        "are those of the whole network with the same channels silenced. The figures under the runtimes are "
        f"the largest relative errors of a float file; {FLOAT_TOLERANCE:g} is allowed. Channel groups: those "
        "that can be pruned, of all but the network's output.\n\n"
        f"{good} of {done} networks could be halved; {done} of {planned} rows are made. "
        "`python -m scripts.architectures` makes the missing ones "
        "(with `--again` the measured ones too) and writes this page. Where the column of "
        "a runtime holds a word, no file was written for it and the word is the operation without exact "
        "translation."
    )


def _line(row: Row) -> list[object]:
    groups = row["channel_groups"] - 1
    return [
        row["model"],
        row["side"],
        row["decision_points"],
        f"{groups - row['frozen_groups']} of {groups}",
        f"{row['macs'] / 1e6:.2f} M",
        f"{row['macs_after'] / row['macs']:.1%}{_doubt(row)}",
        f"{row['params'] / 1e6:.2f} M",
        f"{row['params_after'] / row['params']:.1%}",
        *(_error(row.get(runtime, "")) for runtime in ("onnxruntime", "openvino", "litert")),
        f"{row['seconds']:.0f}",
    ]


def _doubt(row: Row) -> str:
    """What would have to be said of a row that breaks a promise of the introduction."""
    wrong = row["macs_counted"] != row["macs_after"] or row["masked_error"] > FLOAT_TOLERANCE
    return " (does not agree)" if wrong else ""


def _error(found: float | str) -> str:
    if isinstance(found, float):
        return f"{found:.0e}" if found <= FLOAT_TOLERANCE else f"**{found:.0e}**"
    return found.rpartition("translation of ")[2].rstrip(".")


def _refusals(rows: Sequence[Row]) -> list[str]:
    if not rows:
        return []
    table = [[row["model"], row.get("decision_points", ""), row["refused"]] for row in rows]
    return ["## Refused", markdown_table(("network", "decision points", "reason"), table)]


def _frozen(rows: Sequence[Row]) -> list[str]:
    """Groups that stay whole in networks that could be halved all the same."""
    table = []
    for row in rows:
        kinds: dict[str, list[str]] = {}
        for name, why in row.get("frozen", {}).items():
            kinds.setdefault(why.replace(name, "it"), []).append(name)
        most = sorted(kinds.items(), key=lambda item: -len(item[1]))[:2]
        table += [[row["model"], len(names), names[0], why] for why, names in most]
    if not table:
        return []
    return ["## Channels that stay", markdown_table(("network", "groups", "first layer", "reason"), table)]

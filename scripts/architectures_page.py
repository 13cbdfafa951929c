"""The page of the architectures: which could be halved and exported, and why others could not."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from amc.export.model import FLOAT_TOLERANCE
from scripts.results_page import markdown_table, read_figures, save_figures, write_page

HEADINGS = (
    *("network", "pixels", "decision points", "channel groups", "MACs", "MACs after", "parameters"),
    "parameters after",
    *("ONNX Runtime", "OpenVINO", "LiteRT", "seconds"),
)
REFUSAL_HEADINGS = ("network", "decision points", "reason")
FROZEN_HEADINGS = ("network", "groups", "first layer", "reason")
Row = Mapping[str, Any]


def write_architectures(figures: Path, rows: Mapping[str, Row], names: Sequence[str]) -> None:
    """Write the page beside its figures, and its tables into them.

    Args:
        figures: the JSON file; what else it holds stays.
        rows: by name.
        names: of all rows, in the order of the page.
    """
    done = [rows[name] for name in names if name in rows]
    good = [row for row in done if "refused" not in row]
    bad = [row for row in done if "refused" in row]
    missing = [name for name in names if name not in rows]
    save_figures(figures, {**read_figures(figures), "tables": tables(done)})
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


def tables(rows: Sequence[Row]) -> dict[str, list[dict[str, Any]]]:
    """The tables of the page, one object a line and its keys the headings; figures are unrounded."""
    good = [row for row in rows if "refused" not in row]
    bad = [row for row in rows if "refused" in row]
    return {
        "halved": [dict(zip(HEADINGS, _figures(row), strict=True)) for row in good],
        "refused": [dict(zip(REFUSAL_HEADINGS, _refusal(row), strict=True)) for row in bad],
        "frozen": [dict(zip(FROZEN_HEADINGS, line, strict=True)) for line in _frozen_lines(rows)],
    }


def _figures(row: Row) -> list[object]:
    """What the page shows of a halved network, as numbers; a runtime without a file has the reason."""
    groups = row["channel_groups"] - 1
    return [
        *(row["model"], row["side"], row["decision_points"], f"{groups - row['frozen_groups']} of {groups}"),
        *(row["macs"], row["macs_after"], row["params"], row["params_after"]),
        *(row.get(runtime) for runtime in ("onnxruntime", "openvino", "litert")),
        row["seconds"],
    ]


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
    return ["## Refused", markdown_table(REFUSAL_HEADINGS, [_refusal(row) for row in rows])]


def _refusal(row: Row) -> list[object]:
    return [row["model"], row.get("decision_points", ""), row["refused"]]


def _frozen(rows: Sequence[Row]) -> list[str]:
    table = _frozen_lines(rows)
    return ["## Channels that stay", markdown_table(FROZEN_HEADINGS, table)] if table else []


def _frozen_lines(rows: Sequence[Row]) -> list[list[object]]:
    """Groups that stay whole in networks that could be halved all the same."""
    table: list[list[object]] = []
    for row in rows:
        kinds: dict[str, list[str]] = {}
        for name, why in row.get("frozen", {}).items():
            kinds.setdefault(why.replace(name, "it"), []).append(name)
        most = sorted(kinds.items(), key=lambda item: -len(item[1]))[:2]
        table += [[row["model"], len(names), names[0], why] for why, names in most]
    return table

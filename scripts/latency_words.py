"""What the page of the latency results says of single rows."""

from collections.abc import Sequence
from typing import Any

Row = dict[str, Any]
GOAL_RATIO, GOAL_DROP = 0.2, 0.01
"""Of the headline: latency as a fraction of the original's, and accuracy lost."""


def made_by(rows: Sequence[Row]) -> str:
    """How rows are regenerated, and where these come from."""
    parts = sorted({row["part"] for row in rows})
    commands = "\n".join(f"python -m scripts.latency_results --only '{part}/*'" for part in parts)
    places = sorted({_place(row) for row in rows})
    hours = sum(row["seconds"] for row in rows) / 3600
    return f"```\n{commands}\n```\n\n{hours:.2f} hours. Measured on: {'; '.join(places)}."


def _place(row: Row) -> str:
    where, machine = row["origin"], row["origin"]["machine"]
    return (
        f"{row['label']}: {machine.get('cpu')}, {machine.get('cores')} cores, {where['date']}, commit "
        f"{where['commit']}"
    )


def row_name(row: Row) -> str:
    """The row's id without the machine."""
    fields = (row.get(key, "") for key in ("part", "network", "target", "budget", "variant"))
    return "/".join(field for field in fields if field)


def title_of(row: Row) -> str:
    """The row in a sentence."""
    return f"{row['network']}, {row['target']}, budget {row['budget']}{way(row)} ({row['label']})"


def way(row: Row) -> str:
    """What a headline was searched with and how long it was trained, as a part of its title."""
    blocks = ", blocks left out" if row.get("variant") == "blocks" else ""
    return f"{blocks}, {row['epochs']} epochs" if "epochs" in row else blocks


def setting(row: Row) -> list[str]:
    """The first cells of a row of the comparison."""
    return [f"{row['network']}, {row['target']}, {row['budget']} ({row['label']})", row["variant"]]


def percent(value: float | None) -> str:
    """A share with one decimal; nothing where there is none."""
    return "" if value is None else f"{value:.1%}"


def drop(row: Row) -> float:
    """Points that the exported file lost, negative."""
    return 100 * float(row["test_accuracy_exported"] - row["test_accuracy_original"])


def verdict(row: Row) -> str:
    """Whether the goal is met, in words."""
    if "unreachable" in row:
        return f"not reached. {row['unreachable']}"
    fast, wanted = row["latency_ratio"] <= min(GOAL_RATIO, float(row["budget"])), row["budget"]
    accurate = drop(row) >= -100 * GOAL_DROP
    if fast and accurate:
        return f"goal met (at most {wanted} of the latency, at most 1.0 point lost)."
    misses = [] if fast else [f"a latency of {row['latency_ratio']:.3f} is above {wanted}"]
    misses += [] if accurate else [f"{-drop(row):.2f} points are lost, more than 1.0"]
    return f"**goal missed**: {' and '.join(misses)}."


FIRST = {"importance": "l2", "reconstruct": "symmetric"}
"""The order of channels and the reconstruction by default when rows did not name them yet."""


def comparison(row: Row) -> list[str]:
    """The other cells of a row of the comparison."""
    if "unreachable" in row:
        return ["", "", "", "cannot be reached", "", "", "", ""]
    unreliable = "" if row["reliable"] else " (unreliable)"
    return [
        f"{row['test_accuracy']:.2%}",
        f"{row['reward_accuracy']:.2%}",
        f"{row['latency_ratio']:.3f}{unreliable}",
        "yes" if row["within_budget"] else "**no**",
        f"{row['int8_share']:.0%}",
        f"{row['macs_fraction']:.1%}",
        ", ".join(row.get(name, first) for name, first in FIRST.items()) if row["macs_fraction"] < 1 else "",
        f"{row['search_seconds']:.0f}" if "search_seconds" in row else "",
    ]


def same_searches(rows: Sequence[Row]) -> list[str]:
    """Where bits are no choice, a sentence about it."""
    targets = sorted({f"{row['target']} ({row['label']})" for row in rows if "same_search_as" in row})
    if not targets:
        return []
    where = ", ".join(targets)
    return [f"On {where} int8 brings nothing, so bits are no choice and `joint` is the search of `prune`."]


def points_of(row: Row) -> list[tuple[str, tuple[float, float]]]:
    """The row's (series of the curves, (ratio, accuracy)) pairs."""
    if "unreachable" in row:
        return []
    if "epochs" in row:
        series = tuned_name(row["epochs"], row.get("variant") == "blocks")
        return [(series, (row["latency_ratio"], row["test_accuracy_exported"]))]
    if row["part"] == "curve":
        return [
            (name, (row[name]["latency_ratio"], row[name]["test_accuracy"])) for name in ("joint", "uniform")
        ]
    series = "int8 only" if row["variant"] == "int8" else str(row["variant"])
    known = series in ("joint", "uniform", "int8 only")
    return [(series, (row["latency_ratio"], row["test_accuracy"]))] if known else []


def tuned_name(epochs: int, blocks: bool = False) -> str:
    """What a curve of networks after so many epochs of fine-tuning is called."""
    return f"{'blocks' if blocks else 'joint'}, {epochs} epochs"

"""What the page of the latency results says of single rows."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

Row = dict[str, Any]
GOAL_RATIO, GOAL_DROP = 0.2, 0.01
"""Of the headline: latency as a fraction of the original's, and accuracy lost."""
GOAL_SPREAD = 0.03
"""Coefficient of variation within which a ratio repeats in fresh processes, on a busy machine, too."""
PRIOR = (
    "Five times as fast is what the closest prior work claims: Galen (Krieger, Klein and Fröning, "
    "[arXiv 2212.07818](https://arxiv.org/abs/2212.07818)) searches pruning and bits by reinforcement "
    "learning and compresses a ResNet-18 for CIFAR-10, on an embedded ARM processor, to 20 % of its latency "
    "without a significant loss of accuracy. Networks and processors here are others."
)
COMPARED = ("joint", "prune", "int8", "prune-int8", "uniform")
"""Ways to keep a budget that change widths and bits alone, and train nothing."""
TEST_IMAGES = 10_000
ORIGINAL = "test_accuracy_original"


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


def of_older_files(rows: Sequence[Row]) -> list[str]:
    """A sentence about rows of files that OpenVINO partly ran in floats, if there are any."""
    parts = ("predictor", "joint", "curve", "headline")
    measured = [row for row in rows if row["part"] in parts and "unreachable" not in row]
    older = sum(row["target"] == "openvino" and "files" not in row for row in measured)
    if not older:
        return []
    return [
        f"{older} rows on OpenVINO were measured before every layer had zero points of its own "
        "([tried.md](../tried.md)). In those files a layer with as many channels as there are classes, ten, "
        "ran in floats, and the predictor took it for a whim of the machine: its margins were wider."
    ]


def drop(row: Row) -> float:
    """Points that the exported file lost, negative."""
    return 100 * float(row["test_accuracy_exported"] - row["test_accuracy_original"])


def verdict(row: Row) -> str:
    """Whether the goal is met, in words, and whether the ratio repeats."""
    return f"not reached. {row['unreachable']}" if "unreachable" in row else f"{_goal(row)}{_spread(row)}"


def _goal(row: Row) -> str:
    fast, wanted = row["latency_ratio"] <= min(GOAL_RATIO, float(row["budget"])), row["budget"]
    accurate = drop(row) >= -100 * GOAL_DROP
    if fast and accurate:
        return f"goal met (at most {wanted} of the latency, at most 1.0 point lost)."
    misses = [] if fast else [f"a latency of {row['latency_ratio']:.3f} is above {wanted}"]
    misses += [] if accurate else [f"{-drop(row):.2f} points are lost, more than 1.0"]
    return f"**goal missed**: {' and '.join(misses)}."


def _spread(row: Row) -> str:
    found = row["latency_ratio_cv"]
    if found <= GOAL_SPREAD:
        return ""
    return (
        f" The ratio's coefficient of variation over {row['processes']} processes, {found:.1%}, is above "
        f"{GOAL_SPREAD:.0%}: it repeats less well than it should, and is to be measured again."
    )


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
        channels_by(row),
        f"{row['search_seconds']:.0f}" if "search_seconds" in row else "",
    ]


def channels_by(row: Row) -> str:
    """The order in which channels went and what layers were refitted to; "" where all of them stayed."""
    names = [row.get(name, first) for name, first in FIRST.items()]
    return ", ".join(names) if row["macs_fraction"] < 1 else ""


def winners(rows: Sequence[Row]) -> list[str]:
    """One sentence a setting: which of the compared ways keeps its budget with the best accuracy."""
    settings: dict[str, dict[str, Row]] = {}
    for row in rows:
        if row["variant"] in COMPARED:
            settings.setdefault(title_of(row), {})[row["variant"]] = row
    return [f"* {title}: {_winner(found)}{_gaps(found)}" for title, found in settings.items()]


def _winner(found: Mapping[str, Row]) -> str:
    """Who is best of the measured ways at one setting; what lies within the standard error is a tie."""
    kept = {name: row["test_accuracy"] for name, row in found.items() if row.get("within_budget")}
    if not kept:
        return f"{_listed(list(found))} {'do' if len(found) > 1 else 'does'} not keep the budget (one seed)."
    best = max(kept.values())
    tie = best - math.sqrt(best * (1.0 - best) / TEST_IMAGES)
    first = [name for name in COMPARED if kept.get(name, -1.0) >= tie]
    if len(first) > 1:
        return (
            f"{_listed(first)} tie: they keep the budget with the highest test accuracy, {best:.2%}, or less "
            "by no more than its standard error (one seed)."
        )
    said = f"{_listed(first)} keeps the budget with the highest test accuracy, {best:.2%}"
    if others := sorted(set(kept) - {*first}, key=lambda name: -kept[name]):
        said += f", before `{others[0]}` with {kept[others[0]]:.2%}"
    return f"{said} (one seed)."


def _gaps(found: Mapping[str, Row]) -> str:
    """What the comparison at one setting lacks."""
    missing = [name for name in COMPARED if name not in found]
    orders = {channels_by(row) for row in found.values() if "unreachable" not in row} - {""}
    said = f" Not measured yet: {_listed(missing)}." if missing else ""
    return said + (" Not all of them order channels in the same way." if len(orders) > 1 else "")


def _listed(names: Sequence[str]) -> str:
    *first, last = [f"`{name}`" for name in names]
    return f"{', '.join(first)} and {last}" if first else last


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
    return [(series, (row["latency_ratio"], row["test_accuracy"]))]


def originals(rows: Sequence[Row]) -> dict[str, float]:
    """Test accuracy of each uncompressed network, from whichever rows know it."""
    trained = [row for row in rows if row["part"] in ("joint", "curve", "headline")]
    known = ((row["network"], part.get(ORIGINAL)) for row in trained for part in (row, row.get("joint", {})))
    return {network: accuracy for network, accuracy in known if accuracy is not None}


def tuned_name(epochs: int, blocks: bool = False) -> str:
    """What a curve of networks after so many epochs of fine-tuning is called."""
    return f"{'blocks' if blocks else 'joint'}, {epochs} epochs"

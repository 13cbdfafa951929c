"""The page of the operator results: tables of whatever rows there are, and the choices layer by layer."""

import io
import statistics
from collections.abc import Sequence

from matplotlib.figure import Figure
from matplotlib.patches import Patch

from agents.figures import operator_color
from amc.policy import ORIGINAL_OPERATOR
from scripts.operator_rows import CHOICE, CLUSTERS, FIXED, JOINT, SCATTERING, SECONDS, TUNED, plan
from scripts.operator_scattering_page import scattering_section
from scripts.results_page import AGAIN, Table, shown
from scripts.results_runner import Row, Rows

MOST_RATIO = 1.5
"""Of the seconds of an evaluation with operators and of one without."""
EXPECTED = {"32x8": 0.813, "64x1": 0.7185, "256x1": 0.837}
"""Calibrated accuracy of each codebook: an earlier measurement of ours with separate code, with the same
weights and 2,000 test images."""
GREY = "#8a8f98"


def page(rows: Rows, drawing: str | None) -> tuple[dict[str, Table], list[str]]:
    """The tables, one object a row with the column names as keys, and the parts of the page."""
    everything = [row for row in rows.values() if "unreachable" not in row]
    tables = {
        "choice": choice_table([row for row in everything if row["part"] == CHOICE]),
        "fixed": fixed_table(everything),
        "seconds": seconds_table([row for row in everything if row["part"] == SECONDS]),
        "clusters": cluster_table([row for row in everything if row["part"] == CLUSTERS]),
    }
    scattering, section = scattering_section([row for row in everything if row["part"] == SCATTERING])
    unreachable = [f"- {name}: {row['unreachable']}" for name, row in rows.items() if "unreachable" in row]
    return tables | scattering, [
        "# Operators",
        overview(rows),
        "## The agent chooses the operator",
        "Accuracy of the best policy of each search on the test split, before any fine-tuning: mean and "
        "standard deviation over seeds. `joint` may prune channels and replace layers, `pruning` prunes, the "
        "others keep all channels and only replace. Under size all of them choose bits, too; under latency "
        "each layer runs in integers or in floats. All start from the uniform policy "
        "(`--reference uniform`), and layers make up for those in front of them that are pruned or replaced.",
        shown(tables["choice"]),
        *([f"![Operators, channels and bits of each layer]({drawing})"] if drawing else []),
        "## At equal MACs",
        "One common compression of all layers, refitted as above; `filter-groups-by-depth` has more groups "
        "the deeper a layer lies, which a search can choose as well. The MACs are those that whole channels, "
        "group sizes and ranks allow below the budget.",
        shown(tables["fixed"]),
        "## One codebook for a whole network",
        "All kernels of more than one element but those of the first layer share the centroids, without any "
        "training; `calibrated` has its batch-norm statistics re-estimated on 1,000 images. *Expected* is an "
        "earlier measurement of ours with separate code, on 2,000 test images.",
        shown(tables["clusters"]),
        *book_claim(tables["clusters"]),
        "## Seconds of an evaluation",
        "The same random search with and without `filter-groups` and `clustered-kernels`, refitted in the "
        "same way, in turn; all evaluations count, and with them the fits that later ones find again. One "
        f"with operators should stay below {MOST_RATIO:g} times one without.",
        shown(tables["seconds"]),
        *section,
        *(["## Out of reach", "\n".join(unreachable)] if unreachable else []),
    ]


def overview(rows: Rows) -> str:
    """How much of the plan is there, and how to make the rest."""
    hours = sum(row["seconds"] for row in rows.values()) / 3600
    return (
        f"{len(rows)} of {len(plan())} rows are measured; those took {hours:.1f} hours. "
        "`python -m scripts.operator_results --data-root FOLDER --resnet20 FILE --resnet56 FILE --voc-root "
        f"FOLDER` makes the missing ones {AGAIN}. It takes the folder that holds cifar-10-batches-py, the "
        "common weights of both networks for CIFAR-10, and BCCD in VOC's layout. VGG-16-BN is the one in "
        "`docs/weights`, of a quarter of its channels; `--vgg16` and `--vgg16-width` take another. Each row "
        "in `operators.json` names its own command."
    )


def choice_table(rows: Sequence[Row]) -> Table:
    """Means over seeds."""
    table = []
    for network, budget, arm in dict.fromkeys((r["network"], r["setting"], r["arm"]) for r in rows):
        mine = [r for r in rows if (r["network"], r["setting"], r["arm"]) == (network, budget, arm)]
        table.append(
            {
                "network": network,
                "budget": budget,
                "choice": arm,
                "seeds": len(mine),
                "test": spread([row["test_untuned"] for row in mine]),
                "reward split": spread([row["reward_accuracy"] for row in mine]),
                "MACs": percent(statistics.mean(row["macs_share"] for row in mine)),
                "size": percent(statistics.mean(row["size_share"] for row in mine)),
                "latency": shares([row.get("latency_share") for row in mine]),
                "replaced layers": round(statistics.mean(replaced(row) for row in mine), 1),
                "s/evaluation": round(statistics.mean(row["seconds_per_evaluation"] for row in mine), 2),
            }
        )
    return table


def fixed_table(rows: Sequence[Row]) -> Table:
    """One line a compression, with what fine-tuning made of it where that is measured."""
    tuned = {_compression(row): row for row in rows if row["part"] == TUNED}
    fixed = [row for row in rows if row["part"] == FIXED]
    return [
        {
            "network": row["network"],
            "budget": f"macs={row['setting']}",
            "method": row["arm"],
            "MACs": percent(row["macs_share"]),
            "original": percent(row["test_original"]),
            "un-tuned": percent(row["test_untuned"]),
            "tuned": percent(after["test_tuned"]) if after else "",
            "epochs": after["epochs"] if after else "",
            f"ms ({row['target']})": round(row["ratio"] * row["original_ms"], 3),
            "of the original's ms": percent(row["ratio"]) + ("" if row["reliable"] else " (unreliable)"),
        }
        for row in sorted(fixed, key=lambda row: (row["network"], -float(row["setting"])))
        for after in [tuned.get(_compression(row))]
    ]


def cluster_table(rows: Sequence[Row]) -> Table:
    """One line a codebook."""
    return [
        {
            "network": row["network"],
            "centroids x poses": row["setting"],
            "bits of an index": row["index_bits"],
            "weight error": round(row["weight_error"], 4),
            "original": percent(row["test_original"]),
            "raw": percent(row["test_raw"]),
            "calibrated": percent(row["test_calibrated"]),
            "expected": percent(EXPECTED[row["setting"]]),
        }
        for row in rows
    ]


def book_claim(table: Table) -> list[str]:
    """Whether few centroids in eight poses beat more in one; nothing without both rows."""
    found = {row["centroids x poses"]: float(row["calibrated"].rstrip("%")) for row in table}
    if not {"32x8", "64x1"} <= found.keys():
        return []
    ahead = found["32x8"] - found["64x1"]
    verdict = "holds" if ahead > 0 else "does not hold"
    return [
        f"Claim: 32 centroids in eight poses beat 64 in one, un-tuned. It {verdict}: {ahead:+.2f} points."
    ]


def seconds_table(rows: Sequence[Row]) -> Table:
    """One line a network."""
    return [
        {
            "network": row["network"],
            "budget": row["budget"],
            "evaluations": row["evaluations"],
            "s without": round(row["plain"], 3),
            "s with operators": round(row["with_operators"], 3),
            "ratio": round(row["with_operators"] / row["plain"], 2),
            f"below {MOST_RATIO:g}": "yes" if row["with_operators"] < MOST_RATIO * row["plain"] else "no",
        }
        for row in rows
    ]


def percent(share: float) -> str:
    """A share with two digits."""
    return f"{share:.2%}"


def shares(values: Sequence[float | None]) -> str:
    """Their mean with two digits; nothing where there are none."""
    known = [value for value in values if value is not None]
    return percent(statistics.mean(known)) if known else ""


def spread(values: Sequence[float]) -> str:
    """Mean and standard deviation over seeds."""
    deviation = statistics.stdev(values) if len(values) > 1 else 0.0
    return f"{statistics.mean(values):.2%} ± {100 * deviation:.2f}"


def replaced(row: Row) -> int:
    """Layers with an operator."""
    return sum(layer["operator"] != ORIGINAL_OPERATOR for layer in row["layers"])


def drawing_png(rows: Sequence[Row]) -> bytes | None:
    """Bars of the joint policies of the lowest seed there is: kept channels, coloured by operator."""
    panels: dict[tuple[str, str], Row] = {}
    for row in sorted((row for row in rows if row.get("arm") == JOINT and "layers" in row), key=_seed):
        panels.setdefault((row["network"], row["setting"]), row)
    if not panels:
        return None
    figure = Figure(figsize=(11, 2.6 * len(panels)), dpi=150, layout="constrained")
    for axes, ((network, cost), row) in zip(
        figure.subplots(len(panels), 1, squeeze=False).flat, panels.items(), strict=True
    ):
        layers, places = row["layers"], range(len(row["layers"]))
        colours = [_colour(layer["operator"]) for layer in layers]
        axes.bar(places, [layer["keep"] for layer in layers], color=colours)
        for place, layer in zip(places, layers, strict=True):
            bits = "" if layer["weight_bits"] == 32 else f"{layer['weight_bits']} b"
            said = "\n".join(text for text in (str(layer["amount"] or ""), bits) if text)
            axes.annotate(said, (place, layer["keep"]), ha="center", va="bottom", fontsize=5)
        axes.set_xticks(places, [layer["layer"] for layer in layers], rotation=90, fontsize=5)
        axes.set_ylim(0, 1.25)
        axes.set_ylabel("channels kept")
        axes.set_title(
            f"{network} under {cost}, seed {row['seed']}: amount and bits above the bars", fontsize=8
        )
        names = dict.fromkeys(layer["operator"] for layer in layers)
        handles = [Patch(color=_colour(name), label=name) for name in names]
        axes.legend(handles=handles, fontsize=6, ncols=len(handles), loc="upper right")
    png = io.BytesIO()
    figure.savefig(png, format="png")
    return png.getvalue()


def _compression(row: Row) -> tuple[str, str, str]:
    return row["network"], row["setting"], row["arm"]


def _colour(operator: str) -> str:
    return GREY if operator == ORIGINAL_OPERATOR else operator_color(operator)


def _seed(row: Row) -> int:
    return int(row["seed"])

"""The section of the retrieval results: tables of whatever rows there are."""

from collections.abc import Sequence
from typing import Any

from scripts.mimic_page import spread
from scripts.paired import paired
from scripts.results_page import AGAIN, NOTHING, markdown_table
from scripts.retrieval_results import BITS, COMPARED_AT, SETTINGS, plan

Row = dict[str, Any]

COLUMNS = {
    "PQN": ("pqn", ""),
    "float triplets, then plain PQ": ("float", "_plain_pq"),
    "PQN's embedding with plain PQ": ("pqn", "_plain_pq"),
    "PQN's embedding in floats": ("pqn", "_float"),
    "float triplets in floats": ("float", "_float"),
}
"""Heading to a row's loss and the end of its figure's name."""
PAPER = (
    "The paper reports (figures from secondary sources, not checked against the paper; splits of "
    "CIFAR-10 differ between papers, so they are no baseline for the tables) an mAP on CIFAR-10 at 48 "
    "bits of 78.6 % with a small network of three convolutions, against 68.6 % (SUBIC) and 69.3 % "
    "(DPQ); 94.7 % with AlexNet, against 93.5 % (DSDH). Asymmetric triplets beat symmetric ones and "
    "cross-entropy at 12, 24, 36 and 48 bits."
)
DATABASES = {"mAP": "unseen database", "mAP_common": "database with training images"}


def section(rows: list[Row]) -> list[str]:
    """The parts of the section."""
    parts = ["## Retrieval: product quantization networks", overview(rows), PAPER]
    for data in SETTINGS:
        mine = [row for row in rows if row["data"] == data]
        parts += [f"### {data}", *([by_bits(mine), pairs(mine), losses(mine)] if mine else [NOTHING])]
    return [part for part in parts if part]


def overview(rows: Sequence[Row]) -> str:
    """What the tables share."""
    hours = sum(row["seconds"] for row in rows) / 3600
    return (
        "mAP of searches by codes (ECCV 2018, Yu et al.): the embedding and its codebooks learn together "
        "(PQN, asymmetric triplet loss), against an embedding that learned from the same triplets in floats "
        "and is quantized afterwards by faiss's product quantizer, and against the same quantizer behind "
        "PQN's own embedding. Codes have 16 words a sub-vector of 12 entries. Queries are the first images "
        "of every class of the test split; the database is the rest of it, or that and the training images, "
        "as papers have it. Networks of one seed start alike and see the same batches. "
        f"{len(rows)} of {len(plan())} rows are measured; those took {hours:.1f} hours. "
        "`python -m scripts.retrieval_results --data-root FOLDER` makes the missing ones "
        f"{AGAIN}."
    )


def by_bits(rows: Sequence[Row]) -> str:
    """The mAP at every length of code, mean and standard deviation over seeds."""
    table = []
    for name, where in DATABASES.items():
        for bits in BITS:
            cells = [
                spread(list(by_seed(rows, loss, bits, name + suffix).values()))
                for loss, suffix in COLUMNS.values()
            ]
            if any(cells):
                table.append([f"{where}, {bits} bits", *cells])
    return markdown_table(["mAP", *COLUMNS], table)


def pairs(rows: Sequence[Row]) -> str:
    """Paired differences over seeds, in points."""
    table = []
    for bits in BITS:
        ours = by_seed(rows, "pqn", bits, "mAP")
        for loss, suffix in (("float", "_plain_pq"), ("pqn", "_plain_pq")):
            other = by_seed(rows, loss, bits, f"mAP{suffix}")
            found = paired([ours[seed] - other[seed] for seed in sorted(set(ours) & set(other))])
            if found is not None:
                what = "float triplets, then plain PQ" if loss == "float" else "plain PQ behind itself"
                table.append([f"{bits} bits: PQN - {what}", found.seeds, found.points, found.verdict])
    return markdown_table(["pair", "seeds", "points (95 % interval)", "verdict"], table) if table else ""


def losses(rows: Sequence[Row]) -> str:
    """What the losses come to at one length of code."""
    names = {
        "pqn": "asymmetric triplets",
        "symmetric": "symmetric triplets",
        "cross-entropy": "cross-entropy",
    }
    table = []
    for loss, name in names.items():
        values = list(by_seed(rows, loss, COMPARED_AT, "mAP").values())
        if values:
            table.append([f"{name}, {COMPARED_AT} bits", len(values), spread(values)])
    return markdown_table(["loss of the network", "seeds", "mAP, unseen database"], table) if table else ""


def by_seed(rows: Sequence[Row], loss: str, bits: int, metric: str) -> dict[int, float]:
    """Seed to figure, for one loss and length of code."""
    return {
        row["seed"]: row[metric]
        for row in rows
        if (row["loss"], row["bits"]) == (loss, bits) and metric in row
    }

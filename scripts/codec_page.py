"""The section of the codec results: tables of whatever rows there are."""

import statistics
from collections.abc import Sequence
from typing import Any

from scripts.codec_results import FAISS, OURS, PIXEL_ITERATIONS, SEARCHED, plan
from scripts.results_page import AGAIN, NOTHING, markdown_table

Row = dict[str, Any]

WORDS = {
    "pq": "PQ (Faiss)",
    "opq": "OPQ (Faiss)",
    "faiss-lsq": "LSQ (Faiss, relaxation off)",
    "faiss-sr-d": "LSQ (Faiss, its own relaxation)",
    "lsq": "LSQ",
    "sr-c": "LSQ++, SR-C",
    "sr-d": "LSQ++, SR-D",
}
TITLES = {"sift": "SIFT descriptors", "embeddings": "Embeddings of ResNet-20"}
COLUMNS = ("recall_1", "recall_10", "base_error", "train_error", "train_cpu_s", "encode_cpu_s")


def section(rows: list[Row]) -> list[str]:
    """The parts of the section: what was done, a table for each data set, and the anchor of the paper."""
    tables = [part for data in SEARCHED for part in searched(data, rows)]
    return ["## Additive codes (LSQ++)", *overview(rows), *tables, *pixels(rows)]


def overview(rows: Sequence[Row]) -> list[str]:
    """What the tables share, how many rows there are, and what they took."""
    hours = sum(row["seconds"] for row in rows) / 3600
    return [
        "Vectors coded in 64 bits: product codes (PQ, OPQ) in 8 codes of 8 bits, additive codes in 7 and a "
        "byte for the squared norm, which distances need. Recall@R is the share of queries whose exact "
        "nearest neighbour is among the first R found by asymmetric distances. LSQ, SR-C and SR-D are this "
        "project's trainer with 25 iterations, 8 rounds of local search (32 to code the base), 4 sweeps, 4 "
        "perturbations; Faiss's LSQ has the same effort. A start is random codes, as in Faiss, or OPQ and "
        "then ChainQ, as the paper's authors have it. Errors are mean squared distances; seconds are CPU "
        "time. Means and standard deviations over seeds.",
        "The paper reports (figures from secondary sources, not checked against the paper) that SR-D helps "
        "on nearly all data sets and SR-C on some, and that with 100 iterations the gap in Recall@1 to "
        "CompQ, a codec about 200 times slower, shrinks from 1.2 to 0.1 points. Faiss's authors measured "
        "mean squared errors of 23,743 (PQ), 21,000 (residual codes) and 17,306 (LSQ) at 64 bits on "
        "the descriptors of SIFT1M, which are others.",
        f"{len(rows)} of {len(plan())} rows are measured; those took {hours:.1f} hours. "
        "`python -m scripts.sift --images FOLDER --out data/sift.safetensors` computes the descriptors, "
        "`python -m scripts.codec_results --weights FILE --data-root FOLDER` makes the missing rows "
        f"{AGAIN}.",
    ]


def searched(data: str, rows: Sequence[Row]) -> list[str]:
    """Recall, errors and times on one data set."""
    arms = [
        *((name, "") for name in FAISS),
        *((name, begin) for begin in ("random", "chain") for name in OURS),
    ]
    table = []
    for method, begin in arms:
        own = [row for row in rows if (row["data"], row["method"], row["begin"]) == (data, method, begin)]
        if own:
            name = f"{WORDS[method]}, from {'random codes' if begin == 'random' else 'ChainQ'}"
            cells = [spread([row[key] for row in own], key) for key in COLUMNS]
            table.append([name if begin else WORDS[method], own[0]["bits"], len(own), *cells])
    sizes: list[int] = next((row["vectors"] for row in rows if row["data"] == data), [])
    said = NOTHING if not table else "Vectors to train, to search and to ask: {}, {}, {}.".format(*sizes)
    headings = [
        "codec",
        "bits",
        "seeds",
        "Recall@1",
        "Recall@10",
        "error, base",
        "error, train",
        "training s",
        "coding s",
    ]
    return [f"### {TITLES[data]}", said, *([markdown_table(headings, table)] if table else [])]


def pixels(rows: Sequence[Row]) -> list[str]:
    """Training errors on PCA of pixels, each relaxation against LSQ of the same seed."""
    table = []
    for iterations in PIXEL_ITERATIONS:
        found = {name: pixel_errors(rows, name, iterations) for name in OURS}
        for name, errors in found.items():
            shared = sorted(errors.keys() & found["lsq"].keys())
            if errors:
                changes = [100 * (errors[seed] / found["lsq"][seed] - 1) for seed in shared]
                change = spread(changes, "%") if name != "lsq" and changes else ""
                table.append(
                    [
                        f"{WORDS[name]}, {iterations} iterations",
                        len(errors),
                        spread([*errors.values()], ""),
                        change,
                    ]
                )
    said = (
        "Training error of 4 codes of 6 bits on the first 64 principal components of 6,000 CIFAR-10 images, "
        "from random codes, without a search. An earlier measurement with another implementation found SR-D "
        "4.1 % below LSQ after 25 iterations, SR-C 4.0 %, and 5.7 and 5.9 % after 60."
    )
    headings = ["codec", "seeds", "error", "against LSQ of the same seed, %"]
    made = markdown_table(headings, table) if table else NOTHING
    return ["### Pixels: what the relaxations gain", said, made]


def pixel_errors(rows: Sequence[Row], method: str, iterations: int) -> dict[int, float]:
    """Training error by seed."""
    wanted = ("pixels", method, iterations)
    return {
        row["seed"]: row["train_error"]
        for row in rows
        if (row["data"], row["method"], row["iterations"]) == wanted
    }


def spread(values: Sequence[float], key: str) -> str:
    """Mean and standard deviation; recall in percent, the rest as it is."""
    factor = 100 if key.startswith("recall") else 1
    digits = ".1f" if key.endswith("_s") or key.startswith("recall") else ".5g"
    if key == "%":
        digits = "+.1f"
    mean = format(factor * statistics.mean(values), digits)
    if len(values) < 2:
        return mean
    return f"{mean} ± {factor * statistics.stdev(values):.2g}"

"""The page of the quantization results: tables and drawings of whatever rows there are."""

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

if not __package__:  # started as a file: Python then looks in scripts/ and not in the folder above it
    sys.path[0] = str(Path(__file__).resolve().parents[1])

from amc.errors import UserError
from amc.files import write_atomically
from scripts.cli import run
from scripts.quantization_choice import ALL
from scripts.quantization_plots import bits_png, errors_png
from scripts.quantization_rows import ALONE, AWARE_EPOCHS, MIXED_EPOCHS, PAIRED, plan
from scripts.results_page import AGAIN, NOTHING, markdown_table, of_before, read_figures, write_page
from scripts.results_runner import Row, Rows

IMAGES = (10, 30, 100, 300, 1000)
CLAIMS = {
    ("max-abs", "4"): "90.4 -> 91.9",
    ("max-abs", "3"): "75.9 -> 88.7",
    ("max-abs", "2"): "9.8 -> 21.8",
    ("label-free", "4"): "90.1 -> 91.5",
    ("label-free", "3"): "75.0 -> 89.0",
    ("label-free", "2"): "10.2 -> 75.8",
}
"""Raw and re-normalized accuracy of the method of He and Cheng (ECCV 2018): an earlier measurement of ours
with separate code."""
SEARCHED = ("choice", "mixed", "tuned")
"""Parts whose networks are compressed as a search does."""
TEST_IMAGES = 10_000
LQ_CLAIM = {"3": "within 1.0 point of floats", "2": "within 2.5 points of floats"}
DRAWN = {"resnet20": "uniform", "resnet56": "label-free"}
"""Networks whose bits are drawn, and the quantizer of the searches that are shown."""


@dataclass(frozen=True)
class QuantizationPage:
    """Options of the page."""

    figures: Path = Path("docs/results/quantization.json")
    """What scripts/quantization_results.py has written; the page goes beside it."""
    images: Path = Path("docs/images")
    """Folder of the plots."""


def main(options: QuantizationPage) -> None:
    """Write the page of the quantization results and its plots from the figures."""
    rows: Rows = read_figures(options.figures).get("rows", {})
    if not rows:
        raise UserError(f"{options.figures} has no rows yet: scripts/quantization_results.py makes them.")
    options.images.mkdir(parents=True, exist_ok=True)
    made, found = list(rows.values()), tables(list(rows.values()))
    parts = ["# Quantizers and mixed precision, measured", *overview(rows)]
    for (title, said), (part, lines) in zip(SECTIONS, found.items(), strict=True):
        parts += [f"## {title}", said, as_markdown(lines)]
        parts += choice_verdict(of(made, part)) if part == "choice" else []
    page = options.figures.with_suffix(".md")
    write_page(page, [*parts, *drawings(made, options), *missing(rows)])
    print(page)


SECTIONS = (
    (
        "Without training",
        "Weights of every ResNet-20 layer but the first and the last, activations in floats; accuracy on the "
        "test split in percent, as it is and with batch norms re-estimated from N unlabeled images; "
        "value-aware:0.01 keeps 1 % of the values in 16 bits, value-aware 2 %. The claims are those of an "
        "earlier measurement of ours with separate code and 1,000 images (raw -> re-normalized). Of the "
        "others papers say, after fine-tuning on ImageNet: k-means with bits that HAQ has searched loses "
        "0.67 points at 10 % of the bytes of ResNet-50, value-aware quantization less than 1 point with "
        "4-bit weights and activations and 1 % large. "
        "`python -m scripts.quantization_results --only 'untrained/*'`.",
    ),
    (
        "From few images, paired with the original",
        "Re-normalization as in the paper gives batch norms the statistics of the *compressed* network on N "
        "augmented images. Searches and exports here first write the original's norms in terms of the very "
        "same images, which are not augmented, and then re-normalize "
        "([restate.py](../../amc/recovery/restate.py)): what is peculiar to few images cancels. Test split, "
        "percent. `python -m scripts.quantization_results --only 'paired/*'`.",
    ),
    (
        "Activations without training",
        "Inputs of every ResNet-20 layer but the first and the last, weights in floats; columns as above, "
        "ranges fitted on the first of the images, 200 at most. "
        "`python -m scripts.quantization_results --only 'activations/*'`.",
    ),
    (
        "Quantization-aware fine-tuning",
        f"Weights and activations of the same layers, {AWARE_EPOCHS} epochs from the standard weights, the "
        "same schedule for both; LQ-Nets are trained for 200 epochs from scratch in their paper, which "
        "reports 90.2 % at 2/2 bits. `python -m scripts.quantization_results --only 'aware/*'`.",
    ),
    (
        "Value-aware quantization",
        "3-bit Laplace data, the mean of five draws of a million values (an earlier measurement of ours "
        "with separate code, of one draw: 2.8 dB by max-abs, which hangs on the single largest value, and "
        "11.8 dB at r = 2 %), and what one training step of ResNet-20 keeps for its backward pass. Inputs of "
        "layers and what ReLUs keep may be stored in fewer bits; what batch norms read stays as it is. "
        "`python -m scripts.quantization_results --only memory/resnet20`.",
    ),
    (
        "A quantizer for each layer?",
        "What a choice of the quantizer, layer by layer, can win: weights of all layers in as many bytes as "
        "the uniform quantizer takes with so many bits everywhere, spent with the least sum of relative "
        "errors over the layers, by each quantizer alone and by whichever is best in a layer; layers are "
        "refitted to make up for those in front of them, as in a search; test split. Quantizers that do not "
        "fit into the bytes are left out. "
        "`python -m scripts.quantization_results --only 'choice/*'`.",
    ),
    (
        "Mixed precision",
        "Bits 2 to 8 of every layer's weights at the bytes of 3 or 4 uniform bits everywhere (size3, size4), "
        "of weights and activations at the bit-operations of 4 bits (bops4), and of weights with channels at "
        f"size4 (joint4); re-normalized, and after {MIXED_EPOCHS} epochs. "
        "`python -m scripts.quantization_results --only 'mixed/*'` and `'tuned/*'`.",
    ),
)


def overview(rows: Rows) -> list[str]:
    """What all sections share."""
    planned = {spec.name for spec in plan()}
    hours = sum(row["seconds"] for row in rows.values()) / 3600
    return [
        "CIFAR-10, the common ResNet weights (`pretrained_models` of "
        "[akamaster/pytorch_resnet_cifar10](https://github.com/akamaster/pytorch_resnet_cifar10): 91.73 and "
        "93.39 % on the test split). Scores of the reward split decide; the test split is only "
        "looked at afterwards. Bytes are those of the numbers in `model.safetensors`: packed codes, scales, "
        "bases, codebooks, biases with batch norms folded in.",
        f"{len(planned & set(rows))} of {len(planned)} rows are measured, which took {hours:.1f} hours. "
        "`python -m scripts.quantization_results` makes the missing ones "
        f"{AGAIN}, with `--data-root`, `--weights-20` "
        "and `--weights-56`; `python -m scripts.quantization_page` writes this page from them.",
        *of_before(row for row in rows.values() if row["part"] in SEARCHED),
    ]


def tables(rows: Sequence[Row]) -> dict[str, list[dict[str, Any]]]:
    """Every table of the page as one object a row."""
    return {
        "untrained": [untrained_line(row) for row in of(rows, "untrained")],
        "paired": [line for row in of(rows, "paired") for line in paired_lines(row)],
        "activations": [activations_line(row) for row in of(rows, "activations")],
        "aware": [aware_line(row) for row in of(rows, "aware")],
        "value_aware": [line for row in of(rows, "memory") for line in memory_lines(row)],
        "choice": [line for row in of(rows, "choice") for line in choice_lines(row)],
        "mixed": [mixed_line(row, of(rows, "tuned")) for row in of(rows, "mixed")],
    }


def of(rows: Sequence[Row], part: str) -> list[Row]:
    """The rows of a part in the order of the plan."""
    order = {spec.name: place for place, spec in enumerate(plan())}
    found = [row for row in rows if row["part"] == part]
    return sorted(found, key=lambda row: order.get(row["command"].split("'")[1], len(order)))


def untrained_line(row: Row) -> dict[str, Any]:
    """A quantizer with given bits."""
    return {
        "quantizer": row["quantizer"],
        "bits": row["budget"],
        "stored bits": row["stored bits"],
        "Huffman bits": row.get("huffman bits", ""),
        "weight error": row["weight error"],
        "original": row["original"],
        "raw": row["raw"],
        **{f"{count} images": row[f"{count} images"] for count in IMAGES},
        "claim": CLAIMS.get((row["quantizer"], row["budget"]), ""),
    }


def paired_lines(row: Row) -> list[dict[str, Any]]:
    """Given bits, re-normalized in either way."""
    about = {"quantizer": row["quantizer"], "bits": row["budget"], "original": row["original"]}
    return [
        {**about, "statistics": said, **{f"{count} images": row[said][f"{count} images"] for count in IMAGES}}
        for said in (ALONE, PAIRED)
    ]


def activations_line(row: Row) -> dict[str, Any]:
    """An activation quantizer with given bits."""
    accuracies = ("original", "raw", *(f"{count} images" for count in IMAGES))
    return {"quantizer": row["quantizer"], "bits": row["budget"], **{name: row[name] for name in accuracies}}


def aware_line(row: Row) -> dict[str, Any]:
    """A fine-tuning with given bits of weights and activations."""
    lost = 100 * (row["test_tuned"] - row["original_test"])
    return {
        "quantizer": row["quantizer"],
        "bits": f"{row['budget']}/{row['budget']}",
        "epochs": row["epochs"],
        "untrained": percent(row["test_untuned"]),
        "fine-tuned": percent(row["test_tuned"]),
        "points": round(lost, 2),
        "goal": LQ_CLAIM[row["budget"]] if row["quantizer"] == "lq" else "",
    }


def memory_lines(row: Row) -> list[dict[str, Any]]:
    """The anchor, and measured bytes."""
    lines = [
        {"what": f"3-bit Laplace, {name}", "figure": f"{dB} dB"} for name, dB in row["laplace_3_bits"].items()
    ]
    stored = {name: found for name, found in row.items() if isinstance(found, dict) and "all_bytes" in found}
    for name, found in stored.items():
        how = f"{row['images']} images, {name} and {row['share']:.0%} large"
        reduced, everything = found["bytes"] / 1e6, found["all_bytes"] / 1e6
        in_floats = row["all_plain_bytes"] / 1e6
        lines += [
            {
                "what": f"what may be stored in fewer bits, {how}",
                "figure": f"{reduced:.1f} of {found['plain_bytes'] / 1e6:.1f} MB ({found['ratio']}x)",
            },
            {
                "what": f"all that the step keeps, {how}",
                "figure": f"{everything:.1f} of {in_floats:.1f} MB ({found['all_ratio']}x)",
            },
        ]
    return lines


def choice_lines(row: Row) -> list[dict[str, Any]]:
    """The arms of one budget."""
    return [
        {
            "network": row["network"],
            "bits": row["budget"],
            "limit": row["limit"],
            "quantizer": name,
            "bytes": arm["bytes"],
            "sum of errors": arm["error"],
            "test": arm["test"],
            "layers": ", ".join(f"{count} {which}" for which, count in arm["layers"].items()),
        }
        for name, arm in row["arms"].items()
    ]


def choice_verdict(rows: Sequence[Row]) -> list[str]:
    """What the choice wins over the best quantizer alone, by budget, and whether that is more than chance."""
    said = []
    for row in rows:
        arms = {name: arm["test"] for name, arm in row["arms"].items() if name != ALL}
        best = max(arms, key=arms.__getitem__)
        won, chance = row["arms"][ALL]["test"] - arms[best], arms[best] / 100
        error = 100 * (chance * (1 - chance) / TEST_IMAGES) ** 0.5
        verdict = "a tie" if abs(won) <= error else "better" if won > 0 else "worse"
        said.append(
            f"{row['network']}, {row['budget']} bits: {won:+.2f} points beside {best} alone, {verdict} "
            f"(standard error of one accuracy {error:.2f})"
        )
    return [f"The choice in every layer against the best quantizer alone: {'; '.join(said)}."] if said else []


def mixed_line(row: Row, tuned: Sequence[Row]) -> dict[str, Any]:
    """A search, and its network after fine-tuning where that was done."""
    keys = ("network", "budget", "quantizer", "searcher", "seed")
    fine = [each for each in tuned if all(each[key] == row[key] for key in keys)]
    return {
        **{key: row[key] for key in keys},
        "bytes": int(row["size"]),
        "GBOPs": round(row["bops"] / 1e9, 3),
        "evaluations": row["evaluations"],
        "reward split": percent(row["reward_accuracy"]),
        "test un-tuned": percent(row["test_untuned"]),
        "test fine-tuned": percent(fine[0]["test_tuned"]) if fine else "",
        "seconds": row["seconds"],
    }


def percent(share: float) -> float:
    """In percent, two digits."""
    return round(100 * share, 2)


def as_markdown(lines: Sequence[dict[str, Any]]) -> str:
    """A table whose columns are the keys."""
    if not lines:
        return NOTHING
    return markdown_table(list(lines[0]), [list(line.values()) for line in lines])


def drawings(rows: Sequence[Row], options: QuantizationPage) -> list[str]:
    """Errors against bits on real weights, and the bits of every layer."""
    parts = [
        "## Drawings",
        "Of the rows of `--only 'error/*'` and `'mixed/*'`, by `python -m scripts.quantization_page`. Bars: "
        "bits of weights, and of inputs where those were searched. Line: channels that are left.",
    ]
    first = [row for row in of(rows, "mixed") if row["seed"] == "0"]
    bits = {
        network: bits_png(
            [row for row in first if (row["network"], row["quantizer"]) == (network, quantizer)]
        )
        for network, quantizer in DRAWN.items()
    }
    found = [
        (
            "quantization_errors",
            errors_png(of(rows, "error")),
            "Signal to quantization noise of real weights",
        ),
        *(
            (f"quantization_bits_{name}", png, f"Bits of {name}, layer by layer")
            for name, png in bits.items()
        ),
    ]
    drawn = [(name, png, said) for name, png, said in found if png is not None]
    for name, png, said in drawn:
        write_atomically(options.images / f"{name}.png", png)
        parts.append(f"![{said}](../images/{name}.png)")
    return parts if drawn else []


def missing(rows: Rows) -> list[str]:
    """The rows that nobody has made yet."""
    absent = [spec.name for spec in plan() if spec.name not in rows]
    return [f"Not measured yet: {', '.join(absent)}."] if absent else []


if __name__ == "__main__":
    run(main)

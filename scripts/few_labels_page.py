"""The section of the results on few labels: tables of whatever rows there are."""

import statistics
from collections.abc import Sequence

from amc.recovery.saas import LABEL_STEP, PAPER, Saas
from scripts.few_labels_results import LABELS, UNLABELED, plan
from scripts.few_labels_tuning import ARMS, FewLabelsOptions
from scripts.mimic_comparison import Row, comparison
from scripts.results_page import AGAIN, NOTHING, markdown_table

PAPER_ACCURACY = (82.5, 87.1)
"""Percent of right labels in the files that the authors released for their two networks."""
NAMES = {
    "supervised": "the labelled images alone",
    "pseudo": "iterated pseudo-labels",
    "saas": "SaaS",
    "full": "all labels",
}
PAIRS = (("supervised", "saas"), ("pseudo", "saas"), ("supervised", "pseudo"))


def section(rows: list[Row]) -> list[str]:
    """The parts of the section, from its rows in `tasks.json`."""
    return ["## Few labels (SaaS)", *_overview(rows), _accuracies(rows), *_differences(rows)]


def _overview(rows: Sequence[Row]) -> list[str]:
    saas, passes = Saas(), FewLabelsOptions.final_epochs
    hours = sum(row["cpu_seconds"] for row in rows) / 3600
    images = saas.outer * saas.images(UNLABELED) / 1e6
    return [
        f"A ResNet-20 of half the width, from random weights, on {LABELS:,} labels and {UNLABELED:,} "
        f"unlabeled training images of CIFAR-10. SaaS (arXiv:1805.00980) and iterated pseudo-labels send the "
        f"same {images:.2f} million images through the network to estimate the labels, in {saas.outer} outer "
        f"rounds of {saas.inner} inner epochs (the paper: {PAPER.outer} of {PAPER.inner}, "
        "`--paper-protocol`) with the paper's product of step size and inner epochs over batch size, "
        f"{LABEL_STEP}; then every arm takes the same {passes * (LABELS + UNLABELED) // 100:,} steps of "
        "final training. "
        f"{saas.labeled_batch} labelled images stand in every step beside {saas.batch_size} unlabeled ones; "
        f"SGD's rate is {saas.learning_rate} (the paper: {PAPER.learning_rate}, in loops of twenty times as "
        "many steps; chosen on other images, [tried.md](../tried.md)). "
        "No held-out label steers anything; the test split is scored once, at the end.",
        "Right labels are those of the unlabeled images, before the final training; for the labelled images "
        "alone, the answers of the final network. The labels that the authors released for their networks, "
        f"from 4,000 labels and 46,000 unlabeled images, are {PAPER_ACCURACY[0]} % and {PAPER_ACCURACY[1]} % "
        "right.",
        "The paper reports test errors, with larger networks and other numbers of labels, of 4.77 % on SVHN "
        "with 1,000 labels and, on CIFAR-10 with 4,000 labels, of 13.2 % and with a ResNet-18 10.9 % "
        "(figures from secondary sources, not checked against the paper).",
        f"{len(rows)} of {len(plan())} rows are measured; those took {hours:.1f} CPU-hours. "
        "`python -m scripts.few_labels_results --data-root FOLDER` makes the missing ones "
        f"{AGAIN}, and each row in "
        "`tasks.json` names its own command.",
    ]


def _accuracies(rows: Sequence[Row]) -> str:
    table = []
    for arm in ARMS:
        made = [row for row in rows if row["arm"] == arm]
        if made:
            right = [] if arm == "full" else [row["label_accuracy"] for row in made]
            minutes = statistics.mean(row["cpu_seconds"] for row in made) / 60
            tested = _spread([row["test_accuracy"] for row in made])
            table.append([NAMES[arm], len(made), tested, _spread(right), f"{minutes:.0f}"])
    headings = ["labels from", "seeds", "test accuracy", "right labels", "CPU minutes"]
    return markdown_table(headings, table) if table else NOTHING


def _spread(values: Sequence[float]) -> str:
    """Mean and standard deviation over seeds, in percent."""
    if not values:
        return ""
    deviation = f" ± {100 * statistics.stdev(values):.2f}" if len(values) > 1 else ""
    return f"{statistics.mean(values):.2%}{deviation}"


def _differences(rows: Sequence[Row]) -> list[str]:
    """Paired differences over common seeds; nothing with fewer than two of them."""
    modes = [{**row, "mode": row["arm"]} for row in rows]
    found = [
        compared
        for one, other in PAIRS
        if (compared := comparison(modes, "cifar10", one, other, "test_accuracy")) is not None
    ]
    if not found:
        return []
    table = [
        [
            f"{NAMES[row['mode']]} - {NAMES[row['against']]}",
            row["seeds"],
            f"{100 * row['difference']:+.2f} ± {100 * row['half_interval']:.2f}",
            row["verdict"],
        ]
        for row in found
    ]
    return [markdown_table(["pair, test accuracy", "seeds", "points (95 % interval)", "verdict"], table)]

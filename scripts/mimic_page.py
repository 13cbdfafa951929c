"""The section of the mimic results: tables of whatever rows there are."""

import statistics
from collections.abc import Sequence

from amc.recovery.mimic import MODES
from scripts.mimic_comparison import Row, by_seed, comparisons
from scripts.mimic_results import SETTINGS, STUDENT_WIDTH, TEACHER_WIDTH, plan
from scripts.results_page import AGAIN, NOTHING, markdown_table


def section(rows: list[Row]) -> list[str]:
    """The parts of the section, from its rows in `tasks.json`."""
    return [
        "## Detection and quantization mimic",
        *overview(rows),
        *networks(rows),
        *pairs(comparisons(rows)),
    ]


def overview(rows: Sequence[Row]) -> list[str]:
    """What the tables share."""
    hours = sum(row["seconds"] for row in rows) / 3600
    return [
        "A detector of an eighth of the teacher's channels learns from labels alone (`alone`), also from the "
        "teacher's features on regions (`mimic`), or from quantized features through its own quantized ones "
        "(`quantized`; arXiv:1805.02152). mAP is COCO's, over IoU thresholds 0.5 to 0.95, on the test split. "
        "Matching is the share of quantized features on the labelled boxes that equal the teacher's (the "
        "paper: 58.2 % for mimic, 62.1 % for quantized mimic). Students of one seed start from the same "
        "weights and see the same batches.",
        "The paper calls a network very tiny that has at most 1/16 of the channels in every layer. Here it "
        f"is 1/{round(TEACHER_WIDTH / STUDENT_WIDTH)}: the teacher's layers have only 16, 32 and 64 "
        "channels, of which a sixteenth would be 1, 2 and 4, and all that a student sees would have to pass "
        "through the one. So these figures tell of a student that is less tiny than the paper's.",
        "The paper reports (figures from secondary sources, not checked against the paper), on Pascal VOC "
        "with 1/16 of a ResNet-18, 47.0 mAP for quantized mimic, 6.5 points above the student alone and 2.4 "
        "above mimic; on WIDER FACE with 1/32 of a VGG, easy, medium and hard, +2.6, +6.7 and +3.7 points "
        "above the student alone, +2.0, +3.9 and +1.9 above mimic.",
        f"{len(rows)} of {len(plan())} rows are measured; those took {hours:.1f} hours. "
        "`python -m scripts.mimic_results --data-root FOLDER` makes the missing ones "
        f"{AGAIN}, and "
        "each row in `tasks.json` names its own command.",
    ]


def networks(rows: Sequence[Row]) -> list[str]:
    """Scores of teachers, and means and standard deviations of the students'."""
    table = []
    for data in SETTINGS:
        for row in (row for row in rows if (row["part"], row["data"]) == ("teacher", data)):
            table.append([f"{data}, teacher", 1, f"{row['mAP']:.2%}", f"{row['AP50']:.2%}", ""])
            quantized = [f"{row[key]:.2%}" for key in ("mAP_quantized", "AP50_quantized")]
            table.append([f"{data}, teacher with quantized features", 1, *quantized, ""])
        for mode in MODES:
            values = [list(by_seed(rows, data, mode, key).values()) for key in ("mAP", "AP50", "matching")]
            if values[0]:
                table.append([f"{data}, {mode}", len(values[0]), *map(spread, values)])
    headings = ["data, network", "seeds", "mAP", "AP50", "matching"]
    return ["### Detectors", markdown_table(headings, table) if table else NOTHING]


def spread(values: Sequence[float]) -> str:
    """Mean and standard deviation over seeds."""
    if not values:
        return ""
    deviation = statistics.stdev(values) if len(values) > 1 else 0.0
    return f"{statistics.mean(values):.2%} ± {100 * deviation:.2f}"


def pairs(paired: Sequence[Row]) -> list[str]:
    """Paired differences with their intervals."""
    table = [
        [
            f"{row['data']}, {row['metric']}",
            f"{row['mode']} - {row['against']}",
            row["seeds"],
            f"{100 * row['difference']:+.2f} ± {100 * row['half_interval']:.2f}",
            row["verdict"],
        ]
        for row in paired
    ]
    headings = ["data, metric", "pair", "seeds", "points (95 % interval)", "verdict"]
    return ["### Paired differences", markdown_table(headings, table) if table else NOTHING]

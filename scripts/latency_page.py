"""The page of the latency results: tables and plots of whatever rows there are."""

import sys
from dataclasses import dataclass
from pathlib import Path

if not __package__:  # started as a file: Python then looks in scripts/ and not in the folder above it
    sys.path[0] = str(Path(__file__).resolve().parents[1])

from amc.errors import UserError
from amc.files import write_atomically
from scripts.cli import run
from scripts.latency_page_curves import curves
from scripts.latency_page_targets import arm, predictor, profiles
from scripts.latency_rows import BLOCKS_STEPS, plan
from scripts.latency_words import (
    PRIOR,
    Row,
    comparison,
    drop,
    made_by,
    of_older_files,
    row_name,
    same_searches,
    setting,
    title_of,
    verdict,
    way,
    winners,
)
from scripts.results_page import AGAIN, markdown_table, of_before, read_figures, write_page

SCORED = ("joint", "curve", "headline")
"""Parts whose rows have accuracies."""


@dataclass(frozen=True)
class LatencyPage:
    """Options of the page."""

    figures: Path = Path("docs/results/latency.json")
    """What scripts/latency_results.py has written; the page goes beside it."""
    images: Path = Path("docs/images")
    """Folder of the plots."""


def main(options: LatencyPage) -> None:
    """Write the page of the latency results and its plots from the figures."""
    rows = read_figures(options.figures).get("rows", {})
    if not rows:
        raise UserError(f"{options.figures} has no rows yet: scripts/latency_results.py makes them.")
    options.images.mkdir(parents=True, exist_ok=True)
    page = Page(list(rows.values()), options)
    parts = ["# Latency, measured", *page.overview()]
    parts += [*page.headline(), *curves(page), *page.joint()]
    parts += [*predictor(page), *profiles(page), *arm(page)]
    write_page(options.figures.with_suffix(".md"), [*parts, *page.missing()])
    print(options.figures.with_suffix(".md"))


class Page:
    """The sections; each says so where it has nothing to show yet.

    Args:
        rows: of the figures file.
        options: where things go.
    """

    def __init__(self, rows: list[Row], options: LatencyPage):
        self.rows, self.options = rows, options

    def of(self, part: str) -> list[Row]:
        """The rows of one part, in the order of the plan."""
        order = [spec.name for spec in plan()]
        found = [row for row in self.rows if row["part"] == part]
        return sorted(found, key=lambda row: (row["label"], order.index(row_name(row))))

    def draw(self, name: str, png: bytes, about: str) -> str:
        """Write a plot; the Markdown that shows it."""
        write_atomically(self.options.images / name, png)
        return f"![{about}](../images/{name})"

    def overview(self) -> list[str]:
        """What all sections share."""
        hours = sum(row["seconds"] for row in self.rows) / 3600
        done = {row_name(row) for row in self.rows} & {spec.name for spec in plan()}
        return [
            "Latencies are of one image on one core, as fractions of the uncompressed fp32 network's, which "
            "is measured in the same interleaved rounds (0.2 is five times as fast). Accuracies are of all "
            f"10,000 test images of CIFAR-10. {len(done)} of {len(plan())} rows are measured; those that "
            f"are took {hours:.1f} hours. `python -m scripts.latency_results` makes the missing ones "
            f"{AGAIN}, with `--weights-20`, `--weights-56` and `--data-root`. Rows that are there stay as "
            "they are, also when the defaults have changed since. `python -m scripts.latency_page` writes "
            "this page from them.",
            *of_before(row for row in self.rows if row["part"] in SCORED),
            *of_older_files(self.rows),
        ]

    def headline(self) -> list[str]:
        """Fine-tuned, exported, scored and timed in fresh processes."""
        rows = self.of("headline")
        title = "## Headline: fine-tuned with distillation, exported, measured in the runtime"
        if not rows:
            return [title, "*Not measured yet.*"]
        good = [row for row in rows if "unreachable" not in row]
        table = [
            [
                f"{row['network']}, {row['target']}, {row['budget']}{way(row)} ({row['label']})",
                f"{row['original_file']['latency']:.3f}",
                f"{row['file']['latency']:.3f}",
                f"{row['latency_ratio']:.3f} ({1 / row['latency_ratio']:.2f}x)",
                f"{row['latency_ratio_cv']:.1%}",
                f"{row['test_accuracy_original']:.2%}",
                f"{row['test_accuracy_exported']:.2%}",
                f"{drop(row):+.2f}",
            ]
            for row in good
        ]
        unit = good[0]["unit"] if good else "ms"
        headings = ["network, target, budget (machine)", f"original {unit}", f"file {unit}", "ratio", "CV"]
        headings += ["original accuracy", "file accuracy", "points"]
        return [
            title,
            *([markdown_table(headings, table)] if table else []),
            *(f"{title_of(row)}: {verdict(row)}" for row in rows),
            PRIOR,
            made_by(rows),
        ]

    def joint(self) -> list[str]:
        """Joint search against its alternatives."""
        rows = self.of("joint")
        title = "## Widths and bits together, against one after the other, at the same budget"
        if not rows:
            return [title, "*Not measured yet.*"]
        table = [[*setting(row), *comparison(row)] for row in rows]
        headings = ["network, target, budget (machine)", "variant", "test accuracy", "reward split"]
        headings += ["latency ratio", "keeps the budget", "layers in int8", "MACs", "channels by", "search s"]
        return [
            title,
            "No fine-tuning. The weights know the images of the reward split, so it reads higher than the "
            "test split. `prune` stays in fp32; `int8` keeps all channels; `prune-int8` searches widths in "
            "fp32 and then puts every layer in int8; `joint` decides both; `uniform` has one keep ratio; "
            "`blocks` decides widths, bits, and which residual blocks go, and scores each "
            f"policy after {BLOCKS_STEPS} steps of training, which the accuracies here do not have. "
            "`channels by` is the order in which channels go, by their weights (l2) or the Optimal Brain "
            "Surgeon's (obs), and what layers are refitted to: their inputs in the original (symmetric) or "
            "in the compressed network (asymmetric). The last of each are the defaults now.",
            markdown_table(headings, table),
            "\n".join(winners(rows)),
            *same_searches(rows),
            made_by(rows),
        ]

    def missing(self) -> list[str]:
        """What nobody has measured on any machine."""
        done = {row_name(row) for row in self.rows}
        names = [spec.name for spec in plan() if spec.name not in done]
        listed = "\n".join(f"* `{name}`" for name in names)
        return ["## Not measured yet", listed] if names else []


if __name__ == "__main__":
    run(main)

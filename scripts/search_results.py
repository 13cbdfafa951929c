"""Regenerate the figures of the search results, row by row; may be cut at any moment and repeated."""

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

if not __package__:  # started as a file: Python then looks in scripts/ and not in the folder above it
    sys.path[0] = str(Path(__file__).resolve().parents[1])

import torch

from amc.errors import UserError
from scripts.cli import run as run_script
from scripts.results_runner import Row, Rows, Runner
from scripts.search_rows import NETWORKS, SearchResults, Spec, command, plan
from scripts.search_rows_goals import smallest_row, sparse_row
from scripts.search_rows_measured import evaluation_row, proxy_row, ranking_row, seen_row
from scripts.search_rows_table import headline_row, table_row, tuned_row

MAKERS: dict[str, Callable[[SearchResults, Spec], dict[str, Any]]] = {
    "table": table_row,
    "tuned": tuned_row,
    "headline": headline_row,
    "smallest": smallest_row,
    "fine-grained": sparse_row,
    "ranking": ranking_row,
    "seen": seen_row,
    "seconds": evaluation_row,
    "proxy": proxy_row,
    "workers": evaluation_row,
}


def main(options: SearchResults) -> None:
    """Make the missing rows of the search results, in order; may be cut anywhere and repeated."""
    rows = runner(options)
    rows.run(rows.chosen(plan(), options.only), options)


def runner(options: SearchResults) -> Runner[Spec]:
    """What makes and keeps the rows."""
    return Runner(
        options.out,
        key=lambda spec: spec.name,
        make=lambda spec: MAKERS[spec.part](options, spec),
        about=lambda spec: {"command": command(options, spec)},
        summary=summary,
        prepare=lambda missing: prepare(options, missing),
    )


def prepare(options: SearchResults, missing: list[Spec]) -> list[Spec]:
    """The rows whose weights are here, with a sentence about the others; sets the threads.

    Raises:
        UserError: nothing can be made here, the data are missing, or the settings make no sense.
    """
    if min(options.threads, options.evaluations) < 1:
        raise UserError("--threads and --evaluations must be at least 1.")
    if not options.data_root.is_dir() and any(needs_cifar(spec) for spec in missing):
        raise UserError(f"There is no folder {options.data_root} with cifar-10-batches-py: pass --data-root.")
    absent = {
        network: options.weights(network) for network in NETWORKS if not options.weights(network).is_file()
    }
    skipped = sorted({spec.network for spec in missing} & set(absent))
    for network in skipped:
        print(f"{network} is skipped: there is no {absent[network]}; {hint(network)}.", file=sys.stderr)
    possible = [spec for spec in missing if spec.network not in skipped]
    if skipped and not possible:
        raise UserError(f"None of the {len(missing)} missing rows can be made without weights.")
    torch.set_num_threads(options.threads)
    return possible


def needs_cifar(spec: Spec) -> bool:
    """Whether a row reads the images of CIFAR-10."""
    return spec.network in NETWORKS and NETWORKS[spec.network].data == "cifar10"


def hint(network: str) -> str:
    """Where the weights of a network come from."""
    if NETWORKS[network].seen:
        return "pass --weights-56"
    return "scripts/pretrain.py makes it, as docs/weights/README.md says"


def summary(rows: Rows) -> dict[str, Any]:
    """The entries of the figures file that others read."""
    searches = [row for row in rows.values() if row["part"] == "table"]
    tuned = [row for row in rows.values() if row["part"] in ("tuned", "headline")]
    return {
        "table": [line for row in searches if "variant" not in row for line in lines(row, tuned)],
        "variants": [
            {"variant": row["variant"], **line}
            for row in searches
            if "variant" in row
            for line in lines(row, tuned)
        ],
        "seconds_per_evaluation": {
            "/".join(filter(None, (row["network"], row.get("variant")))): row["seconds_per_evaluation"]
            for row in rows.values()
            if row["part"] == "seconds"
        },
        "proxy_rank_correlation": first(rows, "proxy").get("rank_correlation", {}),
        "worker_efficiency": first(rows, "workers").get("efficiency"),
    }


def first(rows: Rows, part: str) -> Row:
    """The first row of a part; empty where there is none."""
    return next((row for row in rows.values() if row["part"] == part), {})


def lines(row: Row, tuned: list[Row]) -> list[Row]:
    """A search as lines of the table: its best after half of the evaluations, and after all."""
    fine = [fine for fine in tuned if same_search(fine, row)]
    longest = max(fine, key=lambda found: found["epochs"], default=None)
    return [
        {
            "network": row["network"],
            "budget": float(row["budget"]),
            "searcher": row["searcher"],
            "evaluations": best["evaluations"],
            "seed": int(row["seed"]),
            "reward_accuracy": best["reward_accuracy"],
            "test_untuned": best["test_untuned"],
            # What was fine-tuned is the best policy of the whole search.
            "test_tuned": longest["test_tuned"] if longest and best is row["best"][-1] else None,
            "seconds": best["seconds"],
        }
        for best in row["best"]
    ]


def same_search(tuned: Row, search: Row) -> bool:
    """Whether a fine-tuning started from what a search found."""
    keys = ("network", "budget", "searcher", "seed", "variant")
    return all(tuned.get(key) == search.get(key) for key in keys)


if __name__ == "__main__":
    torch.manual_seed(0)
    run_script(main)

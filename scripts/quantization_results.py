"""Regenerate the figures of the quantization results, row by row; may be cut at any moment and repeated."""

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

if not __package__:  # started as a file: Python then looks in scripts/ and not in the folder above it
    sys.path[0] = str(Path(__file__).resolve().parents[1])

import torch

from amc.errors import UserError
from scripts.cli import run as run_script
from scripts.quantization_choice import choice_row
from scripts.quantization_page import tables
from scripts.quantization_rows import NETWORKS, QuantizationResults, Spec, command, plan
from scripts.quantization_searches import aware_row, mixed_row, tuned_row
from scripts.quantization_untrained import activations_row, error_row, memory_row, paired_row, untrained_row
from scripts.results_runner import Rows, Runner

MAKERS: dict[str, Callable[[QuantizationResults, Spec], dict[str, Any]]] = {
    "error": error_row,
    "memory": memory_row,
    "untrained": untrained_row,
    "paired": paired_row,
    "activations": activations_row,
    "choice": choice_row,
    "aware": aware_row,
    "mixed": mixed_row,
    "tuned": tuned_row,
}


def main(options: QuantizationResults) -> None:
    """Make the missing rows of the quantization results, in order; may be cut anywhere and repeated."""
    runner = Runner[Spec](
        options.out,
        key=lambda spec: spec.name,
        make=lambda spec: MAKERS[spec.part](options, spec),
        about=lambda spec: {"command": command(options, spec)},
        summary=summary,
        prepare=lambda missing: prepare(options, missing),
    )
    runner.run(runner.chosen(plan(), options.only), options)


def prepare(options: QuantizationResults, missing: list[Spec]) -> list[Spec]:
    """The rows whose weights are here, with a sentence about the others; sets the threads.

    Raises:
        UserError: nothing can be made here, the data are missing, or the settings make no sense.
    """
    if min(options.threads, options.evaluations) < 1:
        raise UserError("--threads and --evaluations must be at least 1.")
    if not options.data_root.is_dir() and any(spec.part != "error" for spec in missing):
        raise UserError(f"There is no folder {options.data_root} with cifar-10-batches-py: pass --data-root.")
    absent = {name for name in NETWORKS if not options.weights(name).is_file()}
    for name in sorted({spec.network for spec in missing} & absent):
        print(f"{name} is skipped: there is no {options.weights(name)}.", file=sys.stderr)
    possible = [spec for spec in missing if spec.network not in absent]
    if missing and not possible:
        raise UserError(f"None of the {len(missing)} missing rows can be made without weights.")
    torch.set_num_threads(options.threads)
    return possible


def summary(rows: Rows) -> dict[str, Any]:
    """The tables of the page: one object a row, with the column names as keys."""
    return {"tables": tables(list(rows.values()))}


if __name__ == "__main__":
    run_script(main)

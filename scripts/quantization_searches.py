"""Rows of the quantization results that search bits, and rows that fine-tune."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from agents.log import EvaluationLog
from agents.run import OUTCOMES_FILE
from agents.run_folder import run_lock
from amc.files import read_json
from amc.models import build_model, load_weights
from amc.network import Network, trace
from scripts.quantization_rows import (
    AWARE_EPOCHS,
    MIXED_EPOCHS,
    QuantizationResults,
    Spec,
    aware_config,
    mixed_config,
    run_folder,
)
from scripts.results_runs import Figures, read_seconds, searched, tuned_figures


def traced(options: QuantizationResults, network: str) -> Network:
    """A network with its weights."""
    model = build_model(network, 10, 3)
    load_weights(model, options.weights(network))
    return trace(model, torch.zeros(1, 3, 32, 32))


def mixed_row(options: QuantizationResults, spec: Spec) -> Figures:
    """One search: its best policy before any fine-tuning, and its bits layer by layer."""
    config = mixed_config(options, spec, traced(options, spec.network))
    with searched(run_folder(options, spec), config) as run:
        outcomes, best = read_outcomes(run.folder), run.log.best()
        assert best is not None
        found = outcomes[spec.searcher]
        return {
            "limit": run.problem.budgets[0].limit,
            "size": found["costs"]["size"],
            "bops": found["costs"]["bops"],
            "evaluations": len(run.log),
            "found_at": best.index + 1,
            "original_test": outcomes["original"]["test_score"],
            "reward_accuracy": best.score,
            "test_untuned": found["test_score"],
            "weight_bits": best.policy.values("weight_bits"),
            "activation_bits": best.policy.values("activation_bits"),
            "width": best.policy.values("width"),
            **curve(run.log),
            "threads": options.threads,
            "seconds": max(read_seconds(run.folder).values(), default=0.0),
        }


def curve(log: EvaluationLog) -> dict[str, list[float]]:
    """The steps of the best so far: evaluations from 1, and scores on the reward split."""
    steps = [row for row in log.rows if row.best_index == row.index and row.feasible]
    return {"improved_at": [row.index + 1 for row in steps], "best_so_far": [row.score for row in steps]}


def read_outcomes(folder: Path) -> dict[str, dict[str, Any]]:
    """What a finished run has scored on the test split, by name."""
    outcomes: Any = read_json(folder / OUTCOMES_FILE)
    return {outcome["name"]: outcome for outcome in outcomes}


def tuned_row(options: QuantizationResults, spec: Spec) -> Figures:
    """The best network of a search after a short quantization-aware fine-tuning."""
    search = replace(spec, part="mixed")
    config = mixed_config(options, search, traced(options, spec.network))
    with searched(run_folder(options, search), config) as run:
        folder = run.folder
    return quantized_figures(options, folder, MIXED_EPOCHS)


def aware_row(options: QuantizationResults, spec: Spec) -> Figures:
    """The same bits in all layers but the first and the last, for weights and inputs, fine-tuned."""
    with searched(run_folder(options, spec), aware_config(options, spec)) as run:
        folder = run.folder
    return quantized_figures(options, folder, AWARE_EPOCHS)


def quantized_figures(options: QuantizationResults, run: Path, epochs: int) -> Figures:
    """Fine-tune with every epoch quantized and new views in each, or take what an earlier call made."""
    with run_lock(run):
        figures = tuned_figures(run, epochs, float_epochs=0, views=0)
    scores = figures["scores"]
    return {
        "epochs": epochs,
        "original_test": scores["original"]["test"],
        "test_untuned": scores["compressed"]["test"],
        "test_tuned": scores["fine-tuned"]["test"],
        "reward_tuned": scores["fine-tuned"]["reward"],
        "size": figures["costs"]["size"],
        "threads": options.threads,
    }

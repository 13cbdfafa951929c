"""The scattering rows of the operator results: networks on coefficients and their twins on pixels."""

from dataclasses import replace
from pathlib import Path

import torch
from torch import nn

from agents.config import AgentConfig, SearchConfig
from agents.run_config import RunConfig, SourceConfig
from amc.data import load_data
from amc.models import build_model
from amc.network import trace
from amc.scattering import Scattering
from amc.tasks import ClassificationTask
from amc.training import Recipe
from envs.problem_config import ProblemConfig
from scripts.operator_rows import SCATTERED, OperatorResults, Spec, run_folder
from scripts.results_runner import Row
from scripts.results_runs import searched
from scripts.results_training import train_once

WIDTH = 0.5
SIZE_BUDGET = "size=0.1"
"""Of the compressed hybrid. Its stage cannot be pruned and needs most of the MACs, but nothing in a file."""
MOST_EVALUATIONS = 40
"""Of its search, so that its row stays below 20 minutes."""
RECIPES = {
    "cifar10": Recipe(epochs=8, batch_size=64, lr=0.05),
    "voc-crops": Recipe(epochs=20, batch_size=64, lr=0.05),
}
"""Shrunk so that a row stays below 20 minutes: one step of each was timed, on one core. Chosen before the
first figure was seen, and not tuned."""


def scattering_row(options: OperatorResults, spec: Spec) -> Row:
    """A trained network's accuracy and costs, or those of the hybrid after a search."""
    if spec.arm == SCATTERED:
        return compressed_row(options, spec)
    task, model = trained(options, spec)
    network = trace(model, task.example_input())
    counts = task.data.test.labels.bincount()
    return {
        "side": task.data.shape[1],
        "width": WIDTH,
        "epochs": RECIPES[spec.setting].epochs,
        "compression": compression(model),
        "macs": network.macs,
        "stage_macs": network.fixed_macs,
        "test": task.score(model, "test"),
        "commonest": float(counts.max() / counts.sum()),
    }


def compressed_row(options: OperatorResults, spec: Spec) -> Row:
    """The best policy that the agent finds for the hybrid."""
    hybrid = replace(spec, arm="")
    task, model = trained(options, hybrid)
    problem = ProblemConfig(budget=(SIZE_BUDGET,), target=options.target)
    search = SearchConfig(evaluations=min(options.evaluations, MOST_EVALUATIONS))
    source = SourceConfig(
        spec.network,
        weights_file(options, hybrid),
        width=WIDTH,
        data=spec.setting,
        data_root=root(options, spec.setting),
        device=options.device,
        threads=options.threads,
    )
    with searched(run_folder(options, spec), RunConfig(source, problem, AgentConfig(), search)) as run:
        policy, original = run.best_policy, run.problem.original_costs
        costs = run.evaluator.costs_of(policy)
        return {
            "budget": SIZE_BUDGET,
            "evaluations": len(run.log),
            "test_original": task.score(model, "test"),
            "test_untuned": task.score(run.evaluator.compressed(policy), "test"),
            **{f"{name}_share": costs[name] / original[name] for name in ("macs", "size")},
        }


def trained(options: OperatorResults, spec: Spec) -> tuple[ClassificationTask, nn.Module]:
    """The task of a row and its network, trained now unless an earlier row has done so."""
    task = ClassificationTask(load_data(spec.setting, root(options, spec.setting)))
    torch.manual_seed(0)
    model = build_model(spec.network, task.data.classes, task.data.shape[0], WIDTH)
    options.runs.mkdir(parents=True, exist_ok=True)  # a checkpoint is written there first
    device = "cuda" if options.device != "cpu" and torch.cuda.is_available() else "cpu"
    train_once(
        spec.name,
        weights_file(options, spec),
        model.to(device),
        task.data,
        RECIPES[spec.setting],
        task.loss,
    )
    return task, model.to("cpu").eval()


def weights_file(options: OperatorResults, spec: Spec) -> Path:
    """Where a row's network is kept."""
    return options.runs / (spec.name.replace("/", "-") + ".safetensors")


def root(options: OperatorResults, data: str) -> Path:
    """The folder of a data set."""
    return options.voc_root if data == "voc-crops" else options.data_root


def compression(model: nn.Module) -> float | None:
    """Numbers of the image over numbers of its coefficients; None on pixels."""
    return next((part.compression() for part in model.modules() if isinstance(part, Scattering)), None)

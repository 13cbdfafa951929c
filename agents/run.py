"""A run: one directory that holds everything about one search and can be resumed."""

import os
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import nn

from agents.log import EvaluationLog, Row
from agents.run_config import CONFIG_FILE, RunConfig, SourceConfig, read_config, write_config
from agents.search import POLICY_FILE, Callback, SearchResult, search
from agents.searcher import Searcher, make_searcher
from agents.tensorboard import TensorBoardWriter
from amc.data import load_data
from amc.errors import UserError
from amc.evaluate import Evaluator
from amc.models import build_model, check_fits, load_weights
from amc.network import Network
from amc.plugins import is_import_path
from amc.policy import CompressionPolicy
from amc.targets import describe_machine
from amc.tasks import load_task
from amc.tasks.base import Task
from envs.problem import Problem, build_problem

LOG_FILE = "evaluations.jsonl"
SMALL_SIDE = 64
"""Images up to this side skip the early strides that networks for large images have."""


@dataclass(frozen=True)
class Outcome:
    """One network of the before/after table.

    Attributes:
        name: "original", "uniform" or the searcher's name.
        policy: its policy; None for the uncompressed network.
        reward_score, test_score: scores on the two splits, in [0, 1].
        costs: cost name to absolute value.
    """

    name: str
    policy: CompressionPolicy | None
    reward_score: float
    test_score: float
    costs: dict[str, float]


class Run:
    """A search and its directory.

    Args:
        folder: the run directory; it exists.
        config: every setting.
        problem: what is compressed.
    """

    def __init__(self, folder: Path, config: RunConfig, problem: Problem):
        self.folder, self.config, self.problem = folder, config, problem

    @property
    def network(self) -> Network:
        """The traced network."""
        return self.problem.network

    @property
    def task(self) -> Task:
        """Data, loss and score."""
        return self.problem.task

    @property
    def evaluator(self) -> Evaluator:
        """What compresses and scores policies."""
        return self.problem.evaluator

    @cached_property
    def log(self) -> EvaluationLog:
        """Every evaluation so far."""
        return EvaluationLog(self.folder / LOG_FILE)

    @cached_property
    def searcher(self) -> Searcher:
        """The searcher; its state is whatever the search has made of it in this process."""
        return make_searcher(self.problem.walk(), self.config.agent, self.config.search.evaluations)

    @property
    def best_policy(self) -> CompressionPolicy:
        """The best policy found so far.

        Raises:
            UserError: nothing has been evaluated yet.
        """
        path = self.folder / POLICY_FILE
        if not path.exists():
            raise UserError(f"{self.folder} has no {POLICY_FILE} yet: its search has not evaluated anything.")
        return CompressionPolicy.load(path)

    def search(
        self, callbacks: Sequence[Callback] = (), stop: Callable[[], bool] = lambda: False
    ) -> SearchResult:
        """Search until the budget is spent, from wherever the run is; then close the TensorBoard events."""
        widths = {layer.name: layer.out_channels for layer in self.network.layers}
        writer = TensorBoardWriter(self.folder, self.log, self.config.flat(), widths)
        settings = self.config.search
        result = search(
            self.searcher,
            self.evaluator,
            self.problem.make_reward(),
            self.log,
            budget_evaluations=settings.evaluations,
            time_budget=settings.time_budget,
            checkpoint_every=settings.checkpoint_every,
            proposals_per_round=settings.proposals_per_round,
            callbacks=(writer, *callbacks),
            stop=stop,
        )
        writer.close(final_figures(result))
        return result

    def outcomes(self) -> list[Outcome]:
        """Original, uniform and best policy, scored on the test split before any fine-tuning."""
        problem = self.problem
        model = self.network.copy().to(self.evaluator.device)
        test = self.task.score(model, "test")
        rows = [Outcome("original", None, problem.original_score, test, dict(problem.original_costs))]
        best = self.log.best()
        for name, row in (("uniform", self.log.rows[0] if self.log.rows else None), (self.algorithm, best)):
            if row is not None:
                rows.append(self._outcome(name, row))
        return rows

    @property
    def algorithm(self) -> str:
        """Name of the searcher."""
        return self.config.agent.algorithm

    def _outcome(self, name: str, row: Row) -> Outcome:
        score = self.task.score(self.evaluator.compressed(row.policy), "test")
        return Outcome(name, row.policy, row.score, score, dict(row.costs))


def final_figures(result: SearchResult) -> dict[str, float]:
    """What the hyper-parameter table of TensorBoard compares."""
    best = result.best
    if best is None:
        return {}
    return {"reward": best.reward, "score": best.score, **best.costs}


def load_source(source: SourceConfig) -> tuple[nn.Module, Task]:
    """The trained model and the task that a configuration names.

    Raises:
        UserError: model, weights, data or task is missing or does not fit.
    """
    if source.weights is None and not is_import_path(source.model):
        raise UserError(
            f"{source.model} needs trained weights: pass --weights FILE (scripts/pretrain.py makes one)."
        )
    data = load_data(source.data, source.data_root, source.side)
    channels, height, _ = data.shape
    model = build_model(source.model, data.classes, channels, source.width, height <= SMALL_SIDE)
    if source.weights is not None:
        load_weights(model, source.weights)
    check_fits(model, source.model, data.shape, data.classes)
    return model, load_task(source.task, data)


def prepare_device(source: SourceConfig) -> str:
    """Set the thread count; returns the device for scoring.

    Raises:
        UserError: cuda is asked for and absent.
    """
    if source.device == "cuda" and not torch.cuda.is_available():
        raise UserError("PyTorch finds no GPU here: use --device auto or cpu.")
    if source.threads < 0:
        raise UserError(f"--threads must be 0 or more, not {source.threads}.")
    if source.threads:
        torch.set_num_threads(source.threads)
    return "cuda" if source.device != "cpu" and torch.cuda.is_available() else "cpu"


def check_new_folder(folder: Path) -> None:
    """Refuse a run directory that cannot be written, or that holds something already.

    Raises:
        UserError: says which.
    """
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        hint = "continue it with --resume, or " if (folder / CONFIG_FILE).exists() else ""
        raise UserError(f"{folder} is not empty: {hint}choose another --name.")
    parent = next(p for p in (folder, *folder.parents) if p.exists())
    if not parent.is_dir() or not os.access(parent, os.W_OK):
        raise UserError(f"{folder} cannot be made: {parent} is not a folder that can be written to.")


def start_run(
    folder: Path, config: RunConfig, model: nn.Module | None = None, task: Task | None = None
) -> Run:
    """Set up a new run; its directory is made last, when nothing can fail any more.

    Args:
        folder: the run directory; must not exist or be empty.
        config: every setting.
        model, task: given as objects where no configuration names them.

    Raises:
        UserError: anything does not fit.
    """
    check_new_folder(folder)
    device = prepare_device(config.source)
    if model is None or task is None:
        model, task = load_source(config.source)
    problem = build_problem(model, task, config.problem, device)
    if problem.walk().length == 0:
        raise UserError("Nothing is left to decide: every layer is frozen or has a single legal value.")
    folder.mkdir(parents=True, exist_ok=True)
    write_config(folder, config, run_facts(problem))
    return Run(folder, config, problem)


def load_run(
    folder: Path, model: nn.Module | None = None, task: Task | None = None, evaluations: int | None = None
) -> Run:
    """Open an existing run.

    Args:
        folder: the run directory.
        model, task: needed again if the run was started with objects.
        evaluations: a larger evaluation budget to continue with.

    Raises:
        UserError: the folder holds no run, or what it names is gone.
    """
    config = read_config(folder)
    if evaluations is not None:
        config = replace(config, search=replace(config.search, evaluations=evaluations))
    device = prepare_device(config.source)
    if model is None or task is None:
        model, task = load_source(config.source)
    return Run(folder, config, build_problem(model, task, config.problem, device))


def run_facts(problem: Problem) -> dict[str, Any]:
    """Machine, versions and command of a run, for its configuration file."""
    return {
        "machine": describe_machine(),
        "target_version": problem.target.runtime_version,
        "network": problem.network.fingerprint,
        "threads": torch.get_num_threads(),
        "command": " ".join(sys.argv),
    }

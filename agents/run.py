"""A run: one directory that holds everything about one search and can be resumed."""

import shlex
import sys
from collections.abc import Callable, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import nn

from agents.checkpoint import CHECKPOINT_FOLDER
from agents.latency_file import MeasuredBefore, read_latency, write_latency
from agents.log import EvaluationLog, Row
from agents.outcome import ACTOR, ORIGINAL, Outcome, final_figures
from agents.run_config import (
    CONFIG_FILE,
    RunConfig,
    check_refits,
    continued,
    read_config,
    read_facts,
    refits_of,
    write_config,
)
from agents.run_folder import check_new_folder, run_lock
from agents.search import POLICY_FILE, Callback, SearchResult, search
from agents.searcher import Searcher, check_searcher, make_searcher, with_reference
from agents.source import load_source, prepare_device
from agents.standards import Cases, Standard, check_enough, one_case
from agents.tensorboard import TensorBoardWriter
from agents.workers import evaluating_with
from amc.costs.latency.sampling import Progress
from amc.errors import UserError
from amc.evaluate import Evaluator
from amc.files import write_json
from amc.network import Network
from amc.policy import CompressionPolicy
from amc.targets import Profile, describe_machine, get_target
from amc.targets.machine import cpu_model, installed_version
from amc.tasks.base import Illustrated, Task, score_and_further
from envs.case_walk import CaseWalk
from envs.problem import Baseline, Problem, build_problem
from envs.reference import settle_reference, start_from

LOG_FILE = "evaluations.jsonl"
OUTCOMES_FILE = "outcomes.json"
PACKAGES = ("amc-compress", "gymnasium", "stable-baselines3", "torch-pruning")
"""What decides a search besides the runtimes that `describe_machine` names."""


class Run:
    """A search and its directory.

    Args:
        folder: the run directory; it exists.
        config: every setting.
        problem: what is compressed.

    Attributes:
        address: of the Ray cluster on which the workers run; None: this machine. It decides nothing.
    """

    def __init__(self, folder: Path, config: RunConfig, problem: Problem):
        self.folder, self.config, self.problem = folder, config, problem
        self.address: str | None = None
        self._tested: dict[str, tuple[float, dict[str, float]]] = {}

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

    @property
    def algorithm(self) -> str:
        """Name of the searcher."""
        return self.config.agent.algorithm

    @cached_property
    def log(self) -> EvaluationLog:
        """Every evaluation so far."""
        return EvaluationLog(self.folder / LOG_FILE)

    @cached_property
    def searcher(self) -> Searcher:
        """The searcher: new, or as the latest `search` of this process left it."""
        agent = self.config.agent
        return make_searcher(self.problem.training_walk(agent.seed), agent, self.config.search.evaluations)

    def cases(self) -> Cases:
        """How its evaluations are judged: at every level of a range of budgets by a standard of its own."""
        walk, problem = self.problem.training_walk(self.config.agent.seed), self.problem
        if not isinstance(walk, CaseWalk):
            return one_case(standard(problem, None))
        return Cases({name: standard(problem, level) for name, level in problem.cases.items()}, walk.case_of)

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
        """Search until the budget is spent, from wherever the run is, then score the outcomes.

        Ctrl-C ends it early, and then nothing is scored any more.

        Raises:
            UserError: another process searches here, log and configuration do not belong together, or the
                run is of before layers were refitted as they are today.
        """
        with run_lock(self.folder):
            # Another process may have searched here since the log was read; and a searcher is used once.
            self.__dict__.pop("log", None)
            self.__dict__.pop("searcher", None)
            if self.problem.latency is not None:
                self.problem.latency.restart()
            check_refits(self.folder)
            write_config(self.folder, self.config, read_facts(self.folder))
            return self._search(callbacks, stop)

    def _search(self, callbacks: Sequence[Callback], stop: Callable[[], bool]) -> SearchResult:
        widths = {layer.name: layer.out_channels for layer in self.network.layers}
        writer = TensorBoardWriter(self.folder, self.log, self.config.flat(), widths)
        settings, final = self.config.search, dict[str, float]()
        try:
            with evaluating_with(self.evaluator, settings.workers, self.address) as evaluate:
                result = search(
                    self.searcher,
                    evaluate,
                    None,
                    self.log,
                    budget_evaluations=settings.evaluations,
                    time_budget=settings.time_budget,
                    checkpoint_every=settings.checkpoint_every,
                    proposals_per_round=settings.at_once,
                    callbacks=(writer, *callbacks),
                    stop=stop,
                    cases=self.cases(),
                )
            if result.ending != "interrupted":
                final = final_figures(result, self.outcomes())
        finally:
            writer.close(final)
        return result

    def outcomes(self) -> list[Outcome]:
        """Original, uniform, reference and best policy, scored on the test split before any fine-tuning.

        Of a range of budgets every level has its own, and what the trained actor alone gives there.

        Also written to `outcomes.json`, for those who have the run but not its data.
        """
        problem = self.problem
        original = self._tested_outcome(ORIGINAL, None, problem.original_score, problem.original_costs, "")
        best = self.log.best()
        outcomes = [original]
        for case in self.log.cases or [""]:
            leader = self.log.best(case)
            # A searcher that proposes the reference policy alone has one policy, under one name.
            reference = self.problem.reference_name
            rows = {} if leader is None else {reference: self.log.first(case), self.algorithm: leader}
            outcomes += [] if "uniform" in rows or not rows else [self._uniform_outcome(case)]
            outcomes += [self._outcome(name, row) for name, row in rows.items()]
            outcomes += self._actor_outcome(case)
        write_json(self.folder / OUTCOMES_FILE, [outcome.to_json() for outcome in outcomes])
        if best is not None and isinstance(self.task, Illustrated):
            networks = {"original": self._network_of(None), self.algorithm: self._network_of(best.policy)}
            self.task.save_examples(networks, self.folder)
        return outcomes

    def _uniform_outcome(self, case: str) -> Outcome:
        """The policy with one keep ratio for all layers, which no search proposes."""
        policy = self.problem.uniform_policy(self.problem.cases.get(case))
        found = self.evaluator([policy])[0]
        if self.problem.latency is not None:
            found = self.problem.latency.measure(found)
        return self._tested_outcome("uniform", policy, found.score, found.costs, case)

    def _outcome(self, name: str, row: Row) -> Outcome:
        return self._tested_outcome(name, row.policy, row.score, row.costs, row.case)

    def _actor_outcome(self, case: str) -> list[Outcome]:
        """What the trained actor gives at a level; nothing where there is one budget."""
        if not case:
            return []
        from agents.actor import load_actor  # it is made of runs

        actor = load_actor(self)
        assert actor is not None  # no other searcher takes a range
        policy = actor.policy(self.problem.walk(self.problem.cases[case]))
        found = self.evaluator([policy])[0]
        return [self._tested_outcome(ACTOR, policy, found.score, found.costs, case)]

    def _tested_outcome(
        self, name: str, policy: CompressionPolicy | None, score: float, costs: Mapping[str, float], case: str
    ) -> Outcome:
        """A row of the table; each policy is asked once on the test split."""
        key = policy.digest() if policy else "original"
        if key not in self._tested:
            self._tested[key] = score_and_further(self.task, self._network_of(policy), "test")
        test, further = self._tested[key]
        return Outcome(name, policy, score, test, dict(costs), case, further=further)

    def _network_of(self, policy: CompressionPolicy | None) -> nn.Module:
        evaluator = self.evaluator
        return evaluator.compressed(policy) if policy else self.network.copy().to(evaluator.device)


def start_run(
    folder: Path,
    config: RunConfig,
    model: nn.Module | None = None,
    task: Task | None = None,
    progress: Progress = lambda done, total: None,
) -> Run:
    """Set up a new run; its directory is made last, when nothing can fail any more.

    Args:
        folder: the run directory; must not exist or be empty.
        config: every setting.
        model, task: given as objects where no configuration names them.
        progress: hears of the random policies that are measured for a latency budget.

    Raises:
        UserError: anything does not fit.
    """
    check_new_folder(folder)
    learning_for = "range of budgets" if config.problem.varies else ""
    learning_for = "--start-from" if config.agent.start_from else learning_for
    check_searcher(config.agent.algorithm, config.problem.goal, learning_for)
    if config.agent.start_from and not (config.agent.start_from / CHECKPOINT_FOLDER).is_dir():
        raise UserError(f"--start-from {config.agent.start_from}: there is no trained agent in it.")
    if config.problem.varies:
        check_enough(config.search.evaluations, len(config.problem.budget_levels))
    if config.cooling.is_on:
        from agents.cooling import start_cooled  # it is made of runs

        return start_cooled(folder, config, model, task, progress)
    problem = _open_problem(config, model, task, progress=progress)
    try:
        if problem.walk().length == 0:
            raise UserError("Nothing is left to decide: every layer is frozen or has a single legal value.")
        if config.agent.start_from is None:
            settle_reference(problem)
        elif (config.agent.start_from / CONFIG_FILE).is_file():
            # The other agent's actions are relative to where it started, like those of a training on several
            # networks, which starts from the default.
            start_from(problem, read_facts(config.agent.start_from)["reference"])
        run = Run(folder, config, problem)
        _ = run.searcher  # refuses what it cannot work with while nothing is written yet
        if config.agent.start_from is not None:
            # Refused here if the other agent's networks do not fit, and not when the search begins.
            make_searcher(problem.training_walk(config.agent.seed), config.agent, config.search.evaluations)
        check_new_folder(folder)  # again: another process may have taken the name in the meantime
        folder.mkdir(parents=True, exist_ok=True)
        if "latency" in config.problem.active_costs:
            before = MeasuredBefore(problem.target.profile, problem.baseline.samples)
            write_latency(folder, before, problem.predictor_figures)
        write_config(folder, config, run_facts(problem))
    except BaseException:
        problem.close()
        raise
    return run


def load_run(
    folder: Path,
    model: nn.Module | None = None,
    task: Task | None = None,
    evaluations: int | None = None,
    time_budget: float | None = None,
) -> Run:
    """Open an existing run.

    Args:
        folder: the run directory.
        model, task: needed again if the run was started with objects.
        evaluations: another evaluation budget to continue with; the exploration keeps the schedule that it
            was started with, so that the evaluations so far are those of an uninterrupted search.
        time_budget: another time budget, in seconds.

    Raises:
        UserError: the folder holds no run, or what it names is gone or not what it was.
    """
    stored = read_config(folder)
    check_searcher(stored.agent.algorithm)
    if stored.cooling.is_on:
        from agents.cooling import load_cooled  # it is made of runs

        return load_cooled(folder, stored, model, task, evaluations, time_budget)
    config = continued(stored, evaluations, time_budget)
    facts = read_facts(folder)
    measured = read_latency(folder)
    samples = measured.samples if measured else ()
    baseline = Baseline(facts["original"]["score"], facts["original"]["costs"], samples)
    problem = _open_problem(config, model, task, baseline, measured.profile if measured else None)
    start_from(problem, facts["reference"])
    now = {"network": problem.network.fingerprint, "weights": problem.weights}
    changed = [name for name, value in now.items() if facts[name] != value]
    if changed:
        problem.close()
        raise UserError(f"{folder} was started with another model: its {' and '.join(changed)} differ.")
    if "latency" in config.problem.active_costs and facts["machine"]["cpu"] != cpu_model():
        problem.notes += ("This run was started on another CPU: its latencies cannot be compared.",)
    return Run(folder, config, problem)


def _open_problem(
    config: RunConfig,
    model: nn.Module | None,
    task: Task | None,
    baseline: Baseline | None = None,
    profile: Profile | None = None,
    progress: Progress = lambda done, total: None,
) -> Problem:
    """Build what a run works on; what can be refused cheaply is, before any data are read."""
    settings = with_reference(config.problem, config.agent.algorithm)
    device = prepare_device(config.source)
    target = get_target(config.problem.target)
    target.runtime_version  # noqa: B018 - asked for here, so that a missing runtime is noticed here
    if profile is not None:
        target.adopt(profile)
    if model is None or task is None:
        model, task = load_source(config.source)
    try:
        return build_problem(model, task, settings, device, target, baseline, progress)
    except BaseException:
        target.close()
        raise


def standard(problem: Problem, texts: Sequence[str] | None) -> Standard:
    """How policies are judged under a problem's budgets, or under others."""
    budgets = problem.budgets if texts is None else problem.parse_budgets(texts)
    limits = {budget.cost.name: budget.limit for budget in budgets}
    smallest = problem.config.minimize if problem.config.goal == "cost" else ""
    reward, confirmation = problem.make_reward(texts), problem.confirmation(texts)
    return Standard(reward, confirmation, limits, problem.least_score, smallest)


def run_facts(problem: Problem) -> dict[str, Any]:
    """Machine, versions, command and starting point of a run, for its configuration file."""
    return {
        "machine": describe_machine(),
        "packages": {name: installed_version(name) for name in PACKAGES},
        "target_version": problem.target.runtime_version,
        "network": problem.network.fingerprint,
        "weights": problem.weights,
        "refits": refits_of(problem.config),
        "original": {"score": problem.baseline.score, "costs": problem.baseline.costs},
        "score_name": problem.task.score_name,
        "reference": problem.reference_name,
        "latency_unit": problem.target.unit,
        "reward_images": len(problem.task.data.reward),
        "widths": {layer.name: layer.out_channels for layer in problem.network.layers},
        "blocks": [block.name for block in problem.network.blocks],
        "threads": torch.get_num_threads(),
        "command": shlex.join(sys.argv),
    }

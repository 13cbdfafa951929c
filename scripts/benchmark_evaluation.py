"""Where the milliseconds of one evaluation go, and what worker processes gain."""

import os
import statistics
import sys
import time
from contextlib import closing
from dataclasses import asdict, dataclass, field
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

if not __package__:  # started as a file: Python then looks in scripts/ and not in the folder above it
    sys.path[0] = str(Path(__file__).resolve().parents[1])

import torch
from rich.table import Table

from agents.config import AgentConfig
from agents.run_config import SourceConfig
from agents.searcher import make_searcher
from agents.source import load_source, prepare_device
from agents.workers import Evaluating, WorkerPool
from amc.errors import UserError
from amc.files import write_json
from amc.policy import CompressionPolicy
from amc.targets import describe_machine
from amc.targets.machine import allowed_cores
from envs.problem import Problem, ProblemConfig, build_problem
from scripts.cli import run
from scripts.evaluation_phases import Stopwatch, phases_of
from scripts.progress import print_table

AGENT_EPISODES = 5
"""Episodes that the agent is told once its buffer holds a batch; it learns nothing before."""


@dataclass(frozen=True)
class BenchmarkEvaluation:
    """Options of the measurement."""

    workers: int = len(allowed_cores())
    """Worker processes to compare with one; by default one for every core that may be used."""
    repeats: int = 8
    """Random policies to evaluate: one after the other in this process, and as many for each worker; one more
    comes first and is not counted."""
    json: Path | None = None
    """Also write the figures to this file."""
    source: SourceConfig = field(default_factory=SourceConfig)
    """The trained network and its data."""
    problem: ProblemConfig = field(default_factory=ProblemConfig)
    """Budget, reconstruction, images; without a latency."""
    agent: AgentConfig = field(default_factory=AgentConfig)
    """Who learns from the rewards."""


@dataclass(frozen=True)
class Figures:
    """What was measured.

    Attributes:
        phases: milliseconds of each part of one evaluation in this process, means, which add up to the whole
            evaluation; "agent" comes on top.
        in_process: seconds an evaluation in this process, with all of its threads.
        one_worker, all_workers: seconds an evaluation with one worker and with all.
        load: the machine's load average of a minute, before and after.
    """

    phases: dict[str, float]
    in_process: float
    one_worker: float
    all_workers: float
    load: tuple[float, float]

    def efficiency(self, workers: int) -> float:
        """Throughput of all workers, relative to as many times the throughput of one."""
        return self.one_worker / (workers * self.all_workers)


def main(options: BenchmarkEvaluation) -> None:
    """Where the milliseconds of one evaluation go, and what worker processes gain."""
    check(options)
    device = prepare_device(options.source)
    problem = build_problem(*load_source(options.source), options.problem, device)
    try:
        figures = measure(problem, options)
    finally:
        problem.close()
    print_table(table_of(figures, options.workers))
    print(
        f"{options.source.model}, {len(problem.task.data.reward)} reward images, "
        f"{sum(map(len, problem.evaluator.calibration))} calibration images, {len(allowed_cores())} cores; "
        f"load {figures.load[0]:.2f} before, {figures.load[1]:.2f} after"
    )
    if options.json is not None:
        write_json(options.json, to_json(figures, problem, options))


def check(options: BenchmarkEvaluation) -> None:
    """Refuse what cannot be measured or written, before anything is loaded."""
    if options.workers < 1 or options.repeats < 1:
        raise UserError("--workers and --repeats must be 1 or more.")
    if "latency" in options.problem.active_costs:
        raise UserError("Timing a target is no part of an evaluation's speed: give a budget without latency.")
    if options.json is not None and not options.json.parent.is_dir():
        raise UserError(f"There is no folder {options.json.parent} to write {options.json.name} to.")


def measure(problem: Problem, options: BenchmarkEvaluation) -> Figures:
    """All figures, of the same policies."""
    before = os.getloadavg()[0]
    searcher = make_searcher(problem.walk(), AgentConfig(algorithm="random"), 1)
    policies = searcher.ask(options.workers * (options.repeats + 1))
    phases = phases_of(problem.evaluator, policies[: options.repeats + 1])
    phases["agent"] = agent_milliseconds(problem, options.agent)
    here, one, several = (
        seconds_each(problem, workers, policies, options.repeats) for workers in (0, 1, options.workers)
    )
    return Figures(phases, here, one, several, (before, os.getloadavg()[0]))


def agent_milliseconds(problem: Problem, config: AgentConfig) -> float:
    """Median milliseconds in which the agent proposes one policy and learns from its reward."""
    walk = problem.walk()
    filling = config.batch_size // walk.length + 1
    searcher = make_searcher(walk, config, 2 * (filling + AGENT_EPISODES))
    taken: list[float] = []
    for reward in range(filling + AGENT_EPISODES):
        stopwatch = Stopwatch()
        with stopwatch("agent"):
            (policy,) = searcher.ask(1)
        evaluation = problem.evaluator.alone().complete(policy, 0.5, 0.0)
        with stopwatch("agent"):
            searcher.tell([evaluation], [float(reward)])
        taken.append(stopwatch.seconds["agent"])
    return 1e3 * statistics.median(taken[filling:])


def seconds_each(problem: Problem, workers: int, policies: list[CompressionPolicy], repeats: int) -> float:
    """Wall seconds an evaluation, in rounds of one policy a worker; 0 workers are this process."""
    at_once = max(1, workers)
    rounds = [policies[start : start + at_once] for start in range(0, at_once * (repeats + 1), at_once)]
    evaluator = problem.evaluator.alone()
    if not workers:
        return _seconds(evaluator, rounds)
    with closing(WorkerPool(evaluator, workers)) as pool:
        return _seconds(pool, rounds)


def _seconds(evaluate: Evaluating, rounds: list[list[CompressionPolicy]]) -> float:
    """The first round is not counted: processes start in it."""
    evaluate(rounds[0])
    started = time.perf_counter()
    for policies in rounds[1:]:
        evaluate(policies)
    return (time.perf_counter() - started) / sum(map(len, rounds[1:]))


def table_of(figures: Figures, workers: int) -> Table:
    """The figures as a person reads them."""
    table = Table("one evaluation", "ms", "share")
    whole = sum(figures.phases.values())
    for name, milliseconds in figures.phases.items():
        table.add_row(name, f"{milliseconds:,.1f}", f"{milliseconds / whole:.1%}")
    table.add_section()
    threads = torch.get_num_threads()
    table.add_row(f"in this process, {threads} thread{'s' if threads > 1 else ''}", _ms(figures.in_process))
    table.add_row("one worker, one thread", _ms(figures.one_worker))
    table.add_row(f"{workers} workers", _ms(figures.all_workers))
    table.add_row("worker efficiency", "", f"{figures.efficiency(workers):.2f}")
    return table


def _ms(seconds: float) -> str:
    return f"{1e3 * seconds:,.1f}"


def to_json(figures: Figures, problem: Problem, options: BenchmarkEvaluation) -> dict[str, Any]:
    """The figures with the circumstances under which they hold."""
    return {
        **asdict(figures),
        "workers": options.workers,
        "worker_efficiency": figures.efficiency(options.workers),
        "threads": torch.get_num_threads(),
        "model": options.source.model,
        "budget": list(options.problem.budgets),
        "reward_images": len(problem.task.data.reward),
        "calibration_images": sum(map(len, problem.evaluator.calibration)),
        "date": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "machine": describe_machine(),
    }


if __name__ == "__main__":
    run(main)

"""Evaluation in worker processes: the same results in the same order, whatever happens to a process."""

import multiprocessing
import os
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch

from agents.config import AgentConfig, SearchConfig
from agents.run import Run, load_run, start_run
from agents.run_config import RunConfig, SourceConfig
from agents.workers import WorkerPool
from amc.data import load_data
from amc.data.images import ImageData
from amc.errors import UserError
from amc.models import build_model
from amc.policy import CompressionPolicy
from amc.tasks import ClassificationTask
from amc.tasks.base import Task
from envs.problem import Problem, ProblemConfig, build_problem

PROBLEM = ProblemConfig(budget=("macs=0.5",), reward_images=40, calibration_images=40, reconstruct="none")


class DyingTask(ClassificationTask):
    """Kills the process that scores, as often as there are files to take away, or slows it down."""

    def __init__(self, data: ImageData, folder: Path):
        super().__init__(data)
        self.folder, self.parent = folder, os.getpid()

    def score(self, model: torch.nn.Module, split: str) -> float:
        if os.getpid() != self.parent:
            for file in sorted(self.folder.glob("die-*")):
                file.unlink()
                os.kill(os.getpid(), signal.SIGKILL)
            for file in sorted(self.folder.glob("wait-*")):
                file.unlink(missing_ok=True)
                time.sleep(0.5)
        return super().score(model, split)


@pytest.fixture(scope="module")
def model() -> torch.nn.Module:
    torch.manual_seed(0)
    return build_model("digitsnet", in_channels=1)


def problem_of(model: torch.nn.Module, task: Task) -> Problem:
    return build_problem(model, task, PROBLEM)


def policies(problem: Problem, count: int) -> list[CompressionPolicy]:
    walk, drawn = problem.walk(), []
    generator = torch.Generator().manual_seed(1)
    for _ in range(count):
        walk.reset()
        done = False
        while not done:
            action = torch.rand(walk.action_size, generator=generator) * 2 - 1
            _, _, done = walk.step(action.numpy())
        drawn.append(walk.policy())
    return drawn


@pytest.fixture
def pool_of() -> Iterator[Callable[[Problem, int], WorkerPool]]:
    pools: list[WorkerPool] = []

    def make(problem: Problem, workers: int) -> WorkerPool:
        pools.append(WorkerPool(problem.evaluator, workers))
        return pools[-1]

    yield make
    for pool in pools:
        pool.close()
    assert not multiprocessing.active_children()


def test_workers_give_what_one_process_gives_in_the_order_of_the_policies(model, tmp_path, pool_of):
    task = DyingTask(load_data("digits"), tmp_path)
    alone, shared = problem_of(model, task), problem_of(model, task)
    tried = policies(alone, 3)
    tried.append(tried[0])  # met twice in one round
    (tmp_path / "wait-0").touch()  # whoever scores first is late

    pool = pool_of(shared, 2)
    expected, found = alone.evaluator(tried), pool(tried)

    assert [e.policy for e in found] == [e.policy for e in expected]
    assert [e.score for e in found] == [e.score for e in expected]
    assert [e.costs for e in found] == [e.costs for e in expected]
    assert [e.cached for e in found] == [False, False, False, True]
    workers = list(pool._workers)
    pool.close()
    # Killed ones would leave semaphores behind, and Python would complain of them at the end.
    assert [worker.process.exitcode for worker in workers] == [0, 0]


class Told:
    """A crew, and each of its workers, that notes what it is told."""

    def __init__(self) -> None:
        self.heard: list[str] = []

    def start(self) -> "Told":
        return self

    def dismiss(self) -> None:
        self.heard.append("dismiss")

    def stop(self) -> str:
        self.heard.append("stop")
        return ""


def test_nobody_is_waited_for_before_all_workers_were_told_to_end(model):
    """A busy one takes its time: three of them, one after the other, would take it three times."""
    told = Told()
    WorkerPool(
        problem_of(model, ClassificationTask(load_data("digits"))).evaluator, 3, lambda _: told
    ).close()
    assert told.heard == 3 * ["dismiss"] + 3 * ["stop"]


def test_a_worker_that_dies_is_replaced_and_its_policy_evaluated_again(model, tmp_path, pool_of):
    problem = problem_of(model, DyingTask(load_data("digits"), tmp_path))
    (tmp_path / "die-0").touch()

    found = pool_of(problem, 1)(policies(problem, 2))

    assert [e.policy for e in found] == policies(problem, 2)
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
def test_two_deaths_over_one_policy_end_with_a_sentence(model, tmp_path, pool_of):
    problem = problem_of(model, DyingTask(load_data("digits"), tmp_path))
    for index in range(2):
        (tmp_path / f"die-{index}").touch()

    with pytest.raises(UserError, match=r"died over the same policy.*exit code -9"):
        pool_of(problem, 1)(policies(problem, 1))


@pytest.mark.slow
def test_a_refusal_in_a_worker_is_the_same_sentence_here(model, tmp_path, pool_of):
    problem = problem_of(model, ClassificationTask(load_data("digits")))
    torch.manual_seed(0)
    other = problem_of(build_model("digitsnet", in_channels=1, width=0.5), problem.task)
    (foreign,) = policies(other, 1)

    with pytest.raises(UserError) as here:
        problem.evaluator([foreign])
    with pytest.raises(UserError) as there:
        pool_of(problem, 1)([foreign])

    assert str(there.value) == str(here.value)


def test_a_task_that_cannot_be_sent_is_refused(model):
    task = ClassificationTask(load_data("digits"))
    task.extra = lambda: None
    with pytest.raises(UserError, match="cannot be sent to another process"):
        WorkerPool(problem_of(model, task).evaluator, 2)


def searched(run: Run) -> list[tuple[str, float, float]]:
    run.search()
    return [(row.digest, row.score, row.reward) for row in run.log.rows]


@pytest.mark.slow
def test_a_run_with_workers_has_the_same_log_whether_interrupted_or_not(model, tmp_path):
    task = ClassificationTask(load_data("digits"))
    agent = AgentConfig(algorithm="random", seed=3)
    config = RunConfig(SourceConfig(threads=1), PROBLEM, agent, SearchConfig(evaluations=6, workers=2))
    whole = searched(start_run(tmp_path / "whole", config, model, task))
    run = start_run(tmp_path / "cut", config, model, task)

    def interrupt(row, log) -> None:
        if len(log) == 3:  # in the middle of the second round
            raise KeyboardInterrupt

    assert run.search([interrupt]).ending == "interrupted"
    assert not multiprocessing.active_children()
    assert searched(load_run(tmp_path / "cut", model, task)) == whole

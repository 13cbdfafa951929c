"""Workers and trials on a Ray cluster: two nodes of one machine find what local processes find."""

import os
import shutil
import tempfile
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from agents.ray_session import ray_session
from agents.run import Run, load_run, start_run
from agents.run_config import RunConfig
from agents.sweep import run_sweep
from agents.workers import evaluating_with
from amc.data import load_data
from amc.errors import UserError
from envs.problem import build_problem
from tests.sweep_pieces import BASE, figures, tiny_network
from tests.test_sweep import Killer, log_of, trials, uninterrupted
from tests.test_workers import DyingTask, policies

pytestmark = pytest.mark.extra("cluster")

TWO = replace(BASE, search=replace(BASE.search, workers=2))


@pytest.fixture(scope="module")
def cluster() -> Iterator[str]:
    """Address of two nodes with one core each."""
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    from ray.cluster_utils import Cluster

    folder = tempfile.mkdtemp(prefix="amc-ray-", dir="/tmp")  # pytest's own is too long for a socket
    head = {"num_cpus": 1, "include_dashboard": False, "temp_dir": folder}
    # Ray writes the address there whatever the temp_dir, and fails where no earlier cluster has made it.
    (Path(tempfile.gettempdir()) / "ray").mkdir(exist_ok=True)
    nodes = Cluster(initialize_head=True, head_node_args=head)
    nodes.add_node(num_cpus=1)
    yield nodes.address
    nodes.shutdown()
    shutil.rmtree(folder, ignore_errors=True)


def searched(run: Run, address: str | None = None) -> list[object]:
    run.address = address
    run.search()
    run.problem.close()
    return figures(run.log)


@pytest.mark.slow
def test_an_actor_scores_what_a_process_scores(tmp_path: Path):
    task = DyingTask(load_data("digits", side=16), tmp_path)
    problem, alone = (build_problem(tiny_network(), task, BASE.problem) for _ in range(2))
    tried = policies(problem, 3)
    (tmp_path / "die-0").touch()  # the first actor is killed over its first policy
    # The address is not looked at, as there is a connection.
    with ray_session(cores=1), evaluating_with(problem.evaluator, 1, "here") as evaluate:
        found = evaluate([*tried, tried[0]])
    expected = alone.evaluator([*tried, tried[0]])
    assert not list(tmp_path.iterdir())
    assert [(e.policy, e.score, e.costs, e.cached) for e in found] == [
        (e.policy, e.score, e.costs, e.cached) for e in expected
    ]


@pytest.mark.slow
def test_the_log_is_that_of_local_workers_also_where_a_run_moves(cluster: str, tmp_path: Path):
    config: RunConfig = TWO
    local = searched(start_run(tmp_path / "local", config))
    run = start_run(tmp_path / "moved", config)
    run.address = cluster

    def interrupt(row, log) -> None:
        if len(log) == 3:  # in the middle of a round
            raise KeyboardInterrupt

    assert run.search([interrupt]).ending == "interrupted"
    run.problem.close()
    assert searched(load_run(tmp_path / "moved")) == local
    assert searched(start_run(tmp_path / "remote", config), cluster) == local


@pytest.mark.slow
def test_more_workers_than_the_cluster_has_cores_are_refused(cluster: str, tmp_path: Path):
    run = start_run(tmp_path / "run", replace(TWO, search=replace(TWO.search, workers=3)))
    with pytest.raises(UserError, match="--workers 3 is more than the 2 cores of the cluster"):
        searched(run, cluster)


@pytest.mark.slow
def test_trials_on_two_nodes_survive_their_processes(cluster: str, tmp_path: Path):
    both, killer = trials(0, 1), Killer(2, 4)
    assert run_sweep(both, tmp_path / "sweep", address=cluster, listener=killer) == {}
    assert not killer.left
    for trial in both:
        assert figures(log_of(tmp_path / "sweep", trial)) == uninterrupted(tmp_path / trial.name, trial)


@pytest.mark.slow
def test_a_trial_that_fits_no_node_is_refused(cluster: str, tmp_path: Path):
    with pytest.raises(UserError, match="takes 2 cores"):
        run_sweep(trials(workers=2), tmp_path, address=cluster)


@pytest.mark.slow
def test_a_cluster_that_does_not_answer_is_one_sentence():
    refused = pytest.raises(UserError, match=r"The Ray cluster at 127.0.0.1:9 cannot be used: .*refused")
    with refused, ray_session("127.0.0.1:9"):
        pass

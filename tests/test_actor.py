"""The exported actor: equal to torch's, with a contract that describes the observations there really are."""

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from torch import nn

from agents.actor import export_actor, load_actor
from agents.actor_file import ACTOR_FILE, CONTRACT_FILE, roll_actor
from agents.config import AgentConfig, SearchConfig
from agents.episode import play
from agents.run import Run, run_facts
from agents.run_config import RunConfig, SourceConfig, write_config
from amc.data import load_data
from amc.errors import UserError
from amc.tasks import ClassificationTask
from envs.problem import Problem, build_problem
from envs.problem_config import ProblemConfig
from tests.test_search import ToyWalk

PROBLEM = ProblemConfig(budget=("macs=0.4", "size=0.1"), reward_images=60, calibration_images=40)
EVALUATIONS = 6


def tiny_network() -> nn.Module:
    """Three layers to decide, for the digits at 16 x 16 pixels."""
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(1, 8, 3, 2, 1),
        nn.BatchNorm2d(8),
        nn.ReLU(),
        nn.Conv2d(8, 12, 3, 2, 1),
        nn.BatchNorm2d(12),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(12, 10),
    )


def tiny_config(algorithm: str = "ddpg") -> RunConfig:
    agent = AgentConfig(algorithm=algorithm, warmup_evaluations=2, hidden_sizes=(16, 12))
    return RunConfig(SourceConfig(), PROBLEM, agent, SearchConfig(evaluations=EVALUATIONS))


@pytest.fixture(scope="module")
def problem() -> Iterator[Problem]:
    task = ClassificationTask(load_data("digits", side=16))
    problem = build_problem(tiny_network(), task, PROBLEM)
    yield problem
    problem.close()


def new_run(folder: Path, config: RunConfig, problem: Problem) -> Run:
    """A run like `start_run`'s, of a problem that several share."""
    write_config(folder, config, run_facts(problem))
    return Run(folder, config, problem)


@pytest.fixture(scope="module", params=["ddpg", "td3", "sac"])
def run(request: pytest.FixtureRequest, problem: Problem, tmp_path_factory: pytest.TempPathFactory) -> Run:
    """A finished search, opened again as another process would."""
    folder, config = tmp_path_factory.mktemp(request.param), tiny_config(request.param)
    new_run(folder, config, problem).search()
    return Run(folder, config, problem)


def actions(path: Path, observations: np.ndarray) -> np.ndarray:
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    result: np.ndarray = session.run(["action"], {"observation": observations})[0]
    return result


def test_onnx_actions_equal_torch(run: Run):
    path, actor = export_actor(run), load_actor(run)
    assert path == run.folder / ACTOR_FILE and actor is not None
    assert (actor.evaluations, actor.updates > 0) == (EVALUATIONS, True)
    walk, rng = run.problem.walk(), np.random.default_rng(1)
    # Far outside of [0, 1], where the squashing shows; what is alive is still 0 or 1.
    observations = rng.normal(size=(64, walk.observation_size), scale=5.0).astype(np.float32)
    observations[:, walk.alive] = rng.integers(2, size=(64, walk.action_size))
    asked, expected = actions(path, observations), actor.act(observations)
    assert asked.shape == (64, 2) and asked.dtype == np.float32
    assert np.abs(asked - expected).max() <= 1e-5
    assert np.abs(asked).max() <= 1.0 and asked.std(axis=0).min() > 1e-3
    assert np.allclose(actions(path, observations[:1]), asked[:1], atol=1e-6)


def test_rolled_policy_equals_that_of_the_deterministic_actor(run: Run):
    path, actor = export_actor(run), load_actor(run)
    assert path is not None and actor is not None
    policy = roll_actor(path, run.problem.walk())
    assert policy == play(run.problem.walk(), actor.act).policy
    costs = run.evaluator.costs_of(policy)
    assert all(costs[budget.cost.name] <= budget.limit for budget in run.problem.budgets)
    # Another actor decides otherwise: the file's weights are what decides.
    model = onnx.load(path)
    last = next(each for each in model.graph.initializer if each.dims == [2])
    last.CopyFrom(onnx.numpy_helper.from_array(np.full(2, -9.0, dtype=np.float32), last.name))
    onnx.save(model, run.folder / "other.onnx")
    assert roll_actor(run.folder / "other.onnx", run.problem.walk()) != policy


def test_loading_leaves_the_searcher_of_the_run_alone(run: Run):
    before = run.searcher.metrics(0)
    assert load_actor(run) is not None and run.searcher.metrics(0) == before
    fresh = run.searcher.state_dict()["model"]["counters"]
    assert fresh["_n_updates"] == 0


def test_contract_describes_the_observations(problem: Problem, run: Run):
    export_actor(run)
    contract = json.loads((run.folder / CONTRACT_FILE).read_text())
    walk = problem.walk()
    parts = contract["observation"]
    assert [part["offset"] for part in parts] == np.cumsum([0, *(p["size"] for p in parts)])[:-1].tolist()
    assert sum(part["size"] for part in parts) == contract["observation_size"] == walk.observation_size
    assert all(len(part["entries"]) == part["size"] and part["meaning"] for part in parts)
    episode = play(walk, lambda seen: np.full(2, 0.5))
    for point, seen in zip(contract["points"], episode.observations, strict=False):
        entry = {
            (part["name"], name): float(seen[part["offset"] + index])
            for part in parts
            for index, name in enumerate(part["entries"])
        }
        for name, value in point["layer"].items():
            assert entry["layer", name] == pytest.approx(value, abs=1e-6)
        assert entry["one_hot", point["name"]] == 1.0
        assert entry["budget", "macs"] == pytest.approx(0.4) and entry["budget", "size"] == pytest.approx(0.1)
    # In the terminal observation every decision is made: width 4 of 8 reads 0.5.
    last = dict(zip(parts[-1]["entries"], episode.observations[-1][parts[-1]["offset"] :], strict=True))
    for point, width in episode.policy.values("width").items():
        layer = next(each for each in problem.network.layers if each.name == point)
        if f"{point}/width" in last and layer.name != problem.network.layers[-1].name:
            assert last[f"{point}/width"] == pytest.approx(width / layer.out_channels)


def test_contract_and_file_say_what_they_are_for(problem: Problem, run: Run):
    path = export_actor(run)
    assert path is not None
    contract = json.loads((run.folder / CONTRACT_FILE).read_text())
    said = {each.key: json.loads(each.value) for each in onnx.load(path).metadata_props}
    assert said["amc.network"] == contract["network"] == problem.network.fingerprint
    assert said["amc.budgets"] == contract["budgets"] == list(PROBLEM.budget)
    assert said["amc.algorithm"] == contract["algorithm"] == run.algorithm
    assert said["amc.evaluations"] == contract["evaluations"] == EVALUATIONS
    assert [point["name"] for point in contract["points"]] == [
        problem.space.points[row].name for row in problem.walk().rows
    ]
    assert contract["knobs"] == ["width", "weight_bits"]  # no budget depends on the activations' bits


@pytest.mark.parametrize("algorithm", ["random", "uniform"])
def test_searchers_without_an_actor_export_none(problem: Problem, tmp_path: Path, algorithm: str):
    run = Run(tmp_path, tiny_config(algorithm), problem)
    assert load_actor(run) is None and export_actor(run) is None
    assert not list(tmp_path.iterdir())


def test_missing_and_foreign_checkpoints_are_one_sentence(problem: Problem, tmp_path: Path):
    with pytest.raises(UserError, match="has no checkpoint yet"):
        export_actor(Run(tmp_path, tiny_config(), problem))
    new_run(tmp_path, tiny_config(), problem).search()
    other = replace(tiny_config(), agent=replace(tiny_config().agent, hidden_sizes=(8,)))
    with pytest.raises(UserError, match="does not fit its log"):
        export_actor(Run(tmp_path, other, problem))
    log = tmp_path / "evaluations.jsonl"
    log.write_text("".join(log.read_text().splitlines(keepends=True)[:-1]))
    with pytest.raises(UserError, match="does not fit its log"):
        export_actor(Run(tmp_path, tiny_config(), problem))
    assert not (tmp_path / ACTOR_FILE).exists()


def test_files_that_are_no_actor_of_this_problem_are_one_sentence(run: Run, tmp_path: Path):
    with pytest.raises(UserError, match="There is no actor"):
        roll_actor(tmp_path / ACTOR_FILE, run.problem.walk())
    (tmp_path / "noise.onnx").write_bytes(b"no model")
    with pytest.raises(UserError, match="not an ONNX file"):
        roll_actor(tmp_path / "noise.onnx", run.problem.walk())
    path = export_actor(run)
    assert path is not None
    with pytest.raises(UserError, match="trained for another one"):
        roll_actor(path, ToyWalk())

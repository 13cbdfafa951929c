"""`apply_agent.py`: an exported actor compresses a network unsearched, and refuses what does not fit."""

import ast
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from agents.actor import load_actor
from agents.actor_file import load_actor_file
from agents.credit import credit, reward_of
from agents.episode import play
from agents.run import load_run
from amc.package import load_package
from amc.policy import CompressionPolicy
from scripts import apply_agent, export_policy
from scripts.cli import exit_code
from tests.test_architecture import ROOMS, parsed
from tests.test_run import ROOT, call, tiny_model

RANGE = ["--budget", "macs=0.3..0.7", "--levels", "3", "--candidates", "8", "--evaluations", "10"]
SOURCE = ["--model", "tests.test_run:tiny_model", "--data", "tests.test_run:tiny_data", "--device", "cpu"]


@pytest.fixture(autouse=True)
def _surroundings(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)  # the tiny network is given by an import path of the tests


def trained(folder: Path, name: str, *options: str) -> Path:
    """An actor trained and exported through the command lines."""
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(ROOT)
        assert call(*RANGE, *options, "--runs", folder, "--name", name) == 0
        run = ["--run", str(folder / name), "--actor", "--out", str(folder / f"{name}-actor")]
        assert exit_code(export_policy.main, run) == 0
    return folder / f"{name}-actor" / "actor.onnx"


@pytest.fixture(scope="module")
def fixed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An actor for networks of as many decisions."""
    return trained(tmp_path_factory.mktemp("fixed"), "run")


@pytest.fixture(scope="module")
def general(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An actor for any network."""
    return trained(tmp_path_factory.mktemp("general"), "run", "--observation", "summary")


def deeper_model() -> nn.Module:
    return tiny_model(5)


def quantized_elsewhere() -> nn.Module:
    """A linear network: it has no width to decide."""
    torch.manual_seed(0)
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 10))


def apply(*arguments: object) -> int:
    return exit_code(apply_agent.main, [*SOURCE, *map(str, arguments)])


def test_the_actor_alone_is_exported_with_critic_and_contract(fixed: Path):
    assert {path.name for path in fixed.parent.iterdir()} == {"actor.onnx", "critic.onnx", "actor.json"}
    contract = json.loads(fixed.with_name("actor.json").read_text())
    assert contract["legal_budgets"] == [
        {"cost": "macs", "lowest": pytest.approx(0.3), "highest": pytest.approx(0.7)}
    ]
    assert contract["critic"]["mean_error"] >= 0.0 and -1.0 <= contract["critic"]["correlation"] <= 1.0
    assert contract["problem"]["calibration_images"] == 40 and "budget" not in contract["problem"]


def test_actor_and_critic_agree_with_torch(fixed: Path):
    run = load_run(fixed.parent.parent / "run")
    actor, exported = load_actor(run), load_actor_file(fixed)
    assert actor is not None
    episode = exported.decide(run.problem.walk(["macs=0.43"]))
    again = play(run.problem.walk(["macs=0.43"]), actor.act)
    assert episode.policy == again.policy
    value = actor.value(episode.observations[-2:-1], episode.actions[-1:])
    expected = reward_of(float(value[0, 0]), len(episode.actions))
    assert exported.expected_reward(episode) == pytest.approx(expected, abs=1e-4)
    thought, real = actor.mistakes()
    assert len(real) == 10 and real == pytest.approx([row.reward for row in run.log.rows], rel=1e-5, abs=1e-6)
    assert np.isfinite(thought).all()


@pytest.mark.parametrize(("reward", "length"), [(0.7, 4), (-0.5, 40), (-3.0, 4), (-40.0, 60)])
def test_credits_give_their_reward_back(reward: float, length: int):
    assert reward_of(credit(reward, length), length) == pytest.approx(reward)


def test_an_actor_compresses_the_network_and_says_how_sure_it_was(
    fixed: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    assert apply("--actor", fixed, "--budget", "macs=0.43", "--out", tmp_path / "out") == 0
    said = capsys.readouterr().out
    start = load_run(fixed.parent.parent / "run").problem.reference_name
    assert all(name in said for name in ("original", start, "actor", "The critic expected"))
    policy = CompressionPolicy.load(tmp_path / "out" / "policy.json")
    told = json.loads((tmp_path / "out" / "applied.json").read_text())
    assert told["policy"] == policy.digest() and 0 <= told["expected_score"] <= 1
    seconds = told["seconds"]
    assert 0 < seconds["decisions"] < seconds["decided_and_scored"] < seconds["total"]
    assert f"{seconds['total']:.1f} s in all: {seconds['decisions']:.2f} s for the actor's decisions" in said
    run = load_run(fixed.parent.parent / "run")
    assert run.evaluator.costs_of(policy)["macs"] <= 0.43 * run.network.macs
    assert load_package(tmp_path / "out", run.network).policy == policy
    assert (tmp_path / "out" / "model.onnx").is_file()
    assert apply("--actor", fixed, "--budget", "macs=0.43", "--out", tmp_path / "out") == 2


def test_a_general_actor_goes_on_to_another_network(general: Path, tmp_path: Path):
    options = ["--actor", general, "--budget", "macs=0.5", "--out", tmp_path / "out"]
    assert apply(*options, "--model", "tests.test_apply_agent:deeper_model") == 0
    assert len(CompressionPolicy.load(tmp_path / "out" / "policy.json").decisions) == 6


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--budget", "macs=0.1"], "lies outside"),
        (["--budget", "size=0.5"], "knows budgets of macs"),
        (["--budget", "macs=0.3..0.5"], "one budget at a time"),
        (["--budget", "macs=0.5", "--model", "tests.test_apply_agent:deeper_model"], "--observation summary"),
        (["--budget", "macs=1", "--model", "tests.test_apply_agent:quantized_elsewhere"], "offers nothing"),
    ],
)
def test_what_does_not_fit_the_contract_is_one_sentence(
    fixed: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], options: list[str], words: str
):
    assert apply("--actor", fixed, *options, "--out", tmp_path / "out") == 2
    error = capsys.readouterr().err
    assert words in error and error.startswith("error: ") and error.count("\n") == 1
    assert not (tmp_path / "out").exists()


def test_damaged_files_are_one_sentence(fixed: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    copy = tmp_path / "actor.onnx"
    assert apply("--actor", copy, "--budget", "macs=0.5") == 2
    copy.write_bytes(fixed.read_bytes())
    assert apply("--actor", copy, "--budget", "macs=0.5") == 2
    (tmp_path / "actor.json").write_text('{"format": "amc-actor", "version": 1}')
    assert apply("--actor", copy, "--budget", "macs=0.5") == 2
    error = capsys.readouterr().err
    assert error.count("error: ") == error.count("\n") == 3
    assert "There is no actor" in error and "is not the contract" in error


def loaded_with(module: str) -> tuple[set[str], set[str]]:
    """Modules of the project that importing one loads, and the other packages that they need at once."""
    found, others, pending = set(), set(), [module]
    while pending:
        name = pending.pop()
        path = ROOT / f"{name.replace('.', '/')}.py"
        path = path if path.is_file() else ROOT / name.replace(".", "/") / "__init__.py"
        if name in found or not path.is_file():
            continue
        found.add(name)
        for node in parsed(path).body:
            modules = [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            modules += [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            pending += [each for each in modules if each.split(".")[0] in ROOMS]
            others |= {each.split(".")[0] for each in modules} - set(ROOMS)
    return found, others


def test_applying_needs_no_stable_baselines():
    modules, packages = loaded_with("scripts.apply_agent")
    assert {"agents.apply", "agents.export", "envs.walk"} <= modules
    assert "onnxruntime" in packages and "stable_baselines3" not in packages


def test_a_policy_for_any_budget_is_exported_from_the_run(fixed: Path, tmp_path: Path):
    run = str(fixed.parent.parent / "run")
    out = tmp_path / "out"
    assert exit_code(export_policy.main, ["--run", run, "--budget", "macs=0.61", "--out", str(out)]) == 0
    costs = load_run(Path(run)).evaluator.costs_of(CompressionPolicy.load(out / "policy.json"))
    assert costs["macs"] <= 0.61 * load_run(Path(run)).network.macs
    assert exit_code(export_policy.main, ["--run", run, "--budget", "macs=0.9", "--out", f"{out}2"]) == 2

"""Runs: what compress gives back, every searcher and goal, and being killed."""

import json
import multiprocessing
import random
import signal
import sys
import time
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import replace
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from torch import nn

import tests.test_run as runs
from agents.compress import compress, finish
from agents.config import SearchConfig
from agents.log import EvaluationLog, Row
from agents.report_data import Record, load_record
from agents.report_text import verdict
from agents.run import Run
from amc.network import trace
from amc.policy import CompressionPolicy
from amc.targets.meter import LatencyMeter
from envs.problem import build_problem
from scripts import train_agent
from scripts.cli import exit_code
from tests.test_run import (
    AGENT,
    FAKE,
    PROBLEM,
    TINY,
    FakeTarget,
    InterruptAt,
    call,
    config,
    load,
    rows,
    same,
    start,
    tiny_data,
    tiny_model,
    tiny_task,
)

# Fixtures are found by name in the module that uses them.
_surroundings, whole = runs._surroundings, runs.whole


def test_compress_returns_a_smaller_working_module(tmp_path: Path):
    model, data = tiny_model(), tiny_data()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    heard: list[int] = []
    result = compress(
        model,
        data,
        budget=["macs=0.4", "size=0.2"],
        agent=AGENT,
        search=SearchConfig(evaluations=6),
        folder=tmp_path / "run",
        callbacks=[lambda row, log: heard.append(row.index)],
    )
    assert heard == list(range(6)) and result.ending == "budget"
    logits = result.model(data.normalised("test"))
    assert logits.shape == (60, 10) and torch.isfinite(logits).all()
    small = result.model.get_submodule("0")
    assert isinstance(small, nn.Conv2d) and small.weight.shape[0] == result.policy["0"].values["width"] < 8
    best = {outcome.name: outcome for outcome in result.outcomes}["ddpg"]
    assert best.costs["macs"] <= 0.4 * result.run.network.macs
    assert best.policy == result.policy == CompressionPolicy.load(tmp_path / "run" / "policy.json")
    assert all(tensor.equal(before[name]) for name, tensor in model.state_dict().items())


def test_compress_hands_ctrl_c_on_and_says_where_to_continue(tmp_path: Path, whole: Run):
    folder = tmp_path / "run"
    with pytest.raises(KeyboardInterrupt, match=f"policy.json, continue with --resume {folder}"):
        compress(
            tiny_model(),
            tiny_data(),
            problem=PROBLEM,
            agent=AGENT,
            search=SearchConfig(evaluations=12),
            folder=folder,
            callbacks=[InterruptAt(4)],
        )
    compressed = finish(load(folder))
    assert same(folder, whole.folder) and compressed.policy == whole.best_policy


@pytest.mark.parametrize("algorithm", ["td3", "sac", "random", "uniform", "balanced"])
def test_every_searcher_runs(tmp_path: Path, algorithm: str):
    run = start(tmp_path / "run", config(7, algorithm=algorithm))
    result = run.search()
    assert (result.ending, len(run.log)) == (
        ("exhausted", 1) if algorithm in ("uniform", "balanced") else ("budget", 7)
    )
    names = [outcome.name for outcome in run.outcomes()]
    assert names == list(dict.fromkeys(["original", "uniform", run.problem.reference_name, algorithm]))


@pytest.mark.parametrize("cost", ["macs", "params"])
def test_smallest_network_within_a_drop(tmp_path: Path, cost: str):
    name = "small"
    goal = ("--goal", "cost", "--minimize", cost, "--max-drop", 30, "--evaluations", 8)
    assert call(*goal, "--runs", tmp_path, "--name", name) == 0
    log = EvaluationLog(tmp_path / name / "evaluations.jsonl")
    original = yaml.safe_load((tmp_path / name / "config.yaml").read_text())["facts"]["original"]
    for row in log.rows:
        excess = max(0.0, original["score"] - row.score - 0.3)
        halvings = np.log2(original["costs"][cost] / row.costs[cost])
        assert row.reward == pytest.approx(halvings - excess / 0.01)
        assert row.feasible == (excess < 1e-9)
    best = log.best()
    assert best is not None and best.costs[cost] == min(row.costs[cost] for row in log.rows if row.feasible)


def test_where_no_network_is_within_the_drop_one_sentence_says_so(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    goal = ("--goal", "cost", "--minimize", "params", "--budget", "params=0.1", "--max-drop", 0)
    rest = ("--reward", "paper", "--evaluations", 6, "--runs", tmp_path, "--name", "lossy")
    assert call(*goal, *rest) == 0
    words = " ".join(capsys.readouterr().out.split())
    assert "--reward paper pays for accuracy and params alone and knows no allowed drop" in words
    log = EvaluationLog(tmp_path / "lossy" / "evaluations.jsonl")
    best = log.best()
    assert best is not None and not any(row.feasible for row in log.rows)
    assert best.score == max(row.score for row in log.rows)
    record = load_record(tmp_path / "lossy")
    lost = f"{100 * (record.original.reward_score - best.score):.2f} points of accuracy on the reward split."
    said = "No network of this search is within --max-drop 0: the most accurate, in policy.json, loses"
    assert f"{said} {lost}" in words
    assert f"is within the allowed drop of 0.00 points: the most accurate loses {lost}" in plain(record)


def plain(record: Record) -> str:
    """The report's first sentence, with ordinary spaces."""
    return verdict(record)[0].replace("\N{NO-BREAK SPACE}", " ")


LATENCY = (
    *("--goal", "cost", "--minimize", "latency", "--max-drop", 20, "--evaluations", 8),
    *("--target", FAKE),
)


def test_fastest_network_within_a_drop(tmp_path: Path):
    assert call(*LATENCY, "--runs", tmp_path, "--name", "fast") == 0
    outcomes = json.loads((tmp_path / "fast" / "outcomes.json").read_text())
    original, uniform, _, best = (outcome["costs"]["latency"] for outcome in outcomes)
    assert 0 < best < original and 0 < uniform < original
    widths = {row["policy"]["decisions"][0]["values"]["width"] for row in rows(tmp_path / "fast")}
    assert widths <= {2, 4, 6, 8}  # the target's multiple


def test_latency_rewards_survive_a_target_that_has_become_slower(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """An unreliable reference is not cached, so a resumed run must not measure it again."""
    monkeypatch.setattr(FakeTarget, "reliable", False)
    settings = replace(config(), problem=replace(PROBLEM, goal="cost", target=FAKE))
    start(tmp_path / "whole", settings).search()
    run = start(tmp_path / "cut", settings)
    run.search([InterruptAt(6)])
    monkeypatch.setattr(FakeTarget, "speed", 3e-4)
    resumed = load(tmp_path / "cut")
    assert resumed.problem.original_costs["latency"] == run.problem.original_costs["latency"]
    resumed.search()
    assert same(tmp_path / "cut", tmp_path / "whole")


def test_meter_measures_beside_the_original_and_remembers_on_disk():
    network, target = trace(tiny_model(), tiny_task().example_input()), FakeTarget()
    meter = LatencyMeter(network, target)
    before = target.measured
    policy = CompressionPolicy(network.fingerprint, ())
    assert meter.timing(policy, network.copy()).ratio == pytest.approx(1.0)
    assert meter.timing(policy, network.copy()).ratio == pytest.approx(1.0)
    again = LatencyMeter(network, target)
    assert again.timing(policy, network.copy()).ratio == 1.0 and target.measured == before + 1
    assert [path.name for path in Path(meter._folder.name).iterdir()] == ["original.onnx"]
    for each in (meter, again):
        each.close()
    assert not Path(meter._folder.name).exists()


def test_bits_are_asked_of_the_target_only_where_weights_are_quantized(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(FakeTarget, "weight_bits_exact", 7)

    def notes(**settings: Any) -> tuple[str, ...]:
        fake = replace(PROBLEM, target=FAKE, **settings)
        return build_problem(tiny_model(), tiny_task(), fake).notes

    assert notes() == ()
    assert "at most 7 bits here" in notes(budget=("size=0.2",))[0]
    assert "8-bit weights" in notes(weight_bits=(4, 8))[0]


def test_ctrl_c_ends_cleanly(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    def interrupt(progress: object, row: Row, log: EvaluationLog) -> None:
        if row.index == 3:
            signal.raise_signal(signal.SIGINT)

    monkeypatch.setattr(train_agent.SearchProgress, "__call__", interrupt)
    folder = tmp_path / "run"
    # A job that a shell started in the background ignores SIGINT, and so would these tests in it.
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        assert call("--evaluations", 9, "--runs", tmp_path, "--name", "run") == 130
    finally:
        signal.signal(signal.SIGINT, before)
    said = capsys.readouterr().err.splitlines()[-1]
    assert said.startswith("interrupted; the best policy so far is in")
    assert said.endswith(f"continue with --resume {folder}")
    best = EvaluationLog(folder / "evaluations.jsonl").best()
    assert best is not None and CompressionPolicy.load(folder / "policy.json") == best.policy


# A goal under which the best policy changes many times.
GOAL = ["--goal", "cost", "--minimize", "macs", "--max-drop", "5", "--reference-keep", "0.75"]
KILLED = [*TINY, *GOAL, "--checkpoint-every", "4"]


def train(words: Path, arguments: list[str]) -> None:
    """What train_agent does; what it says goes to a file."""
    with words.open("w") as file, redirect_stdout(file), redirect_stderr(file):
        sys.exit(exit_code(train_agent.main, arguments))


def spawn(words: Path, *arguments: object) -> BaseProcess:
    """Start train_agent in a process of its own, which finds everything imported."""
    processes = multiprocessing.get_context("forkserver")
    # torch imports _dynamo when the first optimizer is made.
    processes.set_forkserver_preload([__name__, "torch._dynamo"])
    child = processes.Process(target=train, args=(words, [str(argument) for argument in arguments]))
    child.start()
    return child


def check_killed_and_resumed(tmp_path: Path, kills: int, evaluations: int) -> None:
    """Kill a searching process at random moments, then compare with one that was left alone."""
    folder, words = tmp_path / "killed", tmp_path / "words.txt"
    fresh = [*KILLED, "--evaluations", str(evaluations), "--runs", str(tmp_path), "--name"]
    for _ in range(kills):
        before = len(rows(folder)) if folder.exists() else 0
        started = (folder / "config.yaml").exists()
        child = spawn(words, "--resume", folder) if started else spawn(words, *fresh, "killed")
        while child.is_alive() and not (folder.exists() and len(rows(folder)) > before):
            time.sleep(0.01)
        time.sleep(random.uniform(0.0, 0.4))
        child.kill()
        child.join()
        assert child.exitcode == -signal.SIGKILL, f"it had ended before it was killed: {words.read_text()}"
    assert 0 < len(rows(folder)) < evaluations
    assert exit_code(train_agent.main, ["--resume", str(folder)]) == 0
    assert exit_code(train_agent.main, [*fresh, "whole"]) == 0
    best = EvaluationLog(folder / "evaluations.jsonl").best()
    assert same(folder, tmp_path / "whole") and best is not None and best.index > 0


def test_killed_at_random_moments(tmp_path: Path):
    check_killed_and_resumed(tmp_path, kills=2, evaluations=80)


@pytest.mark.slow
def test_killed_at_many_random_moments(tmp_path: Path):
    for series in range(5):
        (tmp_path / str(series)).mkdir()
        check_killed_and_resumed(tmp_path / str(series), kills=4, evaluations=150)


@pytest.mark.parametrize("reference", ["uniform", "balanced"])
def test_a_search_that_goes_on_from_another_starts_where_that_one_did(tmp_path: Path, reference: Any):
    settings = config(4)
    first = start(
        tmp_path / "first", replace(settings, problem=replace(settings.problem, reference=reference))
    )
    assert first.search().ending == "budget"
    second = start(tmp_path / "second", config(3, start_from=first.folder, sigma_start=0.1))
    assert second.problem.reference_name == reference
    assert second.search().ending == "budget"
    assert second.log.rows[0].digest == first.log.rows[0].digest

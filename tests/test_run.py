"""Runs on a tiny network: what they leave behind, and that they go on where they were cut."""

import copy
import functools
import json
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch import nn

from agents.config import AgentConfig, SearchConfig
from agents.log import EvaluationLog, Row
from agents.run import Run, load_run, start_run
from agents.run_config import RunConfig, SourceConfig, continued, read_config
from agents.run_folder import run_lock
from amc.data import ImageData, load_data
from amc.data.images import Split
from amc.errors import UserError
from amc.policy import CompressionPolicy
from amc.targets import Profile, Target, Timing
from amc.targets.machine import installed_version
from amc.tasks import ClassificationTask
from amc.training import Recipe, fit
from envs.problem import ProblemConfig, build_problem
from scripts import train_agent
from scripts.cli import exit_code

ROOT = Path(__file__).resolve().parents[1]


@functools.cache
def _trained(layers: int) -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        body: list[nn.Module] = []
        for index in range(layers):
            inputs = 8 if index else 1
            body += [nn.Conv2d(inputs, 8, 3, 2 if index == 1 else 1, 1), nn.BatchNorm2d(8), nn.ReLU()]
        model = nn.Sequential(*body, nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(32, 10))
        fit(model, tiny_data(), Recipe(epochs=20, batch_size=40, augment=False))
    return model


def tiny_model(layers: int = 3) -> nn.Module:
    """Convolutions of 8 channels with batch norm, and a linear layer; trained, always to the same weights."""
    return copy.deepcopy(_trained(layers))


def tiny_data() -> ImageData:
    """The first digits at 8 x 8 pixels: 120 to train, 80 for the reward, 60 to test."""
    data = load_data("digits", side=8)

    def first(split: Split, count: int) -> Split:
        return split.take(torch.arange(count))

    return replace(
        data,
        train=first(data.train, 120),
        reward=first(data.reward, 80),
        test=first(data.test, 60),
        _normalised={},
    )


def tiny_task() -> ClassificationTask:
    return ClassificationTask(tiny_data())


# Not by the name under which other files import it: here the class is patched.
FAKE = f"{__name__}:FakeTarget"


class FakeTarget(Target):
    """Latency is the file's size: exact, so that nothing depends on the machine."""

    name = "fake"
    profile = Profile(width_multiple=2)
    runtime_version = "1"
    reliable = True
    speed = 1e-4

    def __init__(self) -> None:
        self.measured = 0

    def measure(self, files: Sequence[Path | str], *, time_limit_s: float = 30.0) -> list[Timing]:
        self.measured += 1
        sizes = [Path(file).stat().st_size for file in files]
        return [
            Timing(size * self.speed, (size * self.speed,), size / sizes[0], self.reliable, 1)
            for size in sizes
        ]

    def run(self, file: Path | str, inputs: np.ndarray) -> np.ndarray:
        raise NotImplementedError


TINY = [
    *("--model", "tests.test_run:tiny_model", "--data", "tests.test_run:tiny_data"),
    *("--reward-images", "60", "--calibration-images", "40", "--hidden-sizes", "16", "16"),
    *("--warmup-evaluations", "4", "--updates-per-transition", "1", "--threads", "1", "--device", "cpu"),
]
AGENT = AgentConfig(warmup_evaluations=4, hidden_sizes=(16, 16), updates_per_transition=1)
PROBLEM = ProblemConfig(budget=("macs=0.5",), reward_images=60, calibration_images=40)


@pytest.fixture(autouse=True)
def _surroundings(monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory) -> None:
    """One cache for all of these tests, and a working directory from which they can be imported."""
    monkeypatch.setenv("AMC_CACHE_DIR", str(tmp_path_factory.getbasetemp() / "amc-cache"))
    monkeypatch.chdir(ROOT)


def call(*arguments: object) -> int:
    return exit_code(train_agent.main, [*TINY, *map(str, arguments)])


def config(evaluations: int = 12, **agent: Any) -> RunConfig:
    search = SearchConfig(evaluations=evaluations, checkpoint_every=5)
    return RunConfig(SourceConfig(threads=1), PROBLEM, replace(AGENT, **agent), search)


def start(folder: Path, settings: RunConfig | None = None) -> Run:
    return start_run(folder, settings or config(), tiny_model(), tiny_task())


def load(folder: Path, **settings: Any) -> Run:
    return load_run(folder, tiny_model(), tiny_task(), **settings)


def rows(folder: Path) -> list[dict[str, Any]]:
    """The evaluations of a run, their seconds aside."""
    return [{**row.to_json(), "seconds": 0} for row in EvaluationLog(folder / "evaluations.jsonl").rows]


def same(one: Path, other: Path) -> bool:
    policies = [(folder / "policy.json").read_text() for folder in (one, other)]
    return rows(one) == rows(other) and policies[0] == policies[1]


class InterruptAt:
    """A callback that is Ctrl-C after some evaluation."""

    def __init__(self, index: int):
        self.index = index

    def __call__(self, row: Row, log: EvaluationLog) -> None:
        if row.index == self.index:
            raise KeyboardInterrupt


def final_figures(folder: Path) -> dict[str, float]:
    events = EventAccumulator(str(folder), size_guidance={"images": 1, "tensors": 1, "scalars": 0}).Reload()
    tags = [tag for tag in events.Tags()["scalars"] if tag.startswith("final/")]
    return {tag.removeprefix("final/"): events.Scalars(tag)[-1].value for tag in tags}


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """An uninterrupted search of 12 evaluations."""
    run = start(tmp_path_factory.mktemp("whole") / "new" / "run")
    assert run.search().ending == "budget"
    return run


def test_config_yaml_holds_every_setting_and_where_it_was_made(whole: Run):
    content = yaml.safe_load((whole.folder / "config.yaml").read_text())
    for part in ("source", "problem", "agent", "search"):
        assert set(content[part]) == set(vars(getattr(whole.config, part)))
    assert content["agent"]["seed"] == 0 and content["problem"]["target"] == "openvino"
    facts = content["facts"]
    assert facts["machine"]["cpu"] and facts["machine"]["versions"]["torch"] == installed_version("torch")
    assert facts["packages"]["stable-baselines3"] and facts["target_version"] and facts["threads"] == 1
    assert facts["original"]["costs"]["macs"] == whole.network.macs
    assert facts["network"] == whole.network.fingerprint
    assert read_config(whole.folder) == whole.config


def test_outcomes_are_written_and_drawn(whole: Run):
    outcomes = json.loads((whole.folder / "outcomes.json").read_text())
    start = whole.problem.reference_name
    names = [outcome["name"] for outcome in outcomes]
    assert names == list(dict.fromkeys(["original", "uniform", start, "ddpg"]))
    assert all(set(outcome) == {"name", "reward_score", "test_score", "costs"} for outcome in outcomes)
    assert outcomes == [outcome.to_json() for outcome in whole.outcomes()]
    best = whole.log.best()
    assert best is not None and outcomes[-1]["reward_score"] == best.score
    assert outcomes[-1]["test_score"] == whole.task.score(whole.evaluator.compressed(best.policy), "test")
    final = final_figures(whole.folder)
    assert final["test_score"] == pytest.approx(outcomes[-1]["test_score"])
    assert final["test_score/uniform"] == pytest.approx(outcomes[1]["test_score"])
    assert final["reward"] == pytest.approx(best.reward, abs=1e-6)


@pytest.mark.parametrize("moments", [[0], [7], [2, 5, 9]])
def test_interrupted_and_resumed_equals_uninterrupted(tmp_path: Path, whole: Run, moments: list[int]):
    folder = tmp_path / "cut"
    run = start(folder)
    for moment in moments:
        result = run.search([InterruptAt(moment)])
        assert result.ending == "interrupted" and len(run.log) == moment + 1
        assert CompressionPolicy.load(folder / "policy.json") == run.log.best().policy  # type: ignore[union-attr]
        assert not (folder / "outcomes.json").exists()
        run = load(folder)
    assert run.search().ending == "budget"
    assert same(folder, whole.folder)
    assert json.loads((folder / "outcomes.json").read_text())[0]["name"] == "original"


def test_one_run_object_may_search_again(tmp_path: Path, whole: Run):
    run = start(tmp_path / "run")
    assert run.search([InterruptAt(2)]).ending == "interrupted"
    assert run.search().ending == "budget"
    assert same(run.folder, whole.folder)


def test_more_evaluations_keep_the_schedule_of_the_start(tmp_path: Path, whole: Run):
    folder = tmp_path / "more"
    start(folder).search([InterruptAt(7)])  # Its checkpoint is older than its log, which is replayed.
    assert load(folder, evaluations=20).search([InterruptAt(14)]).ending == "interrupted"
    assert read_config(folder).search.evaluations == 20
    assert load(folder).search().ending == "budget"
    planned = start(tmp_path / "planned", config(20, schedule_evaluations=12))
    planned.search()
    assert same(folder, planned.folder)
    assert rows(folder)[:12] == rows(whole.folder)
    assert rows(folder)[-1]["metrics"]["sigma"] == pytest.approx(0.05)


def test_fewer_evaluations_end_earlier_and_can_be_raised_again(tmp_path: Path, whole: Run):
    folder = tmp_path / "fewer"
    start(folder).search([InterruptAt(3)])
    load(folder, evaluations=8).search()
    assert len(rows(folder)) == 8
    load(folder, evaluations=12).search()
    assert same(folder, whole.folder)


def test_continued_changes_nothing_that_was_not_asked_for():
    assert continued(config()) == config()
    assert continued(config(), evaluations=12) == config()
    assert continued(config(), time_budget=3.0).search.time_budget == 3.0
    twice = continued(continued(config(), evaluations=30), evaluations=50)
    assert (twice.agent.schedule_evaluations, twice.search.evaluations) == (12, 50)


def test_time_budget_ends_in_time(tmp_path: Path):
    settings = config(100_000, algorithm="random")
    run = start(tmp_path / "run", replace(settings, search=replace(settings.search, time_budget=1.0)))
    started = time.monotonic()
    result = run.search()
    assert result.ending == "time" and 0 < len(run.log) < 100_000
    # The search itself; scoring the outcomes and closing TensorBoard come after it.
    assert sum(row.seconds for row in run.log.rows) < 1.0 and time.monotonic() - started < 4.0


def test_a_second_start_is_refused_and_overwrites_nothing(whole: Run):
    before = {path: path.read_bytes() for path in whole.folder.rglob("*") if path.is_file()}
    with pytest.raises(UserError, match="is not empty: continue it with --resume, or choose another --name"):
        start(whole.folder)
    assert {path: path.read_bytes() for path in whole.folder.rglob("*") if path.is_file()} == before


def test_a_name_taken_while_the_data_were_read_is_refused(tmp_path: Path):
    folder = tmp_path / "run"

    class Slow(ClassificationTask):
        def traced(self, model: nn.Module) -> nn.Module:
            folder.mkdir()
            (folder / "config.yaml").write_text("another process's")
            return model

    with pytest.raises(UserError, match="is not empty"):
        start_run(folder, config(), tiny_model(), Slow(tiny_data()))
    assert (folder / "config.yaml").read_text() == "another process's"


def test_only_one_process_searches_a_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    run = start(tmp_path / "run")
    with run_lock(run.folder):
        with pytest.raises(UserError, match="Another process is searching in"):
            run.search()
        assert exit_code(train_agent.main, ["--resume", str(run.folder)]) == 2
        assert "Another process is searching" in capsys.readouterr().err
        load(run.folder)  # Looking at it is no harm.
    assert not (run.folder / "evaluations.jsonl").exists()
    assert run.search().ending == "budget"


def test_a_run_is_not_continued_with_other_weights(tmp_path: Path):
    folder = start(tmp_path / "run").folder
    model = tiny_model()
    with torch.no_grad():
        next(model.parameters()).mul_(1.5)
    with pytest.raises(UserError, match="was started with another model: its weights differ"):
        load_run(folder, model, tiny_task())
    with pytest.raises(UserError, match="its network and weights differ"):
        load_run(folder, tiny_model(layers=4), tiny_task())


@pytest.mark.parametrize("content", ["", "a: [", "source: 3", "source: {}\nproblem: {}", "{{}}: -"])
def test_a_damaged_configuration_is_one_sentence(tmp_path: Path, content: str):
    (tmp_path / "config.yaml").write_text(content)
    with pytest.raises(UserError, match=r"config\.yaml") as caught:
        load(tmp_path)
    assert "\n" not in str(caught.value)


def test_policy_files_that_do_not_belong_to_the_run(tmp_path: Path, whole: Run):
    run = start(tmp_path / "run")
    with pytest.raises(UserError, match=r"has no policy\.json yet: its search has not evaluated anything"):
        _ = run.best_policy
    for content, words in (("{", "not readable as JSON"), ('{"layers": []}', "is not a compression policy")):
        (run.folder / "policy.json").write_text(content)
        with pytest.raises(UserError, match=words):
            _ = run.best_policy
    other = build_problem(tiny_model(layers=4), tiny_task(), PROBLEM)
    with pytest.raises(UserError, match="made for another network"):
        other.evaluator.compressed(whole.best_policy)

"""Sweeps: the grid, what is refused before Ray starts, the trials on Ray, their table."""

import csv
import json
import os
import signal
import subprocess
import sys
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import pytest
import tyro

from agents import sweep
from agents.config import CoolingConfig
from agents.log import EvaluationLog
from agents.pareto import Point, front
from agents.run import LOG_FILE, load_run, start_run
from agents.run_config import read_config, read_facts
from agents.sweep_grid import Axes, Trial, check_trials, make_trials
from agents.sweep_results import collect
from agents.sweep_trial import is_finished, run_trial
from amc.errors import UserError
from scripts import sweep as script
from scripts.cli import exit_code
from scripts.train_agent import TrainAgent
from tests.sweep_pieces import BASE, figures
from tests.test_report import make_run

NETWORK = BASE.source.model
needs_ray = pytest.mark.extra("cluster")


def trials(*seeds: int, **search: Any) -> list[Trial]:
    return make_trials(replace(BASE, search=replace(BASE.search, **search)), Axes(seeds=seeds or (0,)))


def uninterrupted(folder: Path, trial: Trial) -> list[object]:
    run = start_run(folder, trial.config)
    run.search()
    run.problem.close()
    return figures(run.log)


def log_of(folder: Path, trial: Trial) -> EvaluationLog:
    return EvaluationLog(folder / trial.name / LOG_FILE)


def test_grid_has_every_combination_with_seeds_innermost():
    weights = (f"{NETWORK}=a.safetensors", f"{NETWORK}=b/c.pt")
    axes = Axes(weights, ("macs=0.5", "macs=0.3, size=40KB"), ("ddpg", "random"), (0, 7))
    made = make_trials(BASE, axes)
    assert len({trial.name for trial in made}) == 16
    assert made[0].name == "tests.sweep_pieces.tiny_network-a-macs0.5-ddpg-seed0"
    assert made[1].config.agent.seed == 7 and made[2].config.agent.algorithm == "random"
    assert made[-1].config.problem.budget == ("macs=0.3", "size=40KB")
    assert made[-1].config.source.weights == Path.cwd() / "b/c.pt"


def test_an_axis_that_is_not_given_has_the_one_value_of_the_settings():
    (only,) = make_trials(replace(BASE, source=replace(BASE.source, threads=0)), Axes())
    assert only.config == replace(BASE, source=replace(BASE.source, threads=1, data_root=Path.cwd() / "data"))


def test_a_trial_takes_as_many_cores_as_it_has_workers_or_threads():
    assert trials(workers=3)[0].cores == 3
    assert make_trials(replace(BASE, source=replace(BASE.source, threads=2)), Axes())[0].cores == 2


@pytest.mark.parametrize(
    ("axes", "sentence"),
    [
        (Axes(networks=("nonet",)), "There is no model 'nonet'"),
        (Axes(networks=("digitsnet=gone.pt",)), "There is no weights file"),
        (Axes(networks=("digitsnet",)), "needs trained weights"),
        (Axes(budgets=("macs=x",)), "macs=x"),
        (Axes(budgets=("joules=0.5",)), "joules"),
        (Axes(searchers=("oracle",)), "There is no searcher 'oracle'"),
        (Axes(seeds=(-1,)), "seed"),
        (Axes(seeds=(1, 1)), "twice"),
    ],
)
def test_bad_axes_are_refused(axes: Axes, sentence: str, tmp_path: Path):
    with pytest.raises(UserError, match=sentence):
        check_trials(make_trials(BASE, axes), tmp_path)


def test_a_run_with_other_settings_is_not_taken_for_a_trial(tmp_path: Path):
    (trial,) = trials()
    other = replace(trial.config, problem=replace(trial.config.problem, importance="l1"))
    make_run(tmp_path / trial.name, config=other)
    with pytest.raises(UserError, match="was made with --importance l1, and not obs"):
        check_trials([trial], tmp_path)


def test_every_search_option_of_train_agent_is_one_of_a_sweep():
    given = ["--cooling", "linear", "--rounds", "2", "--round-epochs", "0", "--evaluations", "4", "--workers"]
    swept, searched = (
        tyro.cli(kind, args=[*given, "1"], config=(tyro.conf.OmitArgPrefixes,))
        for kind in (script.Sweep, TrainAgent)
    )
    assert swept.base == searched.config and swept.base.cooling.rounds == 2
    assert {each.name for each in fields(searched.config)} <= {each.name for each in fields(swept)}


def test_a_trial_may_search_in_rounds(tmp_path: Path):
    cooling = CoolingConfig("linear", rounds=2, round_epochs=1)
    base = replace(BASE, search=replace(BASE.search, evaluations=4), cooling=cooling)
    plain, cooled = (make_trials(each, Axes())[0] for each in (replace(base, cooling=BASE.cooling), base))
    assert cooled.name == "tests.sweep_pieces.tiny_network-macs0.4-random-linear-seed0" != plain.name
    check_trials([cooled], tmp_path)
    run_trial(cooled, tmp_path)
    assert is_finished(tmp_path / cooled.name, cooled.config)
    assert (tmp_path / cooled.name / "round-2" / "outcomes.json").exists()
    found = collect([plain, cooled], tmp_path, {}).rows[1]
    assert found["status"] == "finished" and found["macs_share"] <= 0.4 and found["evaluations"] == 4
    last = EvaluationLog(tmp_path / cooled.name / "round-2" / LOG_FILE)
    assert found["reference_score"] == last.rows[0].score
    (more,) = make_trials(replace(base, search=replace(base.search, evaluations=6)), Axes())
    with pytest.raises(UserError, match="was made with --evaluations 4, and not 6"):
        check_trials([more], tmp_path)
    (alone,) = make_trials(replace(base, search=replace(base.search, evaluations=1)), Axes(seeds=(1,)))
    with pytest.raises(UserError, match="cannot be divided among 2 rounds"):
        check_trials([alone], tmp_path)


@needs_ray
def test_an_axis_and_its_option_are_not_both_given(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    arguments = ["--runs", str(tmp_path), "--seeds", "1", "2", "--seed", "3"]
    assert exit_code(script.main, arguments) == 2
    assert "--seeds takes the place of --seed" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_without_ray_one_sentence_names_the_extra(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    assert exit_code(script.main, ["--runs", str(tmp_path)]) == 2
    assert 'pip install "amc-compress[cluster]"' in capsys.readouterr().err


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[Trial]]:
    """A sweep of two trials, of which one is finished."""
    folder, both = tmp_path_factory.mktemp("sweep"), trials(0, 1)
    run_trial(both[0], folder)
    return folder, both


def test_a_trial_is_an_ordinary_run(finished: tuple[Path, list[Trial]]):
    folder, (trial, _) = finished
    assert read_config(folder / trial.name) == trial.config
    run = load_run(folder / trial.name, evaluations=8)
    assert run.search().ending == "budget" and len(run.log) == 8
    run.problem.close()


def test_a_trial_has_a_core_of_its_own(finished: tuple[Path, list[Trial]]):
    folder, (trial, _) = finished
    if hasattr(os, "sched_setaffinity"):
        assert read_facts(folder / trial.name)["machine"]["cores_allowed"] == 1


@needs_ray
def test_finished_trials_are_not_run_again(
    finished: tuple[Path, list[Trial]], monkeypatch: pytest.MonkeyPatch
):
    folder, both = finished
    assert [is_finished(folder / trial.name, trial.config) for trial in both] == [True, False]
    monkeypatch.setattr(sweep, "ray_session", lambda *args: pytest.fail("Ray was started"))
    assert sweep.run_sweep(both[:1], folder) == {}


def test_what_a_kill_left_of_a_run_that_never_began_is_no_obstacle(tmp_path: Path):
    (trial,) = trials(evaluations=1)
    (tmp_path / trial.name).mkdir()
    for name in ("latency.json", ".config.yaml.x1", ".latency.json.x2"):
        (tmp_path / trial.name / name).write_text("{")
    run_trial(trial, tmp_path)
    assert is_finished(tmp_path / trial.name, trial.config)


def test_table_has_a_row_for_each_trial(finished: tuple[Path, list[Trial]]):
    folder, both = finished
    found = collect(both, folder, {both[1].name: "It broke, badly."})
    first, second = json.loads((folder / "results.json").read_text())
    assert [first, second] == list(found.rows) and (folder / "pareto.png").stat().st_size > 1000
    assert first["status"] == "finished" and first["macs_share"] <= 0.4 and not first["dominated"]
    assert (second["status"], second["error"]) == ("failed", "It broke, badly.")
    with (folder / "results.csv").open() as file:
        lines = list(csv.DictReader(file))
    assert float(lines[0]["best_score"]) == first["best_score"] and lines[1]["macs"] == ""


def test_front_keeps_what_no_other_beats():
    points = [Point(2, 0.8), Point(1, 0.5), Point(3, 0.8), Point(2, 0.7), Point(4, 0.9), Point(1, 0.5)]
    assert front(points) == [1, 5, 0, 4]
    assert front([]) == []


class Killer:
    """Kills the process of a trial, once for each number of evaluations."""

    def __init__(self, *after: int):
        self.left, self.heard = list(after), list[int]()

    def __call__(self, name: str, news: dict[str, Any]) -> None:
        if "evaluations" in news and "ended" not in news:
            self.heard.append(news["evaluations"])
            if news["evaluations"] in self.left:
                self.left.remove(news["evaluations"])
                os.kill(news["pid"], signal.SIGKILL)


@needs_ray
@pytest.mark.slow
def test_a_killed_trial_goes_on_where_it_stopped(tmp_path: Path):
    (trial,), killer = trials(), Killer(3)
    assert sweep.run_sweep([trial], tmp_path / "sweep", cores=1, listener=killer) == {}
    assert killer.left == [] and killer.heard == [1, 2, 3, 4, 5, 6]
    assert figures(log_of(tmp_path / "sweep", trial)) == uninterrupted(tmp_path / "alone", trial)
    assert not (tmp_path / "sweep" / sweep.TUNE_FOLDER).exists()


@needs_ray
@pytest.mark.slow
def test_an_interrupted_sweep_goes_on(tmp_path: Path):
    both = trials(0, 1, evaluations=400)
    command = [sys.executable, "-c", INTERRUPTED, str(tmp_path)]
    cut = subprocess.run(command, capture_output=True, text=True, cwd=Path(__file__).parents[1])
    assert (cut.returncode, cut.stdout) == (0, "interrupted\n"), cut.stderr
    done = [len(log_of(tmp_path, trial)) for trial in both]
    assert 0 < sum(done) < 800
    short = trials(0, 1, evaluations=max(done) + 1)
    assert sweep.run_sweep(short, tmp_path, cores=2) == {}
    assert [len(log_of(tmp_path, trial)) for trial in short] == [max(done) + 1] * 2


INTERRUPTED = """
import os, signal, sys
from pathlib import Path
from agents import sweep
from tests.test_sweep import trials

def listener(name, news):
    if news.get("evaluations") == 5:
        os.kill(os.getpid(), signal.SIGINT)

try:
    sweep.run_sweep(trials(0, 1, evaluations=400), Path(sys.argv[1]), cores=2, listener=listener)
except KeyboardInterrupt:
    print("interrupted")
"""

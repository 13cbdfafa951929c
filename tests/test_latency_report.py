"""What is said of a search under a latency budget: report, dry run, damaged files."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

import tests.test_run as runs
from agents.report import write_report
from agents.report_data import load_record
from amc.errors import UserError
from envs.problem_config import ProblemConfig
from tests import formula_target
from tests.formula_target import FAKE, SMALL, FormulaTarget, begin
from tests.test_run import call, config, load, rows, start

# Found by name in the module that uses them.
_surroundings = runs._surroundings
_own_cache = formula_target._own_cache


def test_report_and_tensorboard_say_what_was_measured(tmp_path: Path):
    folder = tmp_path / "run"
    run = begin(folder, "latency=0.4ms", evaluations=12)
    run.search()
    predicted = sum(row["latency_source"] == "predicted" for row in rows(folder))
    assert 0 < predicted < 12
    record = load_record(folder)
    assert record.limits["latency"] == pytest.approx(run.problem.budgets[0].limit)
    latency = run.problem.latency
    assert latency is not None and record.predictor is not None
    stored = json.loads((folder / "latency.json").read_text())["predictor"]
    assert stored == record.predictor.to_json() and stored["policies"] == 42
    latency.restart()  # as it was when the search began
    assert stored["mape"] == pytest.approx(latency.predictor.mape)
    assert stored["margin"] == pytest.approx(latency.margin(run.problem.budgets[0].limit))
    page = write_report([folder], tmp_path / "page.html")[0].read_text()
    assert "fitted to 42 measured random policies, too few to be sure: fewer than 100; mean error" in page
    assert f"The latency of {predicted} of 12 policies is predicted" in page and "Hollow" in page
    events = EventAccumulator(str(folder)).Reload()
    assert len(events.Scalars("costs/latency")) == 12


def test_a_report_in_the_targets_unit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(FormulaTarget, "unit", "M instructions")
    begin(tmp_path / "run", evaluations=4).search()
    page = write_report([tmp_path / "run"], tmp_path / "page.html")[0].read_text()
    assert "M\N{NO-BREAK SPACE}instructions" in page or "M instructions" in page
    assert "\N{NO-BREAK SPACE}ms" not in page and "(ms)" not in page


def test_dry_run_names_what_can_be_reached(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    assert call("--budget", "latency=0.3", "--target", FAKE, "--runs", tmp_path, "--dry-run") == 0
    words = capsys.readouterr().out
    assert "smallest reachable latency: " in words and "Latency on formula is predicted from 42" in words
    assert "knob activation_bits: live 8 32" in words
    assert not list(tmp_path.glob("*/config.yaml"))


def test_a_damaged_latency_file_is_one_sentence(tmp_path: Path):
    begin(tmp_path / "run", evaluations=2).search()
    (tmp_path / "run" / "latency.json").write_text('{"profile": {}}')
    with pytest.raises(UserError, match=r"latency.json is damaged"):
        load(tmp_path / "run")
    (tmp_path / "run" / "latency.json").write_text('{"predictor": {"mape": 0.1}}')
    with pytest.raises(UserError, match=r"latency.json is damaged: KeyError\('policies'\)"):
        load_record(tmp_path / "run")


def test_latency_as_the_goal_is_measured_and_not_predicted(tmp_path: Path):
    asked = ProblemConfig(goal="cost", minimize="latency", **SMALL)
    start(tmp_path / "run", replace(config(2), problem=asked))
    assert "predictor" not in json.loads((tmp_path / "run" / "latency.json").read_text())
    assert load_record(tmp_path / "run").predictor is None

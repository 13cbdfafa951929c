"""Rows and runs of networks refitted in another way, and tasks that cannot give images for today's."""

from dataclasses import replace
from pathlib import Path

import pytest
import yaml

from agents import run_config
from agents.run import start_run
from agents.run_config import REFITS, check_refits
from amc.errors import UserError
from amc.tasks import ClassificationTask
from envs.problem import build_problem
from envs.problem_config import ProblemConfig
from scripts.results_page import of_before
from scripts.results_runs import opened
from tests.test_run import InterruptAt, config, load, start, tiny_model, tiny_task


def test_rows_of_before_are_counted_and_said():
    rows = [{"origin": {"commit": "a"}}, {"origin": {"refits": REFITS}}, {"taken": 1, "searched": {}}]
    (sentence,) = of_before(rows, ", and otherwise, too")
    assert sentence.startswith("2 rows were made") and "(../tried.md)), and otherwise, too." in sentence


def test_nothing_is_said_where_all_rows_are_of_today():
    assert of_before([{"origin": {"refits": REFITS}}]) == []


def test_a_search_of_before_is_neither_continued_nor_put_into_tables(tmp_path: Path):
    folder = tmp_path / "run"
    start(folder).search([InterruptAt(3)])
    stored = yaml.safe_load((folder / "config.yaml").read_text())
    assert stored["facts"].pop("refits") == REFITS
    (folder / "config.yaml").write_text(yaml.safe_dump(stored))
    log = (folder / "evaluations.jsonl").read_bytes()
    run = load(folder)
    with pytest.raises(UserError, match="refitted and re-normalized as they are today"):
        run.search()
    with pytest.raises(UserError, match="refitted and re-normalized as they are today"):
        opened(folder, config())
    assert (folder / "evaluations.jsonl").read_bytes() == log
    assert run.best_policy  # can still be exported


def test_scores_after_brief_training_are_those_of_one_learning_rate(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    folder, settings = tmp_path / "run", config(evaluations=2)
    problem = replace(settings.problem, tune_steps=1)
    start_run(folder, replace(settings, problem=problem), tiny_model(), tiny_task()).search()
    check_refits(folder)
    monkeypatch.setattr(run_config, "LEARNING_RATE", 0.05)
    with pytest.raises(UserError, match="start another run"):
        check_refits(folder)


def test_a_task_that_cannot_augment_is_refused_before_anything_is_traced():
    class Plain(ClassificationTask):
        def calibration(self, images=1000, batch_size=200, seed=0):  # type: ignore[override]
            return super().calibration(images, batch_size, seed)

    with pytest.raises(UserError, match="of Plain lacks the argument augment"):
        build_problem(tiny_model(), Plain(tiny_task().data), ProblemConfig(budget=("macs=0.5",)))

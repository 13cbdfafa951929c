"""The page of all tasks: planned sections, missing rows, tables as objects; and the searches' rows."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from amc.data.digits import digits
from scripts import mimic_results, task_search_page, task_search_results, tasks_page
from scripts.cli import exit_code

ORIGIN = {"commit": "abc", "date": "2030-01-02", "machine": {"cpu": "A CPU", "cores": 2}}


def search_row(setting: str, seed: int, gain: float) -> dict:
    def network(score: float) -> dict:
        return {
            "reward": score,
            "test": score - 0.01,
            "AP50": score + 0.1,
            "costs": {"macs": 2e6, "size": 5e3},
        }

    found = {"original": network(0.8), "uniform": network(0.5), "ddpg": network(0.5 + gain)}
    row = {"name": f"{setting}/{seed}", "setting": setting, "seed": seed, "score": "mAP", "networks": found}
    return {**row, "seconds": 1.0, "origin": ORIGIN}


def test_every_planned_section_is_there_and_what_is_missing_is_listed(tmp_path: Path):
    out = tmp_path / "tasks.json"
    rows = [search_row("detector", seed, gain) for seed, gain in enumerate((0.1, 0.12))]
    out.write_text(json.dumps({"searches": rows}))
    assert exit_code(tasks_page.main, ["--figures", str(out)]) == 0
    page = out.with_suffix(".md").read_text()
    headings = [line for line in page.splitlines() if line.startswith("## ")]
    assert len(headings) == len(tasks_page.SECTIONS) + 2 and "## Few labels (SaaS)" in headings
    assert headings[-2:] == ["## Not measured yet", "## Where and when"]
    assert "* few_labels: `saas`, seeds 0, 1, 2" in page and "* searches: `detector`, seeds 2" in page
    assert "* detection: `teacher/bccd`\n" in page
    assert "* A CPU, 2 cores, 2030-01-02, commit abc" in page
    figures = json.loads(out.read_text())
    assert figures["searches"] == rows, "the rows stay as they are"
    gained = next(table for table in figures["tables"] if table["table"] == "What the agent gains")
    assert gained["section"] == "The agent on detectors and retrieval networks"
    first = gained["rows"][0]
    assert first["ddpg - uniform"] == "detector, reward split" and first["seeds"] == 2
    assert first["points (95 % interval)"]["mean"] == 11.0 and first["verdict"] == "no difference"


@pytest.mark.parametrize(
    ("cell", "said"),
    [
        ("80.72%", 0.8072),
        ("31.11% ± 5.52", {"mean": 0.3111, "plus_minus": 0.0552}),
        ("-7.82 ± 9.26", {"mean": -7.82, "plus_minus": 9.26}),
        ("1.2e-05 of it", "1.2e-05 of it"),
        ("22327", 22327),
        ("", None),
        ("higher", "higher"),
    ],
)
def test_cells_are_numbers_where_they_are(cell: str, said: object):
    assert tasks_page.value(cell) == said


def test_the_page_says_that_the_student_is_wider_than_the_papers():
    said = "\n".join(tasks_page.SECTIONS["detection"].parts([]))
    assert mimic_results.STUDENT_WIDTH == 1 / 8
    assert "at most 1/16 of the channels in every layer. Here it is 1/8" in said


def test_the_table_of_the_searches_has_both_scores_and_the_costs():
    rows = [search_row("detector", seed, 0.1 * (seed + 1)) for seed in (0, 1)]
    text = "\n".join(task_search_page.section(rows))
    assert "| network | seeds | reward-split mAP | test mAP | test AP50 | MMACs | kB |" in text
    assert "| ddpg | 2 | 65.00% ± 7.07 | 64.00% ± 7.07 | 75.00% ± 7.07 | 2.00 | 5.00 |" in text
    assert "| detector, test split | 2 | +15.00 ± 63.53 | no difference |" in text


def test_a_row_of_a_search_is_made_once_and_shows_the_code(tmp_path: Path, monkeypatch, capsys):
    data = digits(8)
    few = replace(data, train=data.train.take(torch.arange(300)), _normalised={})
    monkeypatch.setattr("agents.source.load_data", lambda *_: few)
    monkeypatch.setattr("scripts.pretrain.load_data", lambda *_: few)
    monkeypatch.setattr(task_search_results, "EVALUATIONS", 2)
    setting = task_search_results.SETTINGS["code"]
    small = replace(
        setting,
        source=replace(setting.source, width=0.25),
        problem=replace(setting.problem, final_images=100, target="onnxruntime"),
        training={"epochs": 1},
    )
    monkeypatch.setattr(task_search_results, "SETTINGS", {"code": small})
    given = ["--out", tmp_path / "t.json", "--runs", tmp_path / "runs", "--only", "code/0"]
    assert exit_code(task_search_results.main, [str(each) for each in given]) == 0
    (row,) = json.loads((tmp_path / "t.json").read_text())["searches"]
    assert row["name"] == "code/0" and row["evaluations"] == 2
    assert {"original", "uniform", "ddpg"} <= set(row["networks"])
    costs = row["networks"]["ddpg"]["costs"]
    assert costs["storage"] <= 40_000 and costs["code"] <= 48 == row["networks"]["original"]["costs"]["code"]
    capsys.readouterr()
    assert exit_code(task_search_results.main, [str(each) for each in [*given, "--list"]]) == 0
    assert capsys.readouterr().out.startswith("done")

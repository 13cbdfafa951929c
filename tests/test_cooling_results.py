"""The runner and the page of the cooling results: real rows on digits, and made-up ones."""

import json
from pathlib import Path

import pytest
import torch

from amc.models import build_model, save_weights
from amc.recovery.fine_tune import DEFAULT_RECIPE, Distillation
from scripts import cooling_page, cooling_results, cooling_rows
from scripts.cli import exit_code
from scripts.cooling_rows import CoolingResults, Spec, command, last_epochs, plan, search_config
from scripts.results_runs import recipe
from scripts.search_rows import NETWORKS, Reference

TINY = Reference("digitsnet", width=0.25, data="digits", side=8)
PLAN = [Spec("tiny", "0.5", "ddpg", schedule, "0") for schedule in ("one-shot", "exponential")]


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with random weights of the only network of the plan."""
    torch.manual_seed(0)
    for module in (cooling_results, cooling_page):
        monkeypatch.setattr(module, "plan", lambda: PLAN)
    monkeypatch.setitem(NETWORKS, "tiny", TINY)
    save_weights(build_model("digitsnet", 10, 1, 0.25), tmp_path / "tiny.safetensors")
    return tmp_path


def call(folder: Path, *arguments: object) -> int:
    given = ["--out", folder / "cooling.json", "--runs", folder / "runs", "--weights-dir", folder]
    given += ["--evaluations", 4, "--rounds", 2, "--round-epochs", 1, "--data-root", folder]
    given += ["--device", "cpu", *arguments]
    return exit_code(cooling_results.main, [str(argument) for argument in given])


def figures(folder: Path) -> dict:
    return json.loads((folder / "cooling.json").read_text())


def made_up(schedule: str, seed: str, tuned: float) -> dict:
    """A row as the runner writes it."""
    one = {"round": 1, "budgets": {"macs": 0.4}, "costs": {"macs": 0.39}, "evaluations": 40, "feasible": 30}
    scores = {"uniform_score": 0.5, "score": 0.6}
    rounds = [{**one, **scores, "tuned_score": 0.8}, {**one, **scores, "round": 2}]
    return {
        **Spec("resnet20", "0.15", "cbo", schedule, seed).to_json(),
        "reward_untuned": 0.7,
        "test_untuned": 0.69,
        "test_tuned": tuned,
        "reward_tuned": tuned,
        "original_test": 0.92,
        "macs_fraction": 0.149,
        "rounds": [] if schedule == "one-shot" else rounds,
        "evaluations": 200,
        "epochs": 10,
        "seconds": 3600.0,
        "origin": {"commit": "0", "date": "today", "machine": {"cpu": "a CPU", "cores": 1}},
    }


def page_of(folder: Path, rows: list[dict]) -> str:
    named = {"/".join(row[key] for key in vars(PLAN[0])): row for row in rows}
    (folder / "cooling.json").write_text(json.dumps({"rows": named}))
    assert exit_code(cooling_page.main, ["--figures", str(folder / "cooling.json")]) == 0
    return (folder / "cooling.md").read_text()


def test_every_row_has_a_name_of_its_own_and_its_command_makes_it_alone() -> None:
    specs = plan()
    assert len({spec.name for spec in specs}) == len(specs) == 54
    assert [spec.name for spec in specs[:2]] == [
        "resnet20/0.15/cbo/one-shot/0",
        "resnet20/0.15/cbo/exponential/0",
    ]
    for spec in specs:
        only = command(CoolingResults(), spec).split("'")[1]
        assert cooling_results.runner(CoolingResults()).chosen(specs, only) == [spec]


def test_all_schedules_have_equal_evaluations_and_epochs() -> None:
    options = CoolingResults()
    for schedule in ("one-shot", "linear", "exponential"):
        spec = Spec("resnet20", "0.15", "cbo", schedule, "0")
        config = search_config(options, spec)
        between = (config.cooling.rounds - 1) * config.cooling.round_epochs if config.cooling.is_on else 0
        assert config.search.evaluations == 200
        assert between + last_epochs(options, spec) == options.epochs == 10


def test_networks_are_trained_alike_between_rounds_and_at_the_end() -> None:
    options = CoolingResults()
    rounds = search_config(options, Spec("resnet20", "0.15", "cbo", "exponential", "0")).cooling
    last = recipe(Path(), Path(), options.round_epochs, False)
    between = (rounds.round_epochs, rounds.round_lr, rounds.round_batch_size, DEFAULT_RECIPE.weight_decay)
    assert between == (last.epochs, last.lr, last.batch_size, last.weight_decay)
    assert last.distillation == Distillation()


@pytest.mark.slow
def test_rows_are_made_and_not_made_again(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert call(folder) == 0
    once, rounds = figures(folder)["table"]
    assert (once["schedule"], rounds["schedule"]) == ("one-shot", "exponential")
    assert once["epochs"] == rounds["epochs"] == 2 and once["evaluations"] == rounds["evaluations"] == 4
    assert max(once["macs_fraction"], rounds["macs_fraction"]) <= 0.5
    told = figures(folder)["rows"]["tiny/0.5/ddpg/exponential/0"]["rounds"]
    assert [each["evaluations"] for each in told] == [2, 2]
    capsys.readouterr()
    assert call(folder, "--list") == 0
    assert capsys.readouterr().out.count("done") == 2
    assert exit_code(cooling_page.main, ["--figures", str(folder / "cooling.json")]) == 0


def test_the_page_pairs_by_seed_and_calls_small_differences_ties(tmp_path: Path) -> None:
    close = [made_up("one-shot", "0", 0.880), made_up("exponential", "0", 0.881)]
    assert "exponential +0.10 (one seed) points, a tie" in page_of(tmp_path, close)
    noisy = [made_up("one-shot", seed, 0.86) for seed in "012"]
    noisy += [
        made_up("exponential", seed, tuned) for seed, tuned in zip("012", (0.9, 0.83, 0.88), strict=True)
    ]
    assert "exponential +1.00 (± 2.08) points, a tie" in page_of(tmp_path, noisy)
    rows = [made_up("one-shot", seed, 0.86) for seed in "012"]
    rows += [made_up("exponential", seed, 0.88) for seed in "01"]
    text = page_of(tmp_path, rows)
    assert "exponential +2.00 (± 0.00) points, **rounds are better**" in text
    assert "| exponential | 2 | 0.400 | 0.390 | 75% | 50.00% | 60.00% |  |" in text
    assert "* `resnet20/0.15/cbo/exponential`: seeds 2" in text


def test_rounds_that_make_no_sense_are_refused(folder: Path) -> None:
    assert call(folder, "--rounds", 0) == 2
    assert cooling_rows.CoolingResults(rounds=3, round_epochs=4).epochs == 12

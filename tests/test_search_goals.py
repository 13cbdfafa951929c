"""Rows and sections of the search results for the smallest network within a drop, and for few weights."""

from pathlib import Path

import pytest
import torch

from amc.files import write_json
from amc.models import build_model, save_weights
from scripts import fine_tune, prune_iteratively, search_results, search_rows_goals
from scripts.cli import exit_code
from scripts.results_page import read_figures
from scripts.results_runner import Row
from scripts.results_runs import TUNING_SECONDS_FILE
from scripts.search_page_goals import smallest, sparse
from scripts.search_rows import NETWORKS, Reference, Spec, plan

TINY = Reference("digitsnet", width=0.25, data="digits", side=8)
SMALLEST = [Spec("smallest", "tiny", "", "random", "0", reward) for reward in ("default", "paper")]
SPARSE = Spec("fine-grained", "tiny", "0.2", "random", "0")


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with random weights of the only network of the plan."""
    torch.manual_seed(0)
    monkeypatch.setattr(search_results, "plan", lambda: [*SMALLEST, SPARSE])
    monkeypatch.setitem(NETWORKS, "tiny", TINY)
    save_weights(build_model("digitsnet", 10, 1, 0.25), tmp_path / "tiny.safetensors")
    return tmp_path


def made(folder: Path, only: str) -> list[Row]:
    given = ["--out", folder / "search.json", "--runs", folder / "runs", "--weights-dir", folder]
    given += ["--evaluations", 4, "--data-root", folder, "--device", "cpu", "--only", only]
    assert exit_code(search_results.main, [str(argument) for argument in given]) == 0
    return list(read_figures(folder / "search.json")["rows"].values())


def stand_in_tuning(run: Path, epochs: int) -> Row:
    return {"scores": {"fine-tuned": {"test": 0.5, "reward": 0.6}}}


def stand_in_pruning(options: prune_iteratively.PruneIteratively) -> None:
    assert options.run.name == "fine-grained-tiny-0.2-random-0" and options.stages == (50, 35, 25)
    names = ("original", "50 % tuned", "35 % tuned", "25 % tuned", "20 % tuned", "fine-tuned")
    scores = {name: {"test": 0.5, "reward": 0.6} for name in names}
    options.folder.mkdir()
    write_json(options.folder / fine_tune.TUNED_FILE, {"scores": scores})


def test_the_plan_has_both_rewards_and_the_density_of_the_paper() -> None:
    names = {spec.name for spec in plan()}
    assert {"smallest/resnet56/ddpg/0/default", "smallest/resnet56/ddpg/0/paper"} <= names
    assert "fine-grained/resnet56/0.2/ddpg/0" in names


def test_the_smallest_networks_become_rows_and_a_section(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(search_rows_goals, "tuned_figures", stand_in_tuning)
    rows = made(folder, "smallest/*")
    assert [row["variant"] for row in rows] == ["default", "paper"]
    for row in rows:
        assert row["evaluations"] == 4 and 0 < row["kept"]["params"] <= 1 and row["test_tuned"] == 0.5
        assert row["feasible"] == (row["reward_accuracy"] >= row["original_reward"] - 0.005 - 1e-9)
    page = "\n".join(smallest(rows))
    assert "tiny, paper" in page and "--max-drop 0.5" in page and page.count("fine-tuning: ") == 2
    shown = {**rows[0], "kept": {"params": 0.4, "macs": 0.5}, "original_test": 0.5}
    assert "60.0% removed, +0.00 points after fine-tuning: met." in "\n".join(smallest([shown]))
    assert "60.0% removed, -1.00 points after fine-tuning: **missed**." in "\n".join(
        smallest([{**shown, "original_test": 0.51}])
    )
    assert smallest([])[1] == "*Not measured yet.*"


def test_few_weights_become_a_row_and_a_section(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(prune_iteratively, "main", stand_in_pruning)
    (row,) = made(folder, "fine-grained/*")
    assert row["kept"]["nonzeros"] <= 0.2 and row["kept"]["params"] == 1.0
    assert next(iter(row["stages"])) == "50 % tuned" and "original" not in row["stages"]
    page = "\n".join(sparse([row]))
    assert "No CPU target here runs the result any faster" in page and "| 20 % tuned | 60.00% |" in page
    lossless = "\n".join(sparse([{**row, "original_test": 0.5}]))
    assert "no loss at 20 %; here +0.00 points: met." in lossless
    assert sparse([])[1] == "*Not measured yet.*"
    # What an interrupted call took counts, too.
    write_json(folder / "runs" / "fine-grained-tiny-0.2-random-0" / TUNING_SECONDS_FILE, {"seconds": 1000.0})
    (folder / "search.json").unlink()
    (row,) = made(folder, "fine-grained/*")
    assert row["seconds"] > 1000


@pytest.mark.slow
def test_real_rows(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(search_rows_goals, "SMALLEST_EPOCHS", 1)
    rows = made(folder, "*")
    assert [row["part"] for row in rows] == ["smallest", "smallest", "fine-grained"]
    assert list(rows[2]["stages"])[-2:] == ["20 % tuned", "fine-tuned"]

"""Rank correlations against SciPy's, and a study that may be cut anywhere."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy.stats import kendalltau, spearmanr

from envs.problem import Problem
from envs.problem_config import ProblemConfig
from scripts import proxy_correlation as script
from scripts.cli import exit_code
from scripts.rank_correlation import correlate, kendall, spearman
from tests.test_env import make_problem
from tests.test_run import ROOT

OPTIONS = [
    *("--model", "tests.test_run:tiny_model", "--data", "tests.test_run:tiny_data", "--threads", "1"),
    *(
        "--policies",
        "5",
        "--epochs",
        "1",
        "--batch-size",
        "20",
        "--train-images",
        "60",
        "--reward-images",
        "40",
    ),
]


def call(out: Path, *more: str) -> int:
    return exit_code(script.main, [*OPTIONS, "--out", str(out), *more])


def lines(out: Path) -> list[dict[str, Any]]:
    """The rows, their seconds aside."""
    rows = [json.loads(line) for line in out.with_suffix(".jsonl").read_text().splitlines()]
    return [{name: v for name, v in row.items() if "seconds" not in name} for row in rows]


@pytest.fixture(autouse=True)
def _surroundings(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)


def test_correlations_are_those_of_scipy_also_with_ties():
    draw = np.random.default_rng(0)
    x, y = draw.integers(0, 6, (20, 24)), draw.integers(0, 9, (20, 24))
    assert np.allclose(spearman(x, y), [spearmanr(a, b).statistic for a, b in zip(x, y, strict=True)])
    assert np.allclose(kendall(x, y), [kendalltau(a, b).statistic for a, b in zip(x, y, strict=True)])


def test_intervals_hold_the_value_and_shrink_with_policies():
    draw = np.random.default_rng(0)
    x = draw.normal(size=48)
    y = x + draw.normal(size=48)
    few, many = (correlate(list(x[:n]), list(y[:n]))["spearman"] for n in (10, 48))
    assert few.low < few.value < few.high and many.low < many.value < many.high
    assert many.high - many.low < 0.6 * (few.high - few.low)


def test_a_constant_figure_has_no_correlation():
    assert np.isnan(correlate([1.0] * 6, list(range(6)))["kendall"].value)


def test_a_study_that_is_cut_ends_as_an_uncut_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    whole, cut = tmp_path / "whole.json", tmp_path / "cut.json"
    assert call(whole) == 0
    row = script.row

    def interrupted(*arguments: Any) -> dict[str, Any]:
        if arguments[-1] == 2:
            raise KeyboardInterrupt
        return row(*arguments)

    monkeypatch.setattr(script, "row", interrupted)
    assert call(cut) == 130
    monkeypatch.setattr(script, "row", row)
    with cut.with_suffix(".jsonl").open("a") as file:
        file.write('{"index": 2, "torn')
    assert call(cut) == 0
    assert lines(cut) == lines(whole)
    figures, other = (json.loads(path.read_text()) for path in (whole, cut))
    assert figures["proxies"] == other["proxies"] and figures["policies"] == 5
    assert set(figures["proxy_rank_correlation"]) == {"raw", "renormalized", "symmetric", "asymmetric"}
    assert set(figures["reward_against_test"]) == {*figures["proxy_rank_correlation"], "tuned"}
    assert set(figures["proxy_seconds"]) == set(figures["proxy_rank_correlation"])
    assert figures["default"] == ProblemConfig().reconstruct
    assert len({each["policy"] for each in lines(whole)}) >= 4  # so small a network has few


def test_proxies_are_what_a_search_sees_and_fine_tuning_starts_from_what_the_default_delivers(
    monkeypatch: pytest.MonkeyPatch,
):
    problem = make_problem("macs=0.5")
    (policy,) = script.draw(problem, 1, 0)
    found, started = script.Proxies(problem), list[Any]()
    for name, reconstruct in script.PROXIES.items():
        scores, seconds = found.measure(name, policy)
        assert seconds > 0
        if name != "raw":
            (same,) = make_problem("macs=0.5", reconstruct=reconstruct).evaluator([policy])
            assert scores["reward"] == same.score

    def tuned(options: Any, problem: Problem, model: Any) -> dict[str, float]:
        started.append(model)
        return {"reward": 0.0, "test": 0.0}

    delivered = problem.evaluator.searched(policy)
    monkeypatch.setattr(problem.evaluator, "compressed", lambda policy: delivered)
    monkeypatch.setattr(script, "tuned_score", tuned)
    row = script.row(script.ProxyCorrelation(), problem, found, policy, 0)
    assert started == [delivered] and set(row["proxy_seconds"]) == set(script.PROXIES)


def test_it_says_whether_the_default_is_the_best_proxy_and_what_each_costs():
    ranks, seconds = {"raw": None, "symmetric": 0.8, "asymmetric": 0.9}, dict.fromkeys(script.PROXIES, 2.0)
    assert "default reward, asymmetric (+0.90, 2.00 s), ranks" in script.conclusion(
        ranks, seconds, "asymmetric"
    )
    said = script.conclusion(ranks, {**seconds, "symmetric": 3.0}, "symmetric")
    assert "that of asymmetric (+0.90, 2.00 s), and not that of the default reward, symmetric" in said
    assert "1.50 times as long" in said


def test_rows_of_another_setting_are_not_mixed(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    out = tmp_path / "study.json"
    settings = script.ProxyCorrelation().settings
    out.with_suffix(".jsonl").write_text(json.dumps({"settings": settings}) + "\n")
    assert call(out) == 2
    assert "another" in capsys.readouterr().err
    out.with_suffix(".jsonl").write_text("no row\n")
    assert call(out) == 2
    assert "does not hold rows" in capsys.readouterr().err


def test_too_few_policies_are_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    assert call(tmp_path / "study.json", "--policies", "3") == 2
    assert "at least 4" in capsys.readouterr().err

"""A page about several runs: what is grouped, what is a repeat, what is drawn as beaten."""

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from agents.report import write_report
from agents.report_data import Record, load_record
from agents.report_groups import best_so_far, by_network, grouped
from agents.report_pareto import dominated, panels
from agents.run_config import RunConfig
from tests.test_report import CONFIG, make_run, report


def config_of(algorithm: str = "td3", seed: int = 0, budget: str = "macs=0.5", **agent: Any) -> RunConfig:
    return replace(
        CONFIG,
        agent=replace(CONFIG.agent, algorithm=algorithm, seed=seed, **agent),
        problem=replace(CONFIG.problem, budget=(budget,)),
    )


def record(folder: Path, scores: Sequence[float], test: float | None = None, **config: Any) -> Record:
    made = make_run(folder, scores, config_of(**config))
    found = load_record(made)
    if test is not None and found.best is not None:
        row = {"name": found.algorithm, "reward_score": found.best.score, "costs": dict(found.best.costs)}
        (made / "outcomes.json").write_text(json.dumps([{**row, "test_score": test}]))
    return load_record(made)


def test_repeats_are_one_series_and_other_questions_other_groups(tmp_path: Path):
    runs = [
        record(tmp_path / "a", (0.6, 0.7), seed=1),
        record(tmp_path / "b", (0.6, 0.8), algorithm="random"),
        record(tmp_path / "c", (0.6, 0.9), seed=0),
        record(tmp_path / "d", (0.5,), budget="macs=0.3"),
        record(tmp_path / "e", (0.6, 0.7), candidates=1),
    ]
    first, second = grouped(runs)
    assert [series.label for series in first.series] == [
        "td3 (candidates 256)",
        "random",
        "td3 (candidates 1)",
    ]
    assert [each.name for each in first.series[0].records] == ["c", "a"]
    assert second.title.replace("\N{NO-BREAK SPACE}", " ").endswith(
        "at most 30 % of the multiply-accumulates"
    )
    assert len(by_network(runs)) == 1


def test_groups_that_read_alike_are_told_apart(tmp_path: Path):
    one = record(tmp_path / "a", (0.6,))
    wide = make_run(tmp_path / "b", (0.6,), replace(one.config, source=replace(one.config.source, width=2.0)))
    titles = [group.title for group in grouped([one, load_record(wide)])]
    assert titles[0].endswith("(width 1.0)") and titles[1].endswith("(width 2.0)")


def test_curves_of_repeats_are_as_long_as_the_shortest_that_goes_on(tmp_path: Path):
    whole = record(tmp_path / "a", (0.6, 0.5, 0.7, 0.65), seed=0)
    cut = record(tmp_path / "b", (0.6, 0.8), seed=1)
    (group,) = grouped([whole, cut])
    assert np.allclose(best_so_far(group.series[0], 4, scored=True), [[60, 60], [60, 80]])
    (alone,) = grouped([whole])
    assert np.allclose(best_so_far(alone.series[0], 6, scored=True), [[60, 60, 70, 70, 70, 70]])


def test_what_another_run_beats_is_faint(tmp_path: Path):
    runs = [
        record(tmp_path / "good", (0.6, 0.9)),
        record(tmp_path / "bad", (0.6, 0.8), seed=1),
        record(tmp_path / "cheap", (0.6, 0.5, 0.7), seed=2),
        record(tmp_path / "empty", (), seed=3),
    ]
    assert {Path(name).name: beaten for name, beaten in dominated(runs).items()} == {
        "good": False,
        "bad": True,
        "cheap": False,
    }
    text, page = report(*(each.folder for each in runs))
    assert not page.open and text.count("class='faint'><th") == 1
    assert "bad" in text.split("class='faint'><th")[1][:40]


def test_scores_are_of_the_test_split_where_every_run_has_its_own(tmp_path: Path):
    tested = [record(tmp_path / f"{n}", (0.6, 0.7 + n / 10), test=0.65 + n / 10, seed=n) for n in range(2)]
    (panel,) = panels(tested)
    assert panel.tested and [round(point.score, 3) for point in panel.points] == [0.65, 0.75]
    (mixed,) = panels([*tested, record(tmp_path / "x", (0.6, 0.9), seed=5)])
    assert not mixed.tested and mixed.points[-1].score == 0.9


@pytest.mark.parametrize("count", [3, 13])
def test_page_of_repeats_has_their_mean_and_spread(tmp_path: Path, count: int):
    for seed in range(count):
        record(tmp_path / f"run{seed}", (0.6, 0.7 + 0.1 * (seed % 2)), seed=seed)
    folders = [tmp_path / f"run{seed}" for seed in range(count)]
    text, page = report(*folders)
    if count == 3:
        # 70, 80 and 70 %: the mean is 73.33, the standard deviation 5.77.
        assert "73.33 % ± 5.77" in page.cells
    assert f"{count} seeds" in text
    assert ("<details>" in text) == (count == 3)


def test_drawings_of_several_questions_are_numbered(tmp_path: Path):
    runs = [record(tmp_path / name, (0.6, 0.7), budget=f"macs=0.{name}") for name in "35"]
    written = write_report([each.folder for each in runs], tmp_path / "page.html")
    names = ["page.html", "page-curve-1.png", "page-curve-2.png", "page-pareto.png"]
    assert [path.name for path in written] == names

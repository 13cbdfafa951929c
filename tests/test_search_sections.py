"""Sections of the page of the search results: what is compared, drawn and ranked, under whose settings."""

from dataclasses import replace
from pathlib import Path

import pytest
from scipy.stats import spearmanr

from scripts import search_page, search_plots, search_rows_measured
from scripts.search_comparison import Setting, contests
from scripts.search_page import SearchPage, comparison, curves, table
from scripts.search_page_measured import seen
from scripts.search_page_without import without
from scripts.search_rows import NETWORKS, WITHOUT, SearchResults, Spec, plan, search_config
from tests.test_run import tiny_model, tiny_task
from tests.test_search_results import TINY, made_up

OLD = [made_up("resnet20", who, "0", score, variant="l2") for who, score in (("ddpg", 0.8), ("random", 0.7))]
RULE = made_up("resnet20", "uniform", "0", 0.81)


def test_other_settings_are_compared_until_somebody_has_searched_with_the_defaults() -> None:
    (found,) = contests([RULE, *OLD])
    assert found.caption == "resnet20, 50% of the MACs (--importance l2 --reconstruct symmetric)"
    said = "\n".join(comparison([RULE, *OLD]))
    assert f"* {found.caption}: **ddpg** has the best mean (80.00%)" in said
    assert f"| {found.caption} | random | 1 | +10.00 (one seed)" in said
    alone = made_up("resnet20", "ddpg", "0", 0.9)
    (found,) = contests([RULE, *OLD, alone])  # one searcher has nobody to be compared with
    assert found.searchers == ["random", "ddpg"]
    (found,) = contests([RULE, *OLD, alone, made_up("resnet20", "random", "0", 0.8)])
    assert found.caption == "resnet20, 50% of the MACs" and found.searchers == ["uniform", "random", "ddpg"]
    (found,) = contests([RULE])
    assert found.searchers == ["uniform"]


def test_the_searches_of_other_settings_are_drawn_and_no_line_is_of_another_split(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    drawn: list[tuple[str, str]] = []
    heights: list[float] = []
    draw = search_plots.draw

    def heard(axes: object, setting: Setting, searcher: str) -> None:
        drawn.append((setting.caption, searcher))
        draw(axes, setting, searcher)
        heights.extend(float(line.get_ydata()[-1]) for line in axes.lines)

    monkeypatch.setattr(search_plots, "draw", heard)
    curves([RULE, *OLD, made_up("resnet56", "ddpg", "0", 0.9)], SearchPage(images=tmp_path))
    assert [(caption[:8], who) for caption, who in drawn] == [
        ("resnet20", "random"),
        ("resnet20", "ddpg"),
        ("resnet56", "ddpg"),
    ]
    assert set(heights) == {70.0, 80.0, 90.0}
    assert {path.name for path in tmp_path.iterdir()} == {
        f"search_curves_{network}.png" for network in ("resnet20", "resnet56")
    }


def test_the_test_accuracy_of_the_first_half_is_in_the_table() -> None:
    row = made_up("resnet20", "ddpg", "0", 0.9)
    row["best"][0]["test_untuned"] = 0.8642
    page = table([row, RULE])[4].splitlines()
    head, uniform, ddpg = ([cell.strip() for cell in page[line].split("|")] for line in (0, 2, 3))
    column = head.index("test un-tuned, half")
    assert ddpg[column] == "86.42%" and ddpg[column + 1] == "88.00%"
    rule = {**RULE, "best": RULE["best"][-1:]}
    assert search_page.line(Setting("resnet20", "0.5", (rule,)), "uniform", [])[2:6] == [
        "",
        "81.00%",
        "",
        "79.00%",
    ]
    assert uniform[column + 1] == "79.00%"


def test_each_part_of_the_agent_is_compared_with_the_agent_without_it() -> None:
    # The third seed is there with the part only: neither the differences nor the means may count it.
    defaults = [
        made_up("resnet20", "ddpg", seed, score) for seed, score in (("0", 0.9), ("1", 0.9), ("2", 0.96))
    ]
    off = [
        made_up("resnet20", "ddpg", seed, score, variant="unscreened")
        for seed, score in (("0", 0.86), ("1", 0.88))
    ]
    page = without([*defaults, *off, made_up("resnet20", "ddpg", "3", 0.5, variant="uniform-start")])
    (line,) = page[2].splitlines()[2:]  # no seed is there both with and without the other part
    assert "| unscreened | 2 | 90.00% | 87.00% | +3.00 (± 1.00) | +3.00 (± 1.00) | helps |" in line
    configs = [
        search_config(SearchResults(), Spec("table", "resnet20", "0.5", "ddpg", "0", kind))
        for kind in ("", "unscreened", "uniform-start")
    ]
    assert [config.agent.candidates for config in configs] == [256, 1, 256]
    assert [config.problem.reference for config in configs] == ["auto", "auto", "uniform"]
    planned = {spec.name for spec in plan()}
    for spec in (spec for spec in plan() if spec.variant in WITHOUT):
        assert replace(spec, variant="").name in planned  # what it is compared with is measured, too


def test_the_reward_split_is_ranked_against_the_test_split(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(NETWORKS, "tiny", TINY)
    monkeypatch.setattr(search_rows_measured, "SEEN_POLICIES", 5)
    monkeypatch.setattr(search_rows_measured, "load_source", lambda source: (tiny_model(), tiny_task()))
    row = search_rows_measured.seen_row(SearchResults(device="cpu"), Spec("seen", "tiny"))
    found = {"part": "seen", "network": "tiny", **row}
    reward, test = (found["scores"][split] for split in ("reward", "test"))
    assert len(reward) == len(test) == 5 and len(set(reward)) > 1 and found["seen"] is False
    assert found["spearman"]["value"] == pytest.approx(spearmanr(reward, test).statistic, abs=1e-4)
    page = "\n".join(seen([found, {**found, "seen": True, "network": "other"}]))
    assert "| tiny | unseen | 5 |" in page and "| other | seen in training | 5 |" in page
    assert "nothing is chosen by it" in page

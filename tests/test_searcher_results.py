"""The runner and the page of the searchers' comparison: real rows on digits, and made-up ones."""

import json
from pathlib import Path

import pytest
import torch

from agents.log import EvaluationLog
from amc.models import build_model, save_weights
from scripts import searcher_page, searcher_results
from scripts.cli import exit_code
from scripts.results_page import where_and_when
from scripts.search_rows import NETWORKS, Reference
from scripts.searcher_page import advice, missing
from scripts.searcher_rows import (
    BEFORE,
    SEARCHERS,
    SearcherResults,
    Spec,
    command,
    plan,
    run_folder,
    seeds_of,
    with_table,
)
from scripts.searcher_tables import Contest, contests, leaders
from tests.test_run import FAKE

TINY = Reference("digitsnet", width=0.25, data="digits", side=8)


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with random weights of the only network of the plan."""
    torch.manual_seed(0)
    specs = [Spec("tiny", "macs", "0.5", name, "0") for name in ("uniform", "random")]
    for module in (searcher_results, searcher_page):
        monkeypatch.setattr(module, "plan", lambda rows: specs)
    monkeypatch.setitem(NETWORKS, "tiny", TINY)
    save_weights(build_model("digitsnet", 10, 1, 0.25), tmp_path / "tiny.safetensors")
    return tmp_path


def call(folder: Path, *arguments: object) -> int:
    given = ["--out", folder / "searchers.json", "--table", folder / "search.json", "--runs", folder / "runs"]
    given += [
        "--weights-dir",
        folder,
        "--evaluations",
        6,
        "--data-root",
        folder,
        "--device",
        "cpu",
        *arguments,
    ]
    return exit_code(searcher_results.main, [str(argument) for argument in given])


def rows(folder: Path) -> dict:
    return json.loads((folder / "searchers.json").read_text())["rows"]


def made_up(
    searcher: str, seed: str, score: float, seconds: float = 9.0, cost: str = "macs", **fields: str
) -> dict:
    """A row as the runner writes it."""
    best = {"evaluations": 200, "reward_accuracy": score, "test_untuned": score - 0.02, "found_at": 50}
    best |= {"seconds": seconds, "macs_fraction": 0.5, "cost_fraction": 0.49}
    return {
        **Spec("resnet20", cost, "0.5", searcher, seed, **fields).to_json(),
        "best": [{**best, "evaluations": 100, "reward_accuracy": score - 0.01}, best],
        "original_reward": 0.93,
        "original_test": 0.92,
        "reward_images": 2000,
        "seen": False,
        "seconds": seconds,
        "origin": {"commit": "0", "date": "today", "machine": {"cpu": "a CPU", "cores": 1}},
    }


def page_of(folder: Path) -> str:
    given = ["--figures", folder / "searchers.json", "--table", folder / "search.json"]
    assert exit_code(searcher_page.main, [str(argument) for argument in given]) == 0
    return (folder / "searchers.md").read_text()


def named(found: list[dict]) -> dict[str, dict]:
    keys = ("network", "cost", "budget", "searcher", "seed", "settings")
    return {Spec(*(row[key] for key in keys)).name: row for row in found}


def test_every_row_has_a_name_of_its_own_and_its_command_makes_it_alone() -> None:
    specs = plan({})
    # Rules and greedy have one seed; the earlier settings know neither balanced nor greedy.
    assert len({spec.name for spec in specs}) == len(specs) == 2 * (5 + 7 * 5) + 3 + 7 * 5
    names = {spec.name for spec in specs}
    assert {"resnet20/macs/0.5/cbo/4", "resnet20/latency/0.5/greedy/0/default"} <= names
    assert "resnet20/macs/0.5/balanced/0/default" in names and "resnet20/macs/0.5/balanced/0" not in names
    for spec in specs:
        only = command(SearcherResults(), spec).split("'")[1]
        assert searcher_results.runner(SearcherResults()).chosen(specs, only) == [spec]


def test_the_best_three_go_on_once_all_are_measured() -> None:
    found = [
        made_up(name, seed, 0.8 + 0.01 * place)
        for place, name in enumerate(SEARCHERS)
        for seed in seeds_of(name)
    ]
    later = [spec for spec in plan(named(found)) if spec.network != "resnet20"]
    assert [(s.network, s.searcher) for s in later[:3]] == [("resnet56", name) for name in SEARCHERS[:-4:-1]]
    assert "`resnet56/macs/0.5/sac/*/default`: seeds 0" in missing(named(found))[1]
    # Until then it is said that they wait.
    assert "`resnet56/macs/0.5/*/0/default`: the 3 searchers" in missing(named(found[:-1]))[1]
    assert [s.network for s in later[3:]] == ["mobilenet_v2-half"] * 3
    assert plan(named(found[:-1])) == plan({})


def test_searches_under_macs_share_the_directories_of_the_search_table() -> None:
    options = SearcherResults()
    macs, latency = (Spec("resnet20", cost, "0.5", "ddpg", "1") for cost in ("macs", "latency"))
    assert run_folder(options, macs) == Path("runs/search/table-resnet20-0.5-ddpg-1")
    assert run_folder(options, latency) == Path("runs/searchers/resnet20-latency-0.5-ddpg-1-default")
    before = Spec("resnet20", "macs", "0.5", "ddpg", "1", BEFORE)
    assert run_folder(options, before) == Path("runs/search/table-resnet20-0.5-ddpg-1-l2")


@pytest.mark.slow
def test_a_search_becomes_a_row_with_the_best_of_its_half_and_of_all(folder: Path) -> None:
    assert call(folder) == 0
    row = rows(folder)["tiny/macs/0.5/random/0/default"]
    log = EvaluationLog(folder / "runs" / "table-tiny-0.5-random-0" / "evaluations.jsonl")
    assert [best["evaluations"] for best in row["best"]] == [3, 6]
    assert [best["reward_accuracy"] for best in row["best"]] == [
        max(each.score for each in log.rows[:count]) for count in (3, 6)
    ]
    assert row["best"][1]["cost_fraction"] == row["best"][1]["macs_fraction"] <= 0.5
    assert page_of(folder).count("#### tiny, 50% of the MACs, 6 evaluations") == 1


def test_what_the_search_table_has_is_taken_and_not_searched_again(folder: Path) -> None:
    row = {**made_up("random", "0", 0.9), "part": "table", "network": "tiny", "command": "x", "seen": False}
    row["best"] = [{**best, "evaluations": count} for best, count in zip(row["best"], (3, 6), strict=True)]
    (folder / "search.json").write_text(json.dumps({"rows": {"table/tiny/0.5/random/0": row}}))
    (folder / "tiny.safetensors").unlink()
    assert call(folder, "--only", "*/random/*") == 0
    taken = rows(folder)["tiny/macs/0.5/random/0/default"]
    assert taken["best"] == row["best"] and taken["taken_from"] == "table/tiny/0.5/random/0"
    assert taken["seconds"] == 9.0 and not (folder / "runs").exists()
    # Asked for again it is searched here, which needs the weights.
    assert call(folder, "--only", "*/random/*", "--again") == 2


def test_searches_of_the_table_count_for_who_goes_on(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    table = {
        f"table/resnet20/0.5/{name}/{seed}": {**made_up(name, seed, 0.8 + 0.01 * place), "part": "table"}
        for place, name in enumerate(SEARCHERS)
        for seed in seeds_of(name)
    }
    (tmp_path / "search.json").write_text(json.dumps({"rows": table}))
    assert call(tmp_path, "--list") == 0
    assert "resnet56/macs/0.5/sac/0/default" in capsys.readouterr().out


def test_a_row_that_was_taken_says_where_it_was_searched() -> None:
    def origin(date: str) -> dict:
        return {"commit": "0", "date": date, "machine": {"cpu": "a CPU", "cores": 1}}

    own, taken = {"origin": origin("May")}, {"origin": origin("June"), "searched": origin("April")}
    said = where_and_when([own, taken])[1]
    assert "May" in said and "April" in said and "June" not in said


def test_a_contest_is_read_at_its_number_of_evaluations() -> None:
    half, whole = contests([made_up("ddpg", seed, 0.9) for seed in "01"])
    assert (half.evaluations, whole.evaluations) == (100, 200)
    assert half.mean("ddpg") == pytest.approx(0.89) and whole.mean("ddpg") == pytest.approx(0.9)
    assert whole.title == "resnet20, 50% of the MACs, 200 evaluations"


def test_what_draws_nothing_is_compared_with_every_seed() -> None:
    found = [made_up("greedy", "0", 0.90), *(made_up("ddpg", seed, 0.87 + int(seed) / 100) for seed in "012")]
    contest = Contest("resnet20", "0.5", tuple(found), "macs", 200)
    for one, other, sign in (("greedy", "ddpg", 1), ("ddpg", "greedy", -1)):
        difference = contest.difference(one, other)
        assert difference is not None and difference.pairs == 3
        assert difference.mean == pytest.approx(sign * 0.02)


def test_leaders_are_the_best_and_those_that_tie_with_it() -> None:
    found = [made_up("ddpg", "0", 0.90), made_up("cbo", "0", 0.899), made_up("random", "0", 0.85)]
    assert leaders(Contest("resnet20", "0.5", tuple(found), "macs", 200)) == ["ddpg", "cbo"]


def test_the_page_says_which_searcher_to_use(tmp_path: Path) -> None:
    found = [
        made_up(name, seed, score, seconds, cost)
        for cost in ("macs", "latency")
        for seed in "01"
        for name, score, seconds in (("random", 0.85, 100), ("ddpg", 0.9, 200), ("cbo", 0.899, 150))
    ]
    text = "\n".join(advice(contests(found)))
    assert (
        "Use `cbo`: it has the best mean, or ties with the best, in 4 of 4 contests. `ddpg` does so" in text
    )
    assert "| random | 0 of 4 | -5.00 | 100 |" in text
    (tmp_path / "searchers.json").write_text(json.dumps({"rows": named(found)}))
    page = page_of(tmp_path)
    assert "* `resnet20/macs/0.5/ddpg/*/default`: seeds 2, 3, 4" in page
    assert "two readings of the same runs" in page and "the comparison began" not in page
    tables = json.loads((tmp_path / "searchers.json").read_text())["tables"]
    assert tables["advice"][-1] == {
        **{"settings": "default", "searcher": "random", "best or tied": 0, "contests": 4},
        **{"points behind the best, mean": -5.0, "seconds of a search": 100.0},
    }
    figures = [line for line in tables["figures"] if line["cost"] == "latency" and line["evaluations"] == 200]
    assert [line["searcher"] for line in figures] == ["random", "cbo", "ddpg"]
    # 0.9 - 0.02 of 0.92.
    assert {name: figures[2][name] for name in ("points", "found at", "of the budget's cost", "seeds")} == {
        **{"points": -4.0, "found at": 50, "of the budget's cost": 0.49, "seeds": 2},
    }


def test_earlier_settings_have_a_block_of_their_own_and_give_no_advice(tmp_path: Path) -> None:
    scores = (("random", 0.85), ("ddpg", 0.9))
    before = [made_up(name, seed, score, settings=BEFORE) for name, score in scores for seed in "01"]
    for row in before:
        del row["settings"]  # as the first rows were written
    keys = ("network", "cost", "budget", "searcher", "seed")
    own = {"/".join(row[key] for key in keys): row for row in before}
    (tmp_path / "searchers.json").write_text(json.dumps({"rows": own}))
    page = page_of(tmp_path)
    first, began = page.split("## Under the settings with which the comparison began")
    assert "no two searchers have been compared" in first and "Use `" not in page
    assert "| ddpg | 2 of 2 |" in began and "`--importance l2`" in began
    # Today's rows come from the search table as they appear.
    today = {**made_up("ddpg", "1", 0.95), "part": "table", "command": "x"}
    random = {**made_up("random", "1", 0.9), "part": "table", "command": "x"}
    table = {f"table/resnet20/0.5/{row['searcher']}/1": row for row in (today, random)}
    (tmp_path / "search.json").write_text(json.dumps({"rows": table}))
    first, _ = page_of(tmp_path).split("## Under the settings with which the comparison began")
    assert "Use `ddpg`" in first and "**ddpg** (95.00%)" in first
    assert set(json.loads((tmp_path / "searchers.json").read_text())["rows"]) == set(own)
    table["table/resnet20/0.5/ddpg/1"]["best"][-1]["evaluations"] = 150
    assert "resnet20/macs/0.5/ddpg/1/default" not in with_table(own, table)


@pytest.mark.slow
def test_a_search_under_a_latency_budget_says_what_it_measured(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    spec = Spec("tiny", "latency", "0.5", "random", "0")
    monkeypatch.setattr(searcher_results, "plan", lambda rows: [spec])
    monkeypatch.setenv("AMC_CACHE_DIR", str(folder / "cache"))
    plain = searcher_results.search_config

    def on_fake(options: SearcherResults, spec: Spec):
        config = plain(options, spec)
        object.__setattr__(config.problem, "target", FAKE)
        return config

    monkeypatch.setattr(searcher_results, "search_config", on_fake)
    assert call(folder, "--latency-runs", folder / "latency") == 0
    best = rows(folder)[spec.name]["best"][-1]
    assert best["cost_fraction"] <= 0.51 and best["measured"] >= 1

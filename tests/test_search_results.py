"""The runner and the page of the search results: real rows on digits, and made-up ones."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from agents.log import EvaluationLog
from amc.errors import UserError
from amc.models import build_model, save_weights
from scripts import fine_tune, proxy_correlation, search_page, search_results, search_rows, search_rows_table
from scripts.cli import exit_code
from scripts.search_comparison import Difference, Setting, best_so_far
from scripts.search_page_measured import proxies
from scripts.search_rows import (
    NETWORKS,
    TUNED_EPOCHS,
    Reference,
    SearchResults,
    Spec,
    command,
    plan,
)
from scripts.search_words import anchors, unmeasured, winner

TINY = Reference("digitsnet", width=0.25, data="digits", side=8)
PLAN = [
    *(Spec("table", "tiny", "0.5", who, seed) for seed in ("0", "1", "2") for who in ("random", "ddpg")),
    Spec("table", "tiny", "0.5", "uniform", "0"),
    Spec("tuned", "tiny", "0.5", "random"),
]

RANKED = {"spearman": {"value": 0.9, "low": 0.8, "high": 1.0}}
PROXY = {
    "proxy_rank_correlation": {"raw": 0.2, "symmetric": 0.9},
    "proxies": {"raw": RANKED, "symmetric": RANKED},
    "reward_against_test": {"raw": {"spearman": {"value": None}}, "symmetric": RANKED},
    "mean_score": {"raw": {"reward": 0.3}, "symmetric": {"reward": 0.8}},
    "proxy_seconds": {"raw": 0.5, "symmetric": 1.5},
    "default": "symmetric",
    "policies": 24,
    "seconds": 90.0,
}


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with random weights of the only network of the plan."""
    torch.manual_seed(0)
    monkeypatch.setattr(search_results, "plan", lambda: PLAN)
    monkeypatch.setitem(NETWORKS, "tiny", TINY)
    save_weights(build_model("digitsnet", 10, 1, 0.25), tmp_path / "tiny.safetensors")
    return tmp_path


def call(folder: Path, *arguments: object) -> int:
    given = ["--out", folder / "search.json", "--runs", folder / "runs", "--weights-dir", folder]
    given += ["--evaluations", 6, "--data-root", folder, "--device", "cpu", *arguments]
    return exit_code(search_results.main, [str(argument) for argument in given])


def figures(folder: Path) -> dict:
    return json.loads((folder / "search.json").read_text())


def made_up(network: str, searcher: str, seed: str, score: float, **others: object) -> dict:
    """A row of the table as the runner writes it."""
    best = {"evaluations": 200, "reward_accuracy": score, "test_untuned": score - 0.02, "seconds": 9.0}
    row = {
        **Spec("table", network, "0.5", searcher, seed).to_json(),
        "best": [{**best, "evaluations": 100, "reward_accuracy": score - 0.01}, best],
        "improved_at": [1, 7],
        "best_so_far": [0.5, score],
        "original_reward": 0.93,
        "original_test": 0.92,
        "reward_images": 2000,
        "seen": NETWORKS[network].seen,
        "threads": 1,
        "seconds": 9.0,
        "origin": {"commit": "0", "date": "today", "machine": {"cpu": "a CPU", "cores": 1}},
    }
    return {**row, **others}


def tuned(network: str, searcher: str, seed: str, score: float, epochs: int) -> dict:
    """A fine-tuned row."""
    row = made_up(network, searcher, seed, 0.0)
    kept = {
        key: row[key] for key in ("network", "budget", "searcher", "seed", "seconds", "origin", "threads")
    }
    return {**kept, "part": "tuned", "epochs": epochs, "test_tuned": score, "original_test": 0.92}


def by_name(rows: list[dict]) -> dict[str, dict]:
    return {str(number): row for number, row in enumerate(rows)}


def test_every_row_has_a_name_of_its_own_and_its_command_makes_it_alone() -> None:
    specs = plan()
    assert len({spec.name for spec in specs}) == len(specs)
    assert {
        "table/resnet56/0.3/bayes/2",
        "tuned/resnet20/0.5/uniform",
        "headline/resnet56/0.5/ddpg",
        "table/resnet20/0.5/ddpg/0/none",
        "table/mobilenet_v2-half/0.5/evolution/4",
    } <= {spec.name for spec in specs}
    for spec in specs:
        only = command(SearchResults(), spec).split("'")[1]
        assert search_results.runner(SearchResults()).chosen(specs, only) == [spec]


def test_the_plan_keeps_the_order_of_priorities() -> None:
    tables = [(s.network, s.seed) for s in plan() if s.part == "table" and not s.variant]
    networks = list(dict.fromkeys(network for network, _ in tables))
    assert networks == ["resnet20", "resnet56", "plain20", "vgg16-quarter", "mobilenet_v2-half"]
    first = next(number for number, (_, seed) in enumerate(tables) if seed in ("3", "4"))
    assert all(tables.index((network, "0")) < first for network in networks)


def test_a_search_becomes_a_row_with_the_best_of_its_half_and_of_all(folder: Path) -> None:
    assert call(folder, "--only", "table/tiny/0.5/random/0") == 0
    log = EvaluationLog(folder / "runs" / "table-tiny-0.5-random-0" / "evaluations.jsonl")
    half, whole = figures(folder)["table"]
    assert (half["evaluations"], whole["evaluations"], len(log)) == (3, 6, 6)
    assert half["reward_accuracy"] == max(row.score for row in log.rows[:3])
    assert whole["reward_accuracy"] == max(row.score for row in log.rows)
    assert set(whole) == {
        "network",
        "budget",
        "searcher",
        "evaluations",
        "seed",
        "reward_accuracy",
        "test_untuned",
        "test_tuned",
        "seconds",
    }
    assert (whole["network"], whole["budget"], whole["searcher"], whole["seed"]) == ("tiny", 0.5, "random", 0)
    assert whole["test_tuned"] is None and 0 < half["seconds"] <= whole["seconds"]
    (row,) = figures(folder)["rows"].values()
    assert best_so_far(row, 6)[-1] == whole["reward_accuracy"]
    assert {"commit", "date", "machine"} <= set(row["origin"]) and "--evaluations 6" in row["command"]


def test_a_cut_search_goes_on_where_it_was_and_its_seconds_add_up(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    evaluated: list[int] = []
    keep = EvaluationLog.add

    def cut(log: EvaluationLog, *arguments: object) -> object:
        if len(log) == 3 and len(evaluated) == 3:
            raise KeyboardInterrupt
        evaluated.append(len(log))
        return keep(log, *arguments)

    monkeypatch.setattr(EvaluationLog, "add", cut)
    assert call(folder, "--only", "table/tiny/0.5/random/0") == 130
    assert not (folder / "search.json").exists()
    run = folder / "runs" / "table-tiny-0.5-random-0"
    before = json.loads((run / "seconds.json").read_text())
    evaluated.append(-1)
    assert call(folder, "--only", "table/tiny/0.5/random/0") == 0
    assert evaluated == [0, 1, 2, -1, 3, 4, 5]  # nothing was measured twice
    after = json.loads((run / "seconds.json").read_text())
    assert list(after) == ["0", "1", "2", "3", "4", "5"]
    assert all(after[index] == seconds for index, seconds in before.items())
    assert list(after.values()) == sorted(after.values())


def test_rows_of_another_process_are_kept_and_not_made_again(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made: list[str] = []

    def beside(options: SearchResults, spec: Spec) -> dict:
        made.append(spec.name)
        other = {"part": "other", "seconds": 1.0}
        rows = {"table/tiny/0.5/ddpg/1": {**made_up("tiny", "ddpg", "1", 0.9)}, "theirs": other}
        (folder / "search.json").write_text(json.dumps({"rows": rows}))
        return made_up("tiny", spec.searcher, spec.seed, 0.8)

    monkeypatch.setitem(search_results.MAKERS, "table", beside)
    assert call(folder, "--only", "table/tiny/0.5/*/[01]") == 0
    assert "table/tiny/0.5/ddpg/1" not in made and len(made) == 4
    assert "theirs" in figures(folder)["rows"]


def test_the_uniform_policy_is_one_evaluation(folder: Path) -> None:
    assert call(folder, "--only", "table/tiny/0.5/uniform/0") == 0
    (line,) = figures(folder)["table"]
    assert (line["searcher"], line["evaluations"]) == ("uniform", 1)


def test_a_fine_tuning_waits_for_all_seeds_and_is_of_the_median_one(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys
) -> None:
    assert call(folder, "--only", "tuned/*") == 2
    assert "waits for table/tiny/0.5/random/0, table/tiny/0.5/random/1" in capsys.readouterr().err
    scores = {"0": 0.5, "1": 0.7, "2": 0.6}
    rows = {
        Spec("table", "tiny", "0.5", "random", seed).name: made_up("tiny", "random", seed, score)
        for seed, score in scores.items()
    }
    (folder / "search.json").write_text(json.dumps({"rows": rows}))
    of: list[tuple[str, int]] = []

    def stand_in(run: Path, epochs: int) -> dict:
        of.append((run.name, epochs))
        test = {"original": {"test": 0.9}, "compressed": {"test": 0.8}}
        return {"scores": {**test, "fine-tuned": {"test": 0.88, "reward": 0.89}}}

    monkeypatch.setattr(search_rows_table, "tuned_figures", stand_in)
    assert call(folder, "--only", "tuned/*") == 0
    assert of == [("table-tiny-0.5-random-2", TUNED_EPOCHS)]
    found = {(line["seed"], line["evaluations"]): line["test_tuned"] for line in figures(folder)["table"]}
    assert found == {(2, 200): 0.88} | {
        key: None for key in ((0, 100), (0, 200), (1, 100), (1, 200), (2, 100))
    }


@pytest.mark.slow
def test_a_real_fine_tuning_after_real_searches(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(search_rows_table, "TUNED_EPOCHS", 1)
    assert call(folder, "--only", "*/random*") == 0
    (line,) = [line for line in figures(folder)["table"] if line["test_tuned"] is not None]
    finals = [other for other in figures(folder)["table"] if other["evaluations"] == 6]
    assert line["reward_accuracy"] == sorted(other["reward_accuracy"] for other in finals)[1]
    tuned_folder = folder / "runs" / f"table-tiny-0.5-random-{line['seed']}" / "fine_tuned_1"
    written = json.loads((tuned_folder / fine_tune.TUNED_FILE).read_text())
    assert line["test_tuned"] == written["scores"]["fine-tuned"]["test"]


def test_of_a_rule_its_own_policy_is_shown_even_where_the_uniform_one_is_better(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(search_results, "plan", lambda: [Spec("table", "tiny", "0.5", "shallow", "0")])
    assert call(folder) == 0
    log = EvaluationLog(folder / "runs" / "table-tiny-0.5-shallow-0" / "evaluations.jsonl")
    (line,) = figures(folder)["table"]
    assert line["evaluations"] == len(log)
    assert line["reward_accuracy"] == max(row.score for row in log.rows[1:])


def test_what_is_not_here_is_skipped_with_a_sentence(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys
) -> None:
    others = [Spec("table", "resnet56", "0.5", who, "0") for who in ("uniform", "ddpg")]
    monkeypatch.setattr(search_results, "plan", lambda: [*PLAN, *others])
    wanted = ("--only", "table/*/uniform/0")
    assert call(folder, *wanted, "--weights-56", folder / "no.th") == 0
    assert call(folder, "--only", "table/resnet56/*", "--weights-56", folder / "no.th") == 2
    said = capsys.readouterr().err
    assert "resnet56 is skipped" in said and "pass --weights-56" in said
    assert "None of the 2 missing rows" in said


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (("--only", "nothing/*"), "No row matches"),
        (("--threads", "0"), "must be at least 1"),
        (("--weights-dir", "nowhere"), "docs/weights/README.md"),
    ],
)
def test_bad_input_is_refused_before_any_row(folder: Path, capsys, arguments, sentence: str) -> None:
    assert call(folder, *arguments) == 2
    assert sentence in capsys.readouterr().err
    assert not (folder / "search.json").exists()


def test_the_longest_fine_tuning_counts_and_only_for_the_seed_and_reconstruction_that_it_was_of() -> None:
    searches = [made_up("resnet56", "ddpg", seed, 0.9) for seed in ("0", "1")]
    searches.append(made_up("resnet56", "ddpg", "1", 0.8, variant="none"))
    found = search_results.summary(
        by_name(
            [*searches, *(tuned("resnet56", "ddpg", "1", score, n) for score, n in ((0.91, 8), (0.92, 15)))]
        )
    )
    assert [line["test_tuned"] for line in found["table"]] == [None, None, None, 0.92]
    assert [line["test_tuned"] for line in found["variants"]] == [None, None]
    assert found["worker_efficiency"] is None and found["proxy_rank_correlation"] == {}


def setting(**scores: tuple[float, ...]) -> Setting:
    rows = [
        made_up("resnet20", who, str(n), score)
        for who, found in scores.items()
        for n, score in enumerate(found)
    ]
    return Setting("resnet20", "0.5", tuple(rows))


def test_differences_are_paired_by_seed_and_have_the_standard_error_of_their_mean() -> None:
    found = setting(ddpg=(0.90, 0.88, 0.92), random=(0.89, 0.85)).difference("ddpg", "random")
    assert found is not None
    assert (found.mean, found.error, found.pairs) == (pytest.approx(0.02), pytest.approx(0.01), 2)
    assert str(found) == "+2.00 (± 1.00)"
    rule = setting(ddpg=(0.90, 0.88), uniform=(0.80,)).difference("ddpg", "uniform")
    assert rule is not None and (rule.mean, rule.pairs) == (pytest.approx(0.09), 2)
    assert setting(ddpg=(0.9,)).difference("ddpg", "bayes") is None


def test_a_difference_below_the_standard_error_of_the_reward_split_is_a_tie() -> None:
    found = setting(ddpg=(0.90,), bayes=(0.895,), random=(0.80,))
    assert found.standard_error == pytest.approx(0.0067, abs=1e-4)
    assert found.is_tie(Difference(-0.006, None, 1)) and not found.is_tie(Difference(-0.007, None, 1))
    said = winner(found)
    assert "**ddpg** has the best mean (90.00%)" in said
    assert "tied with it: bayes by +0.50 (one seed)" in said
    assert "behind it: random by +10.00" in said


def test_the_headline_is_judged_on_the_test_split() -> None:
    rows = [made_up("resnet56", "ddpg", seed, score) for seed, score in (("0", 0.91), ("1", 0.93))]
    (said,) = anchors([*rows, tuned("resnet56", "ddpg", "0", 0.914, 15)])
    untuned, fine = said.splitlines()
    assert "-2.00 points (mean of 2 seeds)" in untuned and untuned.endswith("the paper -2.7: goal met.")
    assert "-0.60 points (one seed)" in fine and fine.endswith("the paper -0.9: **goal missed**.")


def test_missing_rows_that_differ_in_the_seed_share_a_line() -> None:
    specs = [spec for spec in plan() if spec.name.startswith("table/plain20/0.5/")]
    lines = unmeasured([spec for spec in specs if spec.searcher in ("uniform", "bayes")])
    assert lines == ["* `table/plain20/0.5/uniform`", "* `table/plain20/0.5/bayes`: seeds 0, 1, 2, 3, 4"]


def test_the_proxy_row_is_what_its_script_has_found(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(search_results, "plan", lambda: [Spec("proxy", "tiny")])
    given: list[Path | None] = []

    def stand_in(options: proxy_correlation.ProxyCorrelation) -> None:
        given.append(options.source.weights)
        options.out.parent.mkdir()
        options.out.write_text(json.dumps(PROXY))

    monkeypatch.setattr(proxy_correlation, "main", stand_in)
    assert call(folder) == 0
    assert given == [folder / "tiny.safetensors"]
    assert figures(folder)["proxy_rank_correlation"] == {"raw": 0.2, "symmetric": 0.9}
    row = figures(folder)["rows"]["proxy/tiny"]
    assert row["seconds"] == 90.0
    page = "\n".join(proxies([row]))
    assert page.index("symmetric (the default) | 1.50") < page.index("raw | 0.50")
    assert "The default reward, symmetric (+0.90, 1.50 s), ranks policies best" in page
    assert "+0.90 [+0.80, +1.00]" in page and "none" in page


def test_page_of_few_rows_and_of_many(tmp_path: Path) -> None:
    results = tmp_path / "results" / "search.json"
    results.parent.mkdir()
    arguments = ["--figures", str(results), "--images", str(tmp_path / "images")]
    assert exit_code(search_page.main, arguments) == 2  # nothing to show yet
    rows = {
        spec.name: made_up(spec.network, spec.searcher, spec.seed, 0.8 + len(spec.searcher) / 100)
        | ({"variant": spec.variant} if spec.variant else {})
        for spec in plan()
        if spec.part == "table"
    }
    one = "table/resnet20/0.5/ddpg/0"
    results.write_text(json.dumps({"rows": {one: rows[one]}}))
    assert exit_code(search_page.main, arguments) == 0
    few = results.with_suffix(".md").read_text()
    assert "* `table/resnet20/0.5/ddpg`: seeds 1, 2, 3, 4" in few and "`tuned/resnet20/0.5/ddpg`" in few
    assert [path.name for path in (tmp_path / "images").iterdir()] == ["search_curves_resnet20.png"]
    fine = {"tuned/resnet20/0.5/ddpg": tuned("resnet20", "ddpg", "0", 0.9, 8)}
    results.write_text(json.dumps({"rows": {**rows, **fine}}))
    assert exit_code(search_page.main, arguments) == 0
    many = results.with_suffix(".md").read_text()
    assert "`table/" not in many and "90.00% (8)" in many and "**Goal missed**" in many
    assert "**The weights have seen" in many
    assert len(list((tmp_path / "images").iterdir())) == len(NETWORKS)


def test_the_commands_in_the_readme_of_the_weights_train_the_networks_of_the_table() -> None:
    text = (Path(__file__).parents[1] / "docs" / "weights" / "README.md").read_text()
    for name, about in search_rows.NETWORKS.items():
        if not about.seen:
            width = "" if about.width == 1 else f" --width {about.width:g}"
            assert f"--model {about.model}{width} --data cifar10" in text and f"`{name}.safetensors`" in text


def test_a_median_of_an_even_number_of_seeds_is_the_lower_one() -> None:
    rows = {
        Spec("table", "plain20", "0.5", "ddpg", seed).name: made_up("plain20", "ddpg", seed, score)
        for seed, score in (("0", 0.9), ("1", 0.8))
    }
    spec = Spec("tuned", "plain20", "0.5", "ddpg")
    assert search_rows_table.median_search(spec, rows) == replace(spec, part="table", seed="1")
    with pytest.raises(UserError, match=r"waits for table/plain20/0\.3/ddpg/0"):
        search_rows_table.median_search(replace(spec, budget="0.3"), rows)

"""An agent of several networks: one observation for all, baselines for each, and a start for others."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from agents.actor_file import load_actor_file
from agents.checkpoint import load_checkpoint
from agents.config import AgentConfig, SearchConfig
from agents.off_policy import OffPolicySearcher
from agents.run import load_run
from agents.run_config import RunConfig, SourceConfig
from agents.searcher import make_searcher
from agents.transfer import Transfer, general
from amc.errors import UserError
from envs.problem import Problem, ProblemConfig, build_problem
from scripts import train_transfer, transfer_page, transfer_results, transfer_rows
from scripts.cli import exit_code
from scripts.transfer_rows import GROUPS, Group, Spec, TransferResults, command, plan
from scripts.transfer_verdicts import difference, transfer_verdicts
from tests.test_run import ROOT, InterruptAt, rows, start, tiny_model, tiny_task

SETTINGS = general(ProblemConfig(budget=("macs=0.4",), reward_images=60, calibration_images=40))
AGENT = AgentConfig(warmup_evaluations=2, hidden_sizes=(16,), updates_per_transition=1, candidates=8)
SEARCH = SearchConfig(evaluations=10, checkpoint_every=3)


@pytest.fixture(autouse=True)
def _surroundings(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)


@pytest.fixture(scope="module")
def problems() -> dict[str, Problem]:
    return {f"tiny{layers}": build_problem(tiny_model(layers), tiny_task(), SETTINGS) for layers in (3, 4)}


@pytest.fixture(scope="module")
def trained(problems: dict[str, Problem], tmp_path_factory: pytest.TempPathFactory) -> Transfer:
    transfer = Transfer(tmp_path_factory.mktemp("transfer") / "trained", problems, AGENT, SEARCH)
    assert transfer.train().ending == "budget"
    return transfer


def test_a_summary_has_the_same_size_for_every_network_and_stays_in_its_box(problems: dict[str, Problem]):
    deep = build_problem(tiny_model(7), tiny_task(), SETTINGS)
    walks = [each.walk() for each in (*problems.values(), deep)]
    assert len({walk.observation_size for walk in walks}) == 1
    assert [walk.length for walk in walks] == [3, 4, 7]
    for walk in walks:
        seen, done = [walk.reset()], False
        while not done:
            observation, _, done = walk.step(np.full(walk.action_size, 0.4))
            seen.append(observation)
        stacked = np.stack(seen)
        assert stacked.min() >= 0.0 and stacked.max() <= 1.0 and np.isfinite(stacked).all()
        position = stacked[:, walk.layout.slice("place")][:, 0]
        assert position == pytest.approx(np.arange(walk.length + 1) / walk.length)


def test_a_summary_tells_decisions_apart(problems: dict[str, Problem]):
    walk = problems["tiny3"].walk()
    layout, ends = walk.layout, {}
    for action in (-0.8, 0.0):
        walk.reset()
        observation, *_ = walk.step(np.full(walk.action_size, action))
        ends[action] = observation
    kept = {action: float(seen[layout.slice("recent")][0]) for action, seen in ends.items()}
    assert kept[-0.8] < kept[0.0]
    for part in ("mean", "least", "by_depth"):
        assert ends[-0.8][layout.slice(part)].max() == pytest.approx(kept[-0.8], abs=1e-6)
    # What is left for the open layers is told before it is decided.
    assert ends[-0.8][layout.slice("reference")][0] >= ends[0.0][layout.slice("reference")][0]


def test_every_network_has_its_turn_and_its_baseline(trained: Transfer, problems: dict[str, Problem]):
    log = trained.log
    assert [row.case for row in log.rows[:2]] == ["tiny3", "tiny4"] == log.cases
    for name, problem in problems.items():
        mine = [row for row in log.rows if row.case == name]
        assert len(mine) == 5 and mine[0].reward == 0.0
        assert {row.policy.network for row in mine} == {problem.network.fingerprint}
        assert (trained.folder / "policies" / f"{name}.json").is_file()


@pytest.mark.parametrize("moment", [1, 6])
def test_a_training_that_was_cut_ends_like_one_that_was_not(
    tmp_path: Path, trained: Transfer, problems: dict[str, Problem], moment: int
):
    cut = Transfer(tmp_path / "cut", problems, AGENT, SEARCH)
    assert cut.train((InterruptAt(moment),)).ending == "interrupted"
    again = Transfer(tmp_path / "cut", problems, AGENT, SEARCH)
    assert again.train().ending == "budget"
    # What is scored already is remembered by the problems, which both trainings share.
    ends = [[{**row, "cached": None} for row in rows(each.folder)] for each in (again, trained)]
    assert ends[0] == ends[1]


def test_another_training_in_the_same_folder_is_refused(trained: Transfer, problems: dict[str, Problem]):
    with pytest.raises(UserError, match="with other agent"):
        Transfer(trained.folder, problems, replace(AGENT, seed=1), SEARCH)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"observation": "positions"}, "--observation summary"),
        ({"reward": "default"}, "--reward share"),
    ],
)
def test_settings_that_do_not_carry_over_are_refused(
    tmp_path: Path, problems: dict[str, Problem], change: dict[str, str], words: str
):
    other = build_problem(tiny_model(4), tiny_task(), replace(SETTINGS, **change))
    with pytest.raises(UserError, match=words):
        Transfer(tmp_path / "no", {**problems, "other": other}, AGENT, SEARCH)
    with pytest.raises(UserError, match="same layers"):
        Transfer(tmp_path / "no", {**problems, "other": problems["tiny3"]}, AGENT, SEARCH)


def test_the_actor_of_several_networks_is_exported_for_any(trained: Transfer, tmp_path: Path):
    actor = load_actor_file(trained.export(tmp_path / "actor"))
    assert len(actor.contract["networks"]) == 2
    deep = build_problem(tiny_model(7), tiny_task(), SETTINGS)
    walk = deep.walk()
    actor.check(walk)
    costs = deep.evaluator.costs_of(actor.decide(walk).policy)
    assert costs["macs"] <= 0.4 * deep.network.macs


def adapting(trained: Transfer, **agent: object) -> RunConfig:
    settings = replace(AGENT, start_from=trained.folder, sigma_start=0.1, **agent)  # type: ignore[arg-type]
    return RunConfig(SourceConfig(threads=1), SETTINGS, settings, SearchConfig(evaluations=6))


def test_a_search_goes_on_from_a_trained_agent(trained: Transfer, tmp_path: Path):
    run = start(tmp_path / "run", adapting(trained))
    searcher = make_searcher(run.problem.walk(), run.config.agent, 6)
    assert isinstance(searcher, OffPolicySearcher) and searcher.model.buffer.size() == 0
    stored = load_checkpoint(trained.folder / "checkpoint")
    assert stored is not None
    policy = stored["state"]["model"]["policy"]
    assert all(
        np.array_equal(policy[name], each) for name, each in searcher.model.policy.state_dict().items()
    )
    own = trained.actor().policy(run.problem.walk())
    run.search([InterruptAt(3)])
    again = load_run(run.folder, tiny_model(), tiny_task())
    assert again.search().ending == "budget"
    digests = [row.digest for row in again.log.rows]
    assert digests[0] == run.problem.walk().reference_policy().digest() and digests[1] == own.digest()
    whole = start(tmp_path / "whole", adapting(trained))
    whole.search()
    assert rows(whole.folder) == rows(run.folder)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"hidden_sizes": (8,)}, "same --hidden-sizes"),
        ({"algorithm": "random"}, "takes no --start-from"),
        ({"start_from": Path("nowhere")}, "no trained agent"),
    ],
)
def test_agents_that_cannot_be_gone_on_from_are_one_sentence(
    trained: Transfer, tmp_path: Path, change: dict[str, object], words: str
):
    config = adapting(trained)
    with pytest.raises(UserError, match=words):
        start(tmp_path / "run", replace(config, agent=replace(config.agent, **change)))  # type: ignore[arg-type]
    assert not (tmp_path / "run").exists()


def test_the_command_trains_and_exports(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    given = ["--name", "both", "--runs", str(tmp_path), "--networks", "tests.test_run:tiny_model"]
    given += ["tests.test_transfer:four_layers", "--data", "tests.test_run:tiny_data", "--budget", "macs=0.4"]
    given += ["--reward-images", "60", "--calibration-images", "40", "--evaluations", "6", "--device", "cpu"]
    given += ["--hidden-sizes", "16", "--updates-per-transition", "1"]
    assert exit_code(train_transfer.main, given) == 0
    assert "tests.test_run.tiny_model: reference" in capsys.readouterr().out
    assert (tmp_path / "both" / "actor.onnx").is_file()
    assert exit_code(train_transfer.main, [*given, "--workers", "2"]) == 2


def four_layers() -> object:
    return tiny_model(4)


def test_held_out_networks_are_not_trained_on_and_every_row_has_its_command():
    transfer_rows.check_apart()
    specs = plan()
    assert len({spec.name for spec in specs}) == len(specs)
    for spec in (specs[0], specs[-1]):
        only = command(spec).split("'")[1]
        assert transfer_results.runner(TransferResults()).chosen(specs, only) == [spec]


def made_up(spec: Spec, score: float) -> dict[str, object]:
    """A row as the runner writes it."""
    found = {"reward": score, "test": score}
    origin = {"commit": "0", "date": "today", "machine": {"cpu": "a CPU", "cores": 1}}
    about = {**spec.to_json(), "seconds": 60.0, "origin": origin, "original_test": 0.9}
    if spec.part == "transfer":
        return {**about, "evaluations": int(spec.evaluations), "uniform": found, "best": found}
    policies = {name: found for name in ("uniform", "ddpg", "actor")}
    levels = {f"macs={budget}": policies for budget in transfer_rows.LEVEL_BUDGETS}
    return {**about, "evaluations": 100, "levels": levels}


def test_the_page_compares_what_there_is_and_names_what_is_missing(tmp_path: Path):
    group = GROUPS["digits"]
    network, held = next(iter(group.levels)), group.held_out[0]
    specs = {
        Spec("levels", network, "one", "0"): 0.8,
        Spec("levels", network, "full", "0"): 0.85,
        Spec("transfer", held, "adapted", "0", "0.2", "10"): 0.7,
        Spec("transfer", held, "scratch", "0", "0.2", "100"): 0.75,
    }
    made = {spec.name: made_up(spec, score) for spec, score in specs.items()}
    (tmp_path / "transfer.json").write_text(json.dumps({"rows": made}))
    options = ["--figures", str(tmp_path / "transfer.json"), "--images", str(tmp_path)]
    assert exit_code(transfer_page.main, options) == 0
    page = (tmp_path / "transfer.md").read_text()
    assert "| its actor alone | within 0.5 point of five agents of N | -5.00 ± 0.00 | 1 | missed |" in page
    assert f"| {held}, 0.2 | 1 | -5.00 ± 0.00 | -5.00 ± 0.00 | missed |" in page
    assert "](transfer_levels.png)" in page and (tmp_path / "transfer_levels.png").stat().st_size > 1000
    written = json.loads((tmp_path / "transfer.json").read_text())
    assert written["rows"] == made
    uniform = written["tables"]["levels"][network][0]
    assert (uniform["test split"], uniform["macs=0.2"]) == ("uniform", 0.8)
    assert written["tables"]["unseen_verdicts"]["digits"][0]["10 matches 100"] == "missed"
    assert f"* `levels/{network}/fifth/0`" in page and f"`levels/{network}/one/0`" not in page


@pytest.mark.parametrize(
    ("gaps", "bound", "verdict"),
    [
        ((0.02, 0.03, 0.04), 0.0, "met"),  # 3 points, standard error 0.58
        ((-0.05, 0.03, 0.04), 0.0, "tie"),  # 0.67 points, standard error 2.85
        ((-0.02, -0.03, -0.04), 0.0, "missed"),
        ((-0.004, -0.006, -0.005), -0.005, "tie"),
        ((0.001, 0.001, 0.001), 0.0, "tie"),  # less than one of 360 images
    ],
)
def test_a_difference_below_its_standard_error_is_a_tie(gaps: tuple[float, ...], bound: float, verdict: str):
    found = difference([(0.5 + gap, 0.5) for gap in gaps], 360)
    assert found is not None and found.verdict(bound) == verdict


def test_a_single_seed_is_judged_by_the_standard_error_of_an_accuracy():
    found = difference([(0.92, 0.9)], 100)
    assert found is not None and found.error == pytest.approx(0.03) and found.verdict() == "tie"
    assert difference([], 100) is None


def test_the_images_are_those_of_the_rows_that_tell():
    """An actor that was never adapted comes first without them; equal gaps alone would err by nothing."""
    held = GROUPS["digits"].held_out[0]
    scores = {("adapted", "0"): 0.6, ("adapted", "10"): 0.8, ("scratch", "100"): 0.7}
    made = [
        made_up(Spec("transfer", held, how, seed, "0.2", count), score)
        for (how, count), score in scores.items()
        for seed in ("0", "1")
    ]
    for row in made:
        if row["evaluations"]:
            row |= {"reward_images": 200, "test_images": 100}
    (line,) = transfer_verdicts(made).objects()
    assert (line["reward split"], line["test split"]) == ("+10.00 ± 0.50", "+10.00 ± 1.00")


@pytest.mark.slow
def test_a_row_of_each_kind_is_made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    small = Group(
        "digits",
        8,
        ("resnet14-half", "digitsnet-half"),
        ("resnet8-half",),
        {},
        10,
        14,
        "macs=0.2..0.5",
        2,
        ("0",),
    )
    monkeypatch.setitem(GROUPS, "digits", small)
    monkeypatch.setattr(transfer_results, "SMALL_EPOCHS", 1)
    given = ["--out", str(tmp_path / "out.json"), "--runs", str(tmp_path / "runs")]
    for name in ("adapted/0/0", "adapted/10/0", "scratch/10/0"):
        assert exit_code(transfer_results.main, [*given, "--only", f"transfer/resnet8-half/0.2/{name}"]) == 0
    made = json.loads((tmp_path / "out.json").read_text())
    assert [row["evaluations"] for row in made["transfer"]] == [0, 10, 10]

"""Cooled runs: the schedules, rounds that nest in the original network, and resuming anywhere."""

import shutil
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml

from agents.config import CoolingConfig
from agents.cooling_nesting import in_floats, in_original, load_nested, nested_kept, nested_policy, restart
from agents.cooling_run import CooledRun
from agents.cooling_schedule import constraints, fractions, shares
from agents.export import export_run
from agents.log import EvaluationLog, Row
from agents.report import write_report
from agents.run import load_run, start_run
from agents.run_config import CONFIG_FILE, RunConfig, read_config, read_facts
from amc.compress import ChannelPruning, apply
from amc.costs.symbolic import symbolic_costs
from amc.errors import UserError
from amc.files import read_json
from amc.knobs import WidthKnob
from amc.network import Network, trace
from amc.package import load_package
from amc.policy import CompressionPolicy, LayerDecision
from amc.pruning.importance import kept_channels, rank_channels
from amc.quantization.registry import QuantizerNames
from amc.space import Space
from scripts import train_agent
from scripts.cli import exit_code
from scripts.results_runs import check_same
from tests.test_run import AGENT, FAKE, ROOT, TINY, InterruptAt, config, rows, tiny_model, tiny_task

SLOW = pytest.mark.slow


@pytest.fixture(autouse=True)
def _surroundings(monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory) -> None:
    monkeypatch.setenv("AMC_CACHE_DIR", str(tmp_path_factory.getbasetemp() / "amc-cache"))
    monkeypatch.chdir(ROOT)


def test_the_exponential_schedule_gives_the_worked_example():
    found = constraints("exponential", 5, end=70.0, start=207.0)
    assert [round(value, 2) for value in found] == [141.85, 109.15, 89.32, 77.30, 70.00]


def test_the_linear_schedule_falls_in_equal_steps():
    found = constraints("linear", 5, end=70.0, start=207.0)
    assert [round(value, 1) for value in found] == [179.6, 152.2, 124.8, 97.4, 70.0]


@pytest.mark.parametrize("rounds", [2, 5, 9])
def test_schedules_fall_to_the_budget_and_the_exponential_one_earlier(rounds: int):
    linear, exponential = (constraints(kind, rounds, 0.15) for kind in ("linear", "exponential"))
    for found in (linear, exponential):
        assert found[-1] == 0.15 and all(a > b for a, b in pairwise(found))
    assert all(fast < slow for fast, slow in zip(exponential[:-1], linear[:-1], strict=True))


@pytest.mark.parametrize("kind", ["linear", "exponential"])
def test_one_round_is_one_shot(kind: Any):
    assert constraints(kind, 1, 0.15) == (0.15,)


def test_evaluations_are_divided_and_none_is_lost():
    assert shares(200, 5) == (40,) * 5
    assert shares(17, 5) == (3, 3, 3, 4, 4)
    with pytest.raises(UserError, match="cannot be divided among 5 rounds"):
        shares(4, 5)


def test_budgets_are_fractions_of_costs_that_rounds_can_lower():
    assert fractions(["flops=0.5", "size=0.1", "macs=0.3"]) == {"macs": 0.3, "size": 0.1}
    for text in ("size=100KB", "macs=2000000", "nonzeros=0.2"):
        with pytest.raises(UserError, match="cooled search"):
            fractions([text])


def random_policy(network: Network, seed: int) -> CompressionPolicy:
    rng = np.random.default_rng(seed)
    widths = {
        group.name: group.channels if group.frozen else max(1, int(group.channels * rng.uniform(0.4, 1.0)))
        for group in network.groups
    }
    return CompressionPolicy(
        network.fingerprint,
        tuple(
            LayerDecision(
                layer.name,
                {"width": widths[network.group_of[layer.name].name]}
                if layer.name in network.group_of
                else {},
            )
            for layer in network.layers
        ),
    )


@pytest.mark.parametrize("name", ["resnet20", "mobilenet_v2", "concatnet"])
def test_two_rounds_told_as_one_are_the_same_network(traced, name: str):
    original, before, costs = traced(name), None, []
    network = original
    for seed in range(2):
        policy = random_policy(network, seed)
        ranking = rank_channels(network, "l2")
        module = apply(policy, network, (ChannelPruning(ranking),)).eval()
        widths = {group: policy[group].values.get("width", len(order)) for group, order in ranking.items()}
        left = kept_channels(ranking, widths)
        kept = nested_kept(original, before, network, left)
        told = nested_policy(policy, original)
        nested = in_original(module, network.points, told, kept, original, QuantizerNames())
        images = torch.randn(2, *original.example.shape[1:], generator=torch.Generator().manual_seed(0))
        with torch.no_grad():
            assert torch.allclose(nested.module(images), module(images), rtol=1e-4, atol=1e-4)
        for space, each in (
            (Space(network, (WidthKnob(),)), policy),
            (Space(original, (WidthKnob(),)), told),
        ):
            costs.append(symbolic_costs(space)["macs"].of(space.table(each)))
        assert costs[-1] == costs[-2]
        assert before is None or all(set(kept[key].tolist()) <= set(before[key].tolist()) for key in kept)
        network, before = trace(restart(nested), original.example), kept
    assert costs[-1] < costs[0]
    calls = {str(node.target) for node in original.module.graph.nodes if node.op == "call_module"}
    assert {point.name for point in original.points} <= calls, "the original has lost its points"


def cooled(folder: Path, budget: str = "macs=0.3", **cooling: Any) -> CooledRun:
    settings = config(evaluations=12)
    # In bfloat16 a search would score a network so near to chance differently from its final figures.
    problem = replace(settings.problem, budget=(budget,), target=FAKE, precision="float32")
    chosen = CoolingConfig(**{"cooling": "exponential", "rounds": 3, **cooling})
    run = start_run(
        folder, RunConfig(settings.source, problem, AGENT, settings.search, chosen), tiny_model(), tiny_task()
    )
    assert isinstance(run, CooledRun)
    return run


def reopened(folder: Path) -> CooledRun:
    run = load_run(folder, tiny_model(), tiny_task())
    assert isinstance(run, CooledRun)
    return run


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> CooledRun:
    """An uninterrupted search in three rounds."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("AMC_CACHE_DIR", str(tmp_path_factory.getbasetemp() / "amc-cache"))
        run = cooled(tmp_path_factory.mktemp("cooled") / "run", round_epochs=2)
        assert run.search().ending == "budget"
    return run


def test_every_round_keeps_its_budget_and_the_result_the_last_one(whole: CooledRun):
    told: Any = read_json(whole.folder / "cooling.json")
    limits = constraints("exponential", 3, 0.3)
    assert [each["budgets"]["macs"] for each in told["rounds"]] == list(limits)
    assert all(each["costs"]["macs"] <= each["budgets"]["macs"] for each in told["rounds"])
    assert [each["evaluations"] for each in told["rounds"]] == [4, 4, 4]
    assert whole.evaluator.costs_of(whole.best_policy)["macs"] <= 0.3 * whole.network.macs


def test_no_width_ever_grows_again(whole: CooledRun):
    best = [EvaluationLog(whole.folder / f"round-{n}" / "evaluations.jsonl").best() for n in (1, 2, 3)]
    widths = [row.policy.values("width") for row in best if row is not None]
    for before, after in pairwise(widths):
        assert all(after[layer] <= before[layer] for layer in after)
    assert whole.best_policy.values("width") == widths[-1]


def test_rounds_together_leave_no_less_than_one_search_may(tmp_path: Path):
    settings = config(evaluations=4)
    problem = replace(settings.problem, budget=("macs=0.35",), target=FAKE, min_keep=0.5)
    rounds = CoolingConfig(cooling="linear", rounds=2, round_epochs=0)
    source = replace(settings.source, model="tests.test_run:tiny_model", data="tests.test_run:tiny_data")
    run = start_run(tmp_path / "run", RunConfig(source, problem, AGENT, settings.search, rounds))
    assert run.search().ending == "budget"
    space = load_run(tmp_path / "run" / "round-2").problem.space
    knob = space.knobs[space.column("width")]
    widths = [knob.values(point, None) for point in space.points if point.group and not point.group.frozen]
    assert min(each[-1] for each in widths) < 8  # the first round has pruned
    assert {each[0] for each in widths} == {4}


def test_the_result_is_relative_to_the_original(whole: CooledRun):
    assert whole.best_policy.network == whole.network.fingerprint
    original, *_, best = whole.outcomes()
    assert original.costs["macs"] == whole.network.macs
    model = whole.evaluator.compressed(whole.best_policy)
    found = whole.log.best()
    assert found is not None and best.reward_score == found.score
    assert whole.task.score(model, "test") == pytest.approx(best.test_score)
    with pytest.raises(UserError, match="weights of one network"):
        whole.evaluator.compressed(whole.log.rows[0].policy)


def test_one_log_holds_all_rounds_and_only_the_last_is_feasible(whole: CooledRun):
    log = EvaluationLog(whole.folder / "evaluations.jsonl")
    assert len(log) == 12
    assert all(row.policy.network == whole.network.fingerprint for row in log.rows)
    best = log.best()
    assert best is not None and best.index >= 8 and best.policy == whole.best_policy
    assert all(row.feasible == (row.costs["macs"] <= 0.3 * whole.network.macs) for row in log.rows)


def test_reports_and_exports_understand_it(whole: CooledRun, tmp_path: Path):
    page, *_ = write_report([whole.folder], tmp_path / "index.html")
    assert "ddpg" in page.read_text()
    exported = export_run(whole, folder=tmp_path / "export")
    package = load_package(exported.weights, whole.network)
    assert package.policy == whole.best_policy and exported.actor is None
    images = whole.task.data.normalised("test")
    with torch.no_grad():
        assert torch.allclose(package.module(images), exported.model(images), rtol=1e-3, atol=1e-3)


def test_a_round_can_be_resumed_by_itself(tmp_path: Path):
    given = ["--budget", "macs=0.3", "--cooling", "linear", "--rounds", 2, "--evaluations", 6]
    given += ["--target", FAKE, "--runs", tmp_path, "--name", "run"]
    assert exit_code(train_agent.main, [*TINY, *map(str, given)]) == 0
    second = tmp_path / "run" / "round-2"
    before = rows(second)
    assert exit_code(train_agent.main, ["--resume", str(second), "--evaluations", "5"]) == 0
    assert rows(second)[:3] == before and len(rows(second)) == 5
    assert (
        read_config(second).source.weights == tmp_path / "run" / "round-1" / "tuned" / "network.safetensors"
    )


def same(one: CooledRun, other: CooledRun) -> bool:
    models = [run.evaluator.compressed(run.best_policy).state_dict() for run in (one, other)]
    equal = all(torch.equal(value, models[1][key]) for key, value in models[0].items())
    return rows(one.folder) == rows(other.folder) and equal


@pytest.mark.parametrize("moment", [5, pytest.param(0, marks=SLOW), pytest.param(9, marks=SLOW)])
def test_a_search_that_was_cut_goes_on(whole: CooledRun, tmp_path: Path, moment: int):
    run = cooled(tmp_path / "run", round_epochs=2)
    assert run.search((InterruptAt(moment),)).ending == "interrupted"
    again = reopened(run.folder)
    assert again.search().ending == "budget" and same(again, whole)


@pytest.mark.parametrize("number", [1, pytest.param(2, marks=SLOW)])
def test_a_fine_tuning_that_was_cut_goes_on_after_its_last_epoch(
    whole: CooledRun, tmp_path: Path, number: int
):
    run = cooled(tmp_path / "run", round_epochs=2)

    def cut(sentence: str) -> None:
        if sentence.startswith(f"round {number}: fine-tuned for 1"):
            raise KeyboardInterrupt

    run.announce = cut
    assert run.search().ending == "interrupted"
    again = reopened(run.folder)
    said: list[str] = []
    again.announce = said.append
    assert again.search().ending == "budget" and same(again, whole)
    assert said[0].startswith(f"round {number}: fine-tuned for 2 of 2")


def test_rows_that_were_not_told_before_a_kill_are_told_later(whole: CooledRun, tmp_path: Path):
    run = cooled(tmp_path / "run", round_epochs=2)
    run.search((InterruptAt(5),))
    log = run.folder / "evaluations.jsonl"
    log.write_bytes(b"".join(log.read_bytes().splitlines(keepends=True)[:-1]))
    again = reopened(run.folder)
    assert again.search().ending == "budget" and same(again, whole)


def test_a_run_killed_before_its_first_round_goes_on(whole: CooledRun, tmp_path: Path):
    run = cooled(tmp_path / "run", round_epochs=2)
    (run.folder / "round-1" / "config.yaml").unlink()
    again = reopened(run.folder)
    assert again.search().ending == "budget" and same(again, whole)


def test_a_finished_run_stays_as_it_is(whole: CooledRun):
    before = rows(whole.folder)
    seen: list[Row] = []
    assert reopened(whole.folder).search((lambda row, log: seen.append(row),)).ending == "budget"
    assert rows(whole.folder) == before and not seen


def test_a_run_of_before_says_so_after_it_was_opened_and_is_not_searched_on(whole: CooledRun, tmp_path: Path):
    folder = tmp_path / "run"
    shutil.copytree(whole.folder, folder)
    stored = yaml.safe_load((folder / CONFIG_FILE).read_text())
    del stored["facts"]["refits"]
    (folder / CONFIG_FILE).write_text(yaml.safe_dump(stored))
    run = reopened(folder)
    assert "refits" not in read_facts(folder) and run.best_policy
    with pytest.raises(UserError, match="refitted and re-normalized as they are today"):
        run.search()


def test_a_row_with_other_rounds_does_not_take_a_finished_search(whole: CooledRun):
    check_same(whole.folder, whole.config, ())
    other = replace(whole.config, cooling=replace(whole.config.cooling, round_epochs=3))
    with pytest.raises(UserError, match="round_epochs was 2, not 3"):
        check_same(whole.folder, other, ())


def test_bits_are_decided_in_every_round_and_only_widths_nest(tmp_path: Path):
    run = cooled(tmp_path / "run", "size=0.1", rounds=2)
    assert run.search().ending == "budget"
    assert run.evaluator.costs_of(run.best_policy)["size"] <= run.problem.budgets[0].limit
    assert any(bits < 32 for bits in run.best_policy.values("weight_bits").values())
    path = run.folder / "round-1" / "tuned" / "network.safetensors"
    between = load_nested(path, run.network, QuantizerNames()).policy
    assert between == in_floats(between)
    with pytest.raises(UserError, match="quantized network"):
        restart(load_nested(run.folder / "network.safetensors", run.network, QuantizerNames()))


@pytest.mark.slow
def test_a_latency_budget_is_a_share_of_the_originals(tmp_path: Path):
    run = cooled(tmp_path / "run", "latency=0.4", rounds=2)
    assert run.search().ending == "budget"
    meter = run.problem.meter
    assert meter is not None
    model = run.evaluator.compressed(run.best_policy)
    assert meter.timing(run.best_policy, model).ratio <= 0.41


def test_what_rounds_cannot_do_is_refused_before_anything_is_written(tmp_path: Path):
    settings = replace(config(evaluations=2), cooling=CoolingConfig("linear", rounds=3))
    cost = replace(settings, problem=replace(settings.problem, goal="cost", budget=()))
    enough = replace(settings, search=replace(settings.search, evaluations=6))
    operators = replace(enough, problem=replace(settings.problem, operators=("channel-svd",)))
    for bad, said in (
        (settings, "cannot be divided among 3 rounds"),
        (cost, "--goal cost has none"),
        (operators, "--cooling does not go with --operators"),
    ):
        with pytest.raises(UserError, match=said):
            start_run(tmp_path / "run", bad, tiny_model(), tiny_task())
    assert not (tmp_path / "run").exists()


def test_the_evaluations_of_a_cooled_run_stay_divided(whole: CooledRun):
    with pytest.raises(UserError, match="cannot be changed"):
        load_run(whole.folder, tiny_model(), tiny_task(), evaluations=20)

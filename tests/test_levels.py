"""One training on a range of budgets: balanced, resumable, a best policy and a baseline for every level."""

import json
from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from agents.actor import load_actor
from agents.config import AgentConfig, SearchConfig
from agents.gaussian_process import GaussianProcess
from agents.report import write_report
from agents.run import Run
from agents.run_config import RunConfig, SourceConfig
from amc.errors import UserError
from amc.evaluate import Evaluation
from amc.policy import CompressionPolicy
from envs.budget_range import spread
from envs.case_walk import CaseWalk
from envs.problem import ProblemConfig, build_problem
from envs.reward import ShareReward
from tests.test_run import (
    FAKE,
    InterruptAt,
    _surroundings,  # noqa: F401 - a fixture
    call,
    final_figures,
    load,
    rows,
    same,
    start,
    tiny_model,
    tiny_task,
)

AGENT = AgentConfig(warmup_evaluations=2, hidden_sizes=(16, 16), updates_per_transition=1, candidates=16)
PROBLEM = ProblemConfig(budget=("macs=0.3..0.7",), levels=3, reward_images=60, calibration_images=40)
CASES = ["macs=0.3", "macs=0.5", "macs=0.7"]


def config(evaluations: int = 13, **problem: object) -> RunConfig:
    search = SearchConfig(evaluations=evaluations, checkpoint_every=4)
    return RunConfig(SourceConfig(threads=1), replace(PROBLEM, **problem), AGENT, search)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Run:
    run = start(tmp_path_factory.mktemp("levels") / "run", config())
    assert run.search().ending == "budget"
    return run


def test_a_range_is_spread_evenly_and_keeps_what_is_fixed():
    assert spread(("macs=0.2..0.8",), 13)[::6] == (("macs=0.2",), ("macs=0.5",), ("macs=0.8",))
    both = spread(("macs=10M..20M", "size=0.1"), 2)
    assert both == (("macs=10M", "size=0.1"), ("macs=20M", "size=0.1"))
    assert spread(("macs=0.5",), 13) == (("macs=0.5",),)


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"budget": ("macs=0.8..0.2",)}, "smaller"),
        ({"budget": ("size=10KB..0.2",)}, "same unit"),
        ({"budget": ("macs=..0.2",)}, "not a range"),
        ({"budget": ("macs=0.2..1.2",)}, "at most 1"),
        ({"budget": ("macs=0.2..0.8",), "levels": 1}, "--levels"),
        ({"budget": ("macs=0.2..0.8",), "goal": "cost"}, "--goal accuracy"),
    ],
)
def test_ranges_that_make_no_sense_are_one_sentence(settings: dict[str, object], words: str):
    with pytest.raises(UserError, match=words):
        ProblemConfig(**settings)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--evaluations", "13"], "at least 26"),
        (["--algorithm", "greedy"], "ddpg, sac, td3 do"),
        (["--cooling", "linear"], "no range"),
        (["--budget", "macs=0.0001..0.5"], "cannot be reached"),
    ],
)
def test_what_cannot_be_trained_is_refused_before_it_is_begun(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], options: list[str], words: str
):
    given = ["--budget", "macs=0.2..0.8", "--runs", tmp_path, "--name", "no", *options]
    assert call(*given) == 2
    error = capsys.readouterr().err
    assert words in error and error.count("\n") == 1 and not (tmp_path / "no").exists()


def test_levels_are_balanced_and_depend_on_number_and_seed_alone():
    problem = build_problem(tiny_model(), tiny_task(), PROBLEM)
    walk, again, other = (problem.training_walk(seed) for seed in (0, 0, 1))
    assert isinstance(walk, CaseWalk) and isinstance(again, CaseWalk) and isinstance(other, CaseWalk)
    order = [walk.case_of(episode) for episode in range(60)]
    assert order[:3] == CASES and set(Counter(order).values()) == {20}
    assert all(set(order[block : block + 3]) == set(CASES) for block in range(0, 60, 3))
    assert [again.case_of(episode) for episode in reversed(range(60))] == order[::-1]
    assert [other.case_of(episode) for episode in range(60)] != order


def test_the_observation_carries_the_budget():
    walk = build_problem(tiny_model(), tiny_task(), PROBLEM).training_walk(0)
    assert isinstance(walk, CaseWalk)
    seen = []
    for case in CASES:
        walk.choose(case)
        seen.append(float(walk.reset()[walk.walks[case].layout.slice("budget")][0]))
    assert seen == pytest.approx([0.3, 0.5, 0.7], abs=1e-6)


def test_rewards_are_shares_of_what_the_uniform_policy_lost():
    reward = ShareReward(original_score=0.9)
    policy = CompressionPolicy("toy", ())
    reward.set_reference(Evaluation(policy, 0.5, {}, 0.0))
    assert [reward(Evaluation(policy, score, {}, 0.0)) for score in (0.5, 0.7, 0.9)] == pytest.approx(
        [0.0, 0.5, 1.0]
    )
    reward.set_reference(Evaluation(policy, 0.899, {}, 0.0))
    assert reward(Evaluation(policy, 0.919, {}, 0.0)) == pytest.approx(1.0)


def test_every_level_has_its_baseline_its_best_and_its_budget(whole: Run):
    log = whole.log
    assert log.cases == CASES and [row.case for row in log.rows[:3]] == CASES
    assert [row.reward for row in log.rows[:3]] == [0.0, 0.0, 0.0]
    uniform = [whole.problem.walk([case]).reference_policy().digest() for case in CASES]
    assert [row.digest for row in log.rows[:3]] == uniform
    for case, fraction in zip(CASES, (0.3, 0.5, 0.7), strict=True):
        mine = [row for row in log.rows if row.case == case]
        assert all(row.costs["macs"] <= fraction * whole.network.macs for row in mine)
        best = log.best(case)
        assert best is not None and best.reward == max(row.reward for row in mine)
        saved = CompressionPolicy.load(whole.folder / "policies" / f"{case.replace('=', '')}.json")
        assert saved == best.policy
    assert CompressionPolicy.load(whole.folder / "policy.json") == log.best().policy  # type: ignore[union-attr]


@pytest.mark.parametrize("moments", [[1, 9]])
def test_interrupted_and_resumed_equals_uninterrupted(tmp_path: Path, whole: Run, moments: list[int]):
    run = start(tmp_path / "cut", config())
    for moment in moments:
        assert run.search([InterruptAt(moment)]).ending == "interrupted"
        run = load(tmp_path / "cut")
    assert run.search().ending == "budget"
    assert same(run.folder, whole.folder)


def test_another_order_of_the_levels_is_another_search(tmp_path: Path):
    run = start(tmp_path / "run", config())
    run.search([InterruptAt(6)])
    log = run.folder / "evaluations.jsonl"
    log.write_text(log.read_text().replace("macs=0.3", "macs=0.7"))
    with pytest.raises(UserError, match="belongs to another configuration"):
        load(run.folder).search()


def test_outcomes_hold_every_level_with_the_actor(whole: Run):
    told = json.loads((whole.folder / "outcomes.json").read_text())
    assert "case" not in told[0]
    names = dict.fromkeys(["uniform", whole.problem.reference_name, "ddpg", "actor"])
    assert [(each["case"], each["name"]) for each in told[1:]] == [
        (case, name) for case in CASES for name in names
    ]
    final = final_figures(whole.folder)
    assert "test_score/macs0.5/actor" in final and "test_score/original" in final


def test_curves_are_drawn_for_every_level(whole: Run):
    events = EventAccumulator(str(whole.folder)).Reload()
    assert {f"best_score/macs{share}" for share in (0.3, 0.5, 0.7)} <= set(events.Tags()["scalars"])
    assert "search/best_reward" not in events.Tags()["scalars"]


def test_the_report_shows_every_level(whole: Run, tmp_path: Path):
    page = write_report([whole.folder], tmp_path / "index.html")[0].read_text()
    assert "any budget from 0.3 to 0.7" in page and "The actor alone" in page
    assert all(f"<th scope='row'>{case}</th>" in page for case in CASES)


def test_the_actor_decides_for_budgets_between_the_levels(whole: Run):
    actor = load_actor(whole)
    assert actor is not None
    for fraction in (0.3, 0.43, 0.61):
        costs = whole.evaluator.costs_of(actor.policy(whole.problem.walk([f"macs={fraction}"])))
        assert 0.8 * fraction * whole.network.macs < costs["macs"] <= fraction * whole.network.macs


@pytest.mark.slow
def test_workers_and_reconstruction_go_with_levels(tmp_path: Path):
    settings = config(6, reconstruct="asymmetric")
    search = replace(settings.search, workers=2)
    run = start(tmp_path / "run", replace(settings, search=search))
    run.search()
    assert Counter(row.case for row in run.log.rows) == dict.fromkeys(CASES, 2)


@pytest.mark.slow
def test_a_range_of_latencies_measures_the_best_of_every_level(tmp_path: Path):
    run = start(tmp_path / "run", config(8, budget=("latency=0.6..0.9",), levels=2, target=FAKE))
    run.search()
    sources = {case: run.log.best(case).latency_source for case in run.log.cases}  # type: ignore[union-attr]
    assert sources == {"latency=0.6": "measured", "latency=0.9": "measured"}
    assert rows(run.folder)[0]["feasible"]


def test_near_levels_tell_of_each_other_and_far_ones_less():
    rng = np.random.default_rng(0)
    actions, levels = rng.uniform(-1.0, 1.0, (60, 2)), np.repeat([[0.2], [0.8]], 30, axis=0)
    # What is good at one level is bad at the other.
    values = np.where(levels[:, 0] < 0.5, actions[:, 0], -actions[:, 0])
    low = GaussianProcess(actions, values, levels, np.array([0.2]))
    high = GaussianProcess(actions, values, levels, np.array([0.8]))
    point = np.array([[0.9, 0.0]])
    assert low.expected(point)[0] > 0.5 and high.expected(point)[0] < -0.5
    assert low.best == pytest.approx(values[:30].max())

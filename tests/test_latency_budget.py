"""Latency budgets from the command line to the report, on a target whose latency is a formula."""

import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import tests.test_run as runs
from agents.log import EvaluationLog
from agents.report import write_report
from agents.report_data import load_record
from agents.report_text import verdict
from agents.run import Run
from amc.costs.budget import parse_budget
from amc.errors import UserError
from amc.targets import Profile
from amc.targets.protocol import NOISE_FLOOR
from envs.compression_env import CompressionEnv
from envs.problem import Problem, build_problem
from envs.problem_config import ProblemConfig
from scripts.latency_rows_search import search_figures
from tests import formula_target
from tests.formula_target import FAKE, SMALL, FormulaTarget, begin, make, target_of
from tests.test_run import InterruptAt, call, config, load, same, start, tiny_task

# Found by name in the module that uses them.
_surroundings, _own_cache = runs._surroundings, formula_target._own_cache
problem = formula_target.problem


@pytest.mark.parametrize(
    ("text", "limit"),
    [
        ("latency=0.25", 1.0),
        ("latency=1.5ms", 1.5),
        ("latency=300us", 0.3),
        ("latency=0.001s", 1.0),
        ("Latency=2ms", 2.0),
        ("latency=9ms", 4.0),
    ],
)
def test_budgets_are_fractions_or_times(text: str, limit: float):
    nothing: dict[str, Any] = {"latency": None}
    assert parse_budget(text, nothing, {"latency": 4.0}).limit == pytest.approx(limit)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("latency=2", "a fraction of the original's latency lies above 0 and at most 1"),
        ("latency=5000", "at most 1"),
        ("latency=0ms", "must be above 0"),
        ("latency=3MB", "not a number with a known unit"),
        ("latency=3M", "not a number with a known unit"),
        ("macs=3ms", "not a number with a known unit"),
        ("latency=fast", "is not a budget; write"),
        ("latency=3min", "is not a budget; write"),
    ],
)
def test_wrong_budgets_are_one_sentence(text: str, words: str):
    with pytest.raises(UserError, match=words):
        ProblemConfig(budget=(text,))


def test_time_means_nothing_where_instructions_are_counted(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(FormulaTarget, "unit", "M instructions")
    with pytest.raises(UserError, match=r"formula counts M instructions, not time, so 'latency=1\.5ms'"):
        make("latency=1.5ms")
    made = make("latency=0.5")
    with pytest.raises(UserError, match="not time"):
        CompressionEnv(made).reset(options={"budget": "latency=1.5ms"})


def test_few_policies_say_little_about_the_error(problem: Problem, monkeypatch: pytest.MonkeyPatch):
    assert problem.latency is not None
    assert "from 42 measured" in problem.notes[-1]
    assert "Fewer than 100 policies say little about that error" in problem.notes[-1]
    monkeypatch.setattr("envs.latency_budget.ENOUGH_POLICIES", 42)
    assert "Fewer" not in problem.latency.note(problem.budgets[0].limit)


class Residual(nn.Module):
    """A stem, one residual block that may go, and a linear layer."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.last = nn.Conv2d(1, 16, 3), nn.Linear(16, 10)
        inner, outer = nn.Conv2d(16, 12, 3, padding=1), nn.Conv2d(12, 16, 3, padding=1)
        self.block = nn.Sequential(inner, nn.ReLU(), outer)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.stem(x))
        return self.last(torch.relu(x + self.block(x)).mean((2, 3)))


def test_where_the_number_of_layers_costs_time_blocks_may_go():
    """In integers the narrowest layers cost 0.117 of 3.84."""
    told = {}
    for fraction in (0.95, 0.05, 0.01):
        config = ProblemConfig(budget=(f"latency={fraction}",), **SMALL)
        try:
            problem = build_problem(Residual(), tiny_task(), config)
        except UserError as sentence:
            told[fraction] = str(sentence)
        else:
            told[fraction] = problem.notes[-1]
            problem.close()
    assert "narrowest" not in told[0.95]
    assert re.search(r"The narrowest layers use \d\d% of it already: .* --drop-blocks lets", told[0.05])
    assert told[0.01].endswith("of the original); --drop-blocks lets whole residual blocks go.")


def test_the_predictor_knows_the_formula(problem: Problem):
    assert problem.latency is not None and problem.latency.predictor.mape < 0.02
    assert target_of(problem).many == 14 and target_of(problem).single == 0


@pytest.mark.parametrize(
    ("border", "episodes"),
    [(0.0, 40), (0.12, 40), *(pytest.param(b, 1000, marks=pytest.mark.slow) for b in (0.0, 0.12))],
)
def test_every_executed_policy_keeps_the_budget(
    monkeypatch: pytest.MonkeyPatch, border: float, episodes: int
):
    """Also where a layer in integers may be slower than in floats."""
    monkeypatch.setattr(FormulaTarget, "border", border)
    made = make("latency=0.6")
    assert made.latency is not None
    walk, cost, rng = made.walk(), made.latency.cost, np.random.default_rng(0)
    formats = set()
    for episode in range(episodes):
        walk.reset()
        for _ in range(walk.length):
            extreme = rng.choice([-1.0, 1.0], walk.action_size)
            walk.step(rng.uniform(-1, 1, walk.action_size) if episode % 2 else extreme)
        table = made.space.table(walk.policy())
        limit = made.budgets[0].limit
        assert cost.predict(table) <= cost.of(table) <= limit * (1 + 1e-9)
        assert np.array_equal(table[:, 1], table[:, 2])
        formats.add(tuple(table[:, 1]))
    assert len(formats) > 4


def test_out_of_reach_names_the_smallest_reachable():
    with pytest.raises(UserError, match=r"latency = .* cannot be reached: the smallest legal network costs"):
        make("latency=0.001")


def test_the_uniform_policy_is_in_integers_with_one_keep_ratio(problem: Problem):
    policy = problem.uniform_policy()
    assert set(policy.values("weight_bits").values()) == {8} == set(policy.values("activation_bits").values())
    widths = [policy["0"].values["width"], policy["3"].values["width"], policy["6"].values["width"]]
    assert max(widths) - min(widths) <= 2  # one step of the target
    assert problem.walk().action_size == 2  # one decision for weights and activations


class Count:
    """Notes after each evaluation how many policies the target has measured."""

    def __init__(self, run: Run):
        self.run, self.measured = run, list[int]()

    def __call__(self, row: Any, log: Any) -> None:
        self.measured.append(target_of(self.run.problem).single)


def test_only_would_be_bests_are_measured_and_before_their_reward(tmp_path: Path):
    run = begin(tmp_path / "run", evaluations=16)
    count = Count(run)
    run.search([count])
    assert run.log.rows[0].latency_source == "measured" and count.measured[0] == 1
    fresh = np.diff([0, *count.measured])
    for row, measured in zip(run.log.rows, fresh, strict=True):
        expected = row.latency_source == "measured" and not row.cached
        assert bool(measured) == expected
        assert row.latency_source == "measured" or row.reward <= run.log.rows[row.best_index].reward
    assert 0 < sum(fresh) < 13
    best = run.log.best()
    assert best is not None and best.latency_source == "measured"
    # By so much less that a second measurement keeps it, too.
    assert best.costs["latency"] <= run.problem.budgets[0].limit / (1 + NOISE_FLOOR)


def test_a_row_of_results_names_the_settings_that_its_search_had(tmp_path: Path):
    """Not today's defaults: a run that is there already is read and not repeated."""
    before = ProblemConfig(budget=("latency=0.3",), importance="l2", reconstruct="symmetric", **SMALL)
    run = start(tmp_path / "run", replace(config(2), problem=before))
    run.search()
    found = search_figures(run)
    assert (found["importance"], found["reconstruct"]) == ("l2", "symmetric")
    assert found["test_accuracy_original"] == run.task.score(run.network.module, "test")


def test_a_miss_is_penalised_is_not_the_best_and_teaches(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    run = begin(tmp_path / "run", evaluations=20, updates_per_transition=4)
    assert run.problem.latency is not None
    before = len(run.problem.latency.predictor.errors)
    monkeypatch.setattr(FormulaTarget, "excess", 1.2)
    run.search()
    missed = [row for row in run.log.rows if not row.feasible]
    limit, first = run.problem.latency.kept_below(run.problem.budgets[0].limit), run.log.rows[0]
    assert missed and missed[0] is first and first.costs["latency"] > limit
    assert first.reward == pytest.approx(-1.0 - (first.costs["latency"] / limit - 1.0) / 0.1)
    fresh = [row for row in run.log.rows if row.latency_source == "measured" and not row.cached]
    assert len(run.problem.latency.predictor.errors) == before + len(fresh)
    feasible = [row for row in run.log.rows if row.feasible]
    assert feasible  # it has learned that networks are slower than it thought
    best = run.log.best()
    assert best is not None and best.feasible
    assert best.reward == max(row.reward for row in feasible)


def test_where_nothing_fits_the_fastest_is_kept_and_one_sentence_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    monkeypatch.setattr(FormulaTarget, "excess", 50.0)
    given = ("--budget", "latency=0.3", "--target", FAKE, "--evaluations", 6)
    assert call(*given, "--runs", tmp_path, "--name", "slow") == 0
    words = " ".join(capsys.readouterr().out.split())
    assert "No network that was measured keeps the latency budget of" in words
    log = EvaluationLog(tmp_path / "slow" / "evaluations.jsonl")
    best = log.best()
    assert best is not None and not any(row.feasible for row in log.rows)
    assert best.costs["latency"] == min(row.costs["latency"] for row in log.rows)
    assert all(row.latency_source == "measured" for row in log.rows)
    assert verdict(load_record(tmp_path / "slow"))[0].startswith("No network that was measured in 6")
    write_report([tmp_path / "slow"], tmp_path / "page.html")


def test_an_unreliable_measurement_is_marked_and_teaches(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    run = begin(tmp_path / "run", evaluations=20, updates_per_transition=4)
    assert run.problem.latency is not None
    before = len(run.problem.latency.predictor.errors)
    monkeypatch.setattr(FormulaTarget, "reliable", False)
    monkeypatch.setattr(FormulaTarget, "excess", 1.2)
    run.search()
    rows = run.log.rows
    assert "measured" not in {row.latency_source for row in rows}
    fresh = [row for row in rows if row.latency_source == "unreliable" and not row.cached]
    assert len(run.problem.latency.predictor.errors) == before + len(fresh)
    assert not rows[0].feasible and any(row.feasible for row in rows)


@pytest.mark.parametrize("same_process", [False, True])
def test_a_cut_search_goes_on_as_if_it_had_not_been(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, same_process: bool
):
    monkeypatch.setattr(FormulaTarget, "excess", 1.2)  # so that there are misses to learn from
    whole, cut = begin(tmp_path / "whole"), begin(tmp_path / "cut")
    whole.search()
    assert any(not row.feasible for row in whole.log.rows)
    for index in (3, 7):
        cut.search([InterruptAt(index)])
        cut = cut if same_process else load(tmp_path / "cut")
    cut.search()
    assert same(tmp_path / "cut", tmp_path / "whole")
    one, other = whole.problem.latency, cut.problem.latency
    assert one is not None and other is not None
    assert np.array_equal(one.predictor.errors, other.predictor.errors)
    assert target_of(cut.problem).many == 0 or same_process  # the run's own samples, nothing anew


def test_interrupted_while_measuring_it_is_learned_all_the_same(problem: Problem):
    """The score is known to the evaluator by then; the latency is not."""
    evaluation = problem.evaluator([problem.walk().reference_policy()])[0]
    again = problem.evaluator([evaluation.policy])[0]
    assert again.cached and problem.latency is not None
    before = len(problem.latency.predictor.errors)
    problem.latency.learn(problem.latency.measure(again))
    assert len(problem.latency.predictor.errors) == before + 1


def test_a_target_that_gains_nothing_from_integers_keeps_floats(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(FormulaTarget, "profile", Profile(width_multiple=2, fast_bits=(32,)))
    for asked in ({}, {"weight_bits": (8, 32), "activation_bits": (8, 32)}):
        made = make("latency=0.5", **asked)
        assert any("8-bit integers bring nothing on formula: every layer" in note for note in made.notes)
        assert made.walk().action_size == 1
        assert set(made.walk().reference_policy().values("weight_bits").values()) == {32}
    forced = make("latency=0.5", weight_bits=(8,), activation_bits=(8,))
    assert any("they are there because they were asked for" in note for note in forced.notes)
    assert set(forced.walk().reference_policy().values("weight_bits").values()) == {8}


def test_a_profile_of_a_busy_machine_is_not_taken_silently(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    def doubts(notes: tuple[str, ...]) -> int:
        return sum("too busy to calibrate formula" in note for note in notes)

    assert doubts(make("latency=0.5").notes) == 0
    monkeypatch.setattr(FormulaTarget, "profile", Profile(2, fast_bits=(32,), reliable=False))
    assert doubts(make("latency=0.5", weight_bits=(8,), activation_bits=(8,)).notes) == 1
    assert doubts(make("latency=0.5", "size=0.5").notes) == 1
    assert doubts(make("macs=0.5").notes) == 0
    begin(tmp_path / "run")
    monkeypatch.setattr(FormulaTarget, "profile", Profile(2))
    assert doubts(load(tmp_path / "run").problem.notes) == 1  # it goes on with what it began with


def test_bits_that_bring_nothing_leave_with_a_note():
    made = make("latency=0.5", weight_bits=(4, 6, 8, 32), activation_bits=(8, 32))
    assert made.space.knobs[1].values(made.space.points[0], None) == (8, 32)
    assert any("Fewer than 8 bits bring nothing on formula (4, 6 asked for)" in note for note in made.notes)


def test_bits_that_only_another_budget_wants_stay_with_a_note(monkeypatch: pytest.MonkeyPatch):
    both = ("size=0.2", "latency=0.5")
    made = make(*both)
    assert min(made.space.knobs[1].values(made.space.points[0], None)) == 2
    said = [note for note in made.notes if "no time on formula" in note]
    assert len(said) == 1 and said[0].endswith("such layers run in 8-bit integers.")
    assert not any("no time on formula" in note for note in make(*both, weight_bits=(8,)).notes)
    monkeypatch.setattr(FormulaTarget, "profile", Profile(width_multiple=2, fast_bits=(32,)))
    assert any("no faster than floats there" in note for note in make(*both).notes)


def test_the_fastest_within_a_drop_under_a_latency_budget(tmp_path: Path):
    asked = ProblemConfig(goal="cost", budget=("latency=0.6",), max_drop=20.0, **SMALL)
    run = start(tmp_path / "run", replace(config(8), problem=asked))
    run.search()
    best = run.log.best()
    assert best is not None and best.latency_source == "measured" and best.feasible

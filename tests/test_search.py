"""The search loop on a toy walk: log, checkpoint, resume, interruption, SIGKILL, time budget."""

import json
import multiprocessing
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from agents.checkpoint import load_checkpoint, save_checkpoint
from agents.config import AgentConfig, SearchConfig
from agents.log import EvaluationLog
from agents.search import SearchResult, search
from agents.searcher import make_searcher
from agents.standards import Standard, one_case
from amc.errors import UserError
from amc.evaluate import Evaluation
from amc.policy import CompressionPolicy, LayerDecision


class ToyWalk:
    """T layers; action -1..1 becomes a width of 1..101, so that 51 is uniform and rounding is visible."""

    action_size = 1
    categorical = np.zeros(1, dtype=bool)
    openings: Sequence[np.ndarray] = ()

    def __init__(self, length: int = 6):
        self.length = length
        self.observation_size = 2 * length + 1
        self.alive = slice(2 * length, 2 * length + 1)

    def reset(self) -> np.ndarray:
        self._widths: list[int] = []
        return self._observe()

    def step(self, action: np.ndarray) -> tuple[np.ndarray, np.ndarray, bool]:
        width = 51 + round(float(action[0]) * 50)
        self._widths.append(width)
        executed = np.array([(width - 51) / 50], dtype=np.float32)
        return self._observe(), executed, len(self._widths) == self.length

    def policy(self) -> CompressionPolicy:
        rows = (LayerDecision(f"layer{i}", {"width": w}) for i, w in enumerate(self._widths))
        return CompressionPolicy("toy", tuple(rows))

    def _observe(self) -> np.ndarray:
        observation = np.zeros(self.observation_size, dtype=np.float32)
        observation[len(self._widths) % self.length] = 1.0
        observation[self.alive] = 1.0
        observation[self.length : self.length + len(self._widths)] = np.array(self._widths) / 101
        return observation


def toy_actions(policy: CompressionPolicy) -> np.ndarray:
    return (np.array(list(policy.values("width").values())) - 51) / 50


TARGET = np.array([0.6, -0.5, 0.3, -0.7, 0.5, -0.2])


class ToyEvaluate:
    """Score = -sum((a - a*)^2); counts what it measures. The second cost is noise, like a latency."""

    def __init__(self, interrupt_at: int | None = None, seconds: float = 0.0):
        self.measured: list[str] = []
        self._interrupt_at, self._seconds = interrupt_at, seconds

    def __call__(self, policies: list[CompressionPolicy]) -> list[Evaluation]:
        return [self._one(policy) for policy in policies]

    def _one(self, policy: CompressionPolicy) -> Evaluation:
        if len(self.measured) == self._interrupt_at:
            raise KeyboardInterrupt
        time.sleep(self._seconds)
        self.measured.append(policy.digest())
        actions = toy_actions(policy)
        score = -float(((actions - TARGET[: len(actions)]) ** 2).sum())
        costs = {"macs": float(actions.sum()), "latency": time.perf_counter()}
        return Evaluation(policy, score, costs, self._seconds, False)


class ToyReward:
    """Centred on the uniform policy."""

    reference: Evaluation | None = None

    def set_reference(self, evaluation: Evaluation) -> None:
        self.reference = evaluation

    def __call__(self, evaluation: Evaluation) -> float:
        assert self.reference is not None
        return evaluation.score - self.reference.score


SMALL = AgentConfig(warmup_evaluations=5, hidden_sizes=(32, 32), updates_per_transition=1)


def run(
    folder: Path,
    evaluate: ToyEvaluate | None = None,
    config: AgentConfig = SMALL,
    budget: int = 30,
    planned: int | None = None,
    **settings: object,
) -> SearchResult:
    """One call of `search` on the toy, new or resumed."""
    folder.mkdir(parents=True, exist_ok=True)
    searcher = make_searcher(ToyWalk(), config, planned or budget)
    log = EvaluationLog(folder / "evaluations.jsonl")
    evaluate = evaluate or ToyEvaluate()
    return search(searcher, evaluate, ToyReward(), log, budget_evaluations=budget, **settings)


def outcome(result: SearchResult) -> list[dict[str, object]]:
    """Everything about the evaluations that must not depend on interruptions."""
    measured = ("seconds", "costs")
    rows = [{**row.to_json(), "macs": row.costs["macs"]} for row in result.log.rows]
    return [{name: value for name, value in row.items() if name not in measured} for row in rows]


@pytest.mark.parametrize("algorithm", ["ddpg", "td3", "sac", "random", "uniform"])
def test_first_evaluation_is_uniform_and_policy_json_holds_the_best(tmp_path: Path, algorithm: str):
    result = run(tmp_path, config=replace(SMALL, algorithm=algorithm))
    assert toy_actions(result.log.rows[0].policy).tolist() == [0.0] * 6
    assert result.best is not None and result.best.reward == max(row.reward for row in result.log.rows)
    assert CompressionPolicy.load(tmp_path / "policy.json") == result.best.policy
    expected = ("exhausted", 1) if algorithm == "uniform" else ("budget", 30)
    assert (result.ending, len(result.log)) == expected


def test_unknown_searcher_is_one_sentence():
    with pytest.raises(UserError, match="no searcher 'sarsa'; choose one of balanced, bayes, cbo, ddpg"):
        make_searcher(ToyWalk(), replace(SMALL, algorithm="sarsa"), 10)


@pytest.mark.parametrize("settings", [{"sigma_end": 0.5}, {"tau": 0.0}, {"seed": -1}, {"hidden_sizes": (0,)}])
def test_settings_that_make_no_sense_are_one_sentence(settings: dict[str, Any]):
    with pytest.raises(UserError, match=f"The setting {next(iter(settings))} cannot be"):
        AgentConfig(**settings)
    with pytest.raises(UserError, match="The setting evaluations cannot be 0"):
        SearchConfig(evaluations=0)


def test_random_proposes_the_warmup_of_the_agent(tmp_path: Path):
    warm = replace(SMALL, warmup_evaluations=10)
    agent = run(tmp_path / "a", config=warm).log.rows
    random = run(tmp_path / "b", config=replace(warm, algorithm="random")).log.rows
    assert [row.digest for row in agent[:10]] == [row.digest for row in random[:10]]
    assert agent[10].digest != random[10].digest


def test_log_reads_back_what_was_written(tmp_path: Path):
    rows = run(tmp_path, budget=8).log.rows
    assert EvaluationLog(tmp_path / "evaluations.jsonl").rows == rows
    first = json.loads((tmp_path / "evaluations.jsonl").read_text().splitlines()[0])
    assert first["digest"] == rows[0].digest
    assert first["metrics"] == {"sigma": 0.0}


def test_torn_last_line_is_ignored_and_then_cut_off(tmp_path: Path):
    whole = outcome(run(tmp_path / "whole", budget=9))
    run(tmp_path / "torn", budget=8, planned=9)
    path = tmp_path / "torn" / "evaluations.jsonl"
    torn = path.read_bytes()[:-30]
    path.write_bytes(torn)
    (tmp_path / "torn" / "checkpoint" / "state.safetensors").unlink()
    assert len(EvaluationLog(path)) == 7
    assert path.read_bytes() == torn  # Reading alone changes nothing: the log may be another process's.
    assert outcome(run(tmp_path / "torn", budget=9)) == whole
    assert len(EvaluationLog(path)) == 9


def test_damaged_line_inside_the_log_is_one_sentence(tmp_path: Path):
    run(tmp_path, budget=4)
    path = tmp_path / "evaluations.jsonl"
    lines = path.read_text().splitlines(keepends=True)
    path.write_text("".join([lines[0], "{}\n", *lines[2:]]))
    with pytest.raises(UserError, match="line 2 of"):
        EvaluationLog(path)
    path.write_text("".join([lines[0], *lines[2:]]))
    with pytest.raises(UserError, match="has index 2"):
        EvaluationLog(path)


def test_a_policy_met_again_counts_but_is_not_measured_again(tmp_path: Path):
    evaluate = ToyEvaluate()
    narrow = replace(SMALL, algorithm="random", sigma_start=0.01, sigma_end=0.01)
    result = run(tmp_path, evaluate, narrow, budget=60)
    cached = [row for row in result.log.rows if row.cached]
    assert len(result.log) == 60 and len(cached) + len(evaluate.measured) == 60
    assert cached and len(set(evaluate.measured)) == len(evaluate.measured)
    assert all(row.seconds == 0.0 for row in cached)


def test_checkpoint_round_trip(tmp_path: Path):
    matrix = np.arange(6, dtype=np.float32).reshape(2, 3)
    state = {
        "a": {"x": matrix, "transposed": matrix.T, "y": np.array(3.5), "flag": np.array([True])},
        "big": 2**127 + 1,
        "none": None,
        "list": [1, "two"],
        "empty": np.zeros((0, 4), dtype=np.float32),
    }
    save_checkpoint(tmp_path / "checkpoint", state)
    loaded = load_checkpoint(tmp_path / "checkpoint")
    assert loaded is not None
    for name, array in state["a"].items():
        assert np.array_equal(loaded["a"][name], array) and loaded["a"][name].dtype == array.dtype
    assert {k: loaded[k] for k in ("big", "none", "list")} == {k: state[k] for k in ("big", "none", "list")}
    assert loaded["empty"].shape == (0, 4)
    assert load_checkpoint(tmp_path / "nothing") is None


def test_damaged_checkpoint_is_one_sentence_and_the_log_alone_is_enough(tmp_path: Path):
    whole = outcome(run(tmp_path / "whole", budget=12))
    run(tmp_path / "cut", budget=10, planned=12)
    file = tmp_path / "cut" / "checkpoint" / "state.safetensors"
    file.write_bytes(file.read_bytes()[:1000])
    with pytest.raises(UserError, match="delete it and the search is rebuilt"):
        run(tmp_path / "cut", budget=12)
    file.unlink()
    assert outcome(run(tmp_path / "cut", budget=12)) == whole


@pytest.mark.parametrize("algorithm", ["ddpg", "td3", "sac", "random"])
def test_interrupted_and_resumed_equals_uninterrupted(tmp_path: Path, algorithm: str):
    config = replace(SMALL, algorithm=algorithm)
    whole = run(tmp_path / "whole", config=config)
    for point in (0, 11, 20) if algorithm == "ddpg" else (12,):
        folder = tmp_path / str(point)
        first = run(folder, ToyEvaluate(interrupt_at=point), config)
        assert first.ending == "interrupted" and len(first.log) >= point
        second = ToyEvaluate()
        resumed = run(folder, second, config)
        assert outcome(resumed) == outcome(whole)
        assert set(second.measured).isdisjoint(row.digest for row in first.log.rows)
        assert resumed.best is not None and whole.best is not None
        assert resumed.best.digest == whole.best.digest


def test_resume_within_a_round_of_several_proposals(tmp_path: Path):
    whole = run(tmp_path / "whole", proposals_per_round=4)
    # Only two of the four rows of the fourth round reached the log.
    cut = tmp_path / "cut"
    run(cut, ToyEvaluate(interrupt_at=20), proposals_per_round=4, checkpoint_every=1)
    log = cut / "evaluations.jsonl"
    log.write_text("".join(log.read_text().splitlines(keepends=True)[:14]))
    with pytest.raises(UserError, match="another search"):
        run(cut, proposals_per_round=4)
    (cut / "checkpoint" / "state.safetensors").unlink()
    assert outcome(run(cut, proposals_per_round=4)) == outcome(whole)


@pytest.mark.parametrize("every", [3, 1000])
def test_log_of_another_seed_is_refused(tmp_path: Path, every: int):
    run(tmp_path, ToyEvaluate(interrupt_at=8), checkpoint_every=1000)
    with pytest.raises(UserError, match="belongs to another configuration or seed"):
        run(tmp_path, config=replace(SMALL, seed=1), checkpoint_every=every)


def test_log_of_another_reward_is_refused(tmp_path: Path):
    run(tmp_path, ToyEvaluate(interrupt_at=8))
    log = EvaluationLog(tmp_path / "evaluations.jsonl")

    class Doubled(ToyReward):
        def __call__(self, evaluation: Evaluation) -> float:
            return 2 * super().__call__(evaluation)

    with pytest.raises(UserError, match="belongs to another configuration: the reward"):
        search(make_searcher(ToyWalk(), SMALL, 30), ToyEvaluate(), Doubled(), log, budget_evaluations=30)


def test_a_log_in_which_too_large_a_loss_is_feasible_is_refused(tmp_path: Path):
    rows = run(tmp_path, budget=4).log.rows
    worst = min(row.score for row in rows)
    run(tmp_path, budget=4, cases=one_case(Standard(ToyReward(), least_score=worst)))
    with pytest.raises(UserError, match="counts as feasible"):
        run(tmp_path, budget=4, cases=one_case(Standard(ToyReward(), least_score=worst + 1e-6)))


def test_checkpoint_of_another_searcher_is_refused(tmp_path: Path):
    run(tmp_path, budget=10, planned=30)
    with pytest.raises(UserError, match="does not fit this search"):
        run(tmp_path, config=replace(SMALL, algorithm="random"))
    with pytest.raises(UserError, match="does not fit this search"):
        run(tmp_path, config=replace(SMALL, hidden_sizes=(16, 16)))


def test_a_larger_budget_continues_a_finished_search(tmp_path: Path):
    run(tmp_path, budget=10)
    again = ToyEvaluate()
    assert run(tmp_path, again, budget=10).ending == "budget" and not again.measured
    assert len(run(tmp_path, again, budget=15).log) == 15 and len(again.measured) == 5


def test_reward_that_is_not_finite_is_one_sentence(tmp_path: Path):
    class Broken(ToyEvaluate):
        def _one(self, policy: CompressionPolicy) -> Evaluation:
            return replace(super()._one(policy), score=float("nan"))

    with pytest.raises(UserError, match="reward of evaluation 0 is nan, not a finite number"):
        run(tmp_path, Broken())


def test_stop_ends_between_rounds_and_resumes(tmp_path: Path):
    calls = iter([False] * 12 + [True])
    assert run(tmp_path, stop=lambda: next(calls)).ending == "stopped"
    assert len(EvaluationLog(tmp_path / "evaluations.jsonl")) == 12
    assert outcome(run(tmp_path)) == outcome(run(tmp_path / "whole"))


def test_time_budget_ends_before_the_round_that_would_not_fit(tmp_path: Path):
    started = time.monotonic()
    evaluate = ToyEvaluate(seconds=0.2)
    result = run(tmp_path, evaluate, replace(SMALL, algorithm="random"), time_budget=1.0)
    assert result.ending == "time" and 1 <= len(evaluate.measured) <= 5
    assert time.monotonic() - started < 1.3


def test_callbacks_hear_of_new_rows_only(tmp_path: Path):
    heard: list[int] = []
    run(tmp_path, ToyEvaluate(interrupt_at=7), callbacks=[lambda row, log: heard.append(row.index)])
    run(tmp_path, callbacks=[lambda row, log: heard.append(row.index)])
    assert heard == list(range(30))


def test_evaluations_that_draw_from_torch_do_not_disturb_the_search(tmp_path: Path):
    import torch

    class Drawing(ToyEvaluate):
        def _one(self, policy: CompressionPolicy) -> Evaluation:
            torch.rand(len(self.measured) + 1)
            return super()._one(policy)

    config = replace(SMALL, algorithm="td3")
    assert outcome(run(tmp_path / "a", Drawing(), config)) == outcome(run(tmp_path / "b", config=config))


def check_killed_and_resumed(tmp_path: Path, kills: int, budget: int) -> None:
    """Kill a searching process at random moments, then compare with one that was left alone."""
    rng = np.random.default_rng()
    processes = multiprocessing.get_context("forkserver")
    # Imported once for all kills; torch imports _dynamo when the first optimizer is made.
    processes.set_forkserver_preload(["tests.test_search", "agents.off_policy", "torch._dynamo"])
    log = tmp_path / "killed" / "evaluations.jsonl"
    for _ in range(kills):
        before = len(EvaluationLog(log))
        settings = {"budget": budget, "checkpoint_every": 3}
        child = processes.Process(target=run, args=(tmp_path / "killed",), kwargs=settings)
        child.start()
        while len(EvaluationLog(log)) == before and child.is_alive():
            time.sleep(0.005)
        time.sleep(rng.uniform(0.0, 0.15))
        child.kill()
        child.join()
    assert 0 < len(EvaluationLog(log)) < budget, "nothing was killed in the middle of a search"
    whole, resumed = (run(tmp_path / name, budget=budget) for name in ("whole", "killed"))
    assert outcome(resumed) == outcome(whole)
    assert (tmp_path / "killed/policy.json").read_text() == (tmp_path / "whole/policy.json").read_text()


def test_killed_at_random_moments(tmp_path: Path):
    check_killed_and_resumed(tmp_path, kills=2, budget=80)


@pytest.mark.slow
def test_killed_at_many_random_moments(tmp_path: Path):
    for series in range(5):
        check_killed_and_resumed(tmp_path / str(series), kills=4, budget=160)

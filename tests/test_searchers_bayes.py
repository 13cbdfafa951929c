"""Bayesian optimisation, plain and constrained, over real walks."""

import importlib.util
from pathlib import Path

import numpy as np
import pytest
import torch

from agents.bayes.free_box import FreeBox
from agents.bayes.searcher import leader
from agents.bayes.surrogate import Surrogate, maximise
from agents.bayes.trust_region import LENGTH, TrustRegion
from agents.box import ActionBox
from agents.config import AgentConfig
from agents.log import EvaluationLog
from agents.run import start_run
from agents.run_config import RunConfig
from agents.search import search
from agents.searcher import check_searcher
from amc.errors import UserError
from envs.problem_config import ProblemConfig
from envs.reward import ScoreReward
from tests.synthetic_search import Sensitivities, advance, continued, digests, new, width_walk

needs_botorch = pytest.mark.skipif(importlib.util.find_spec("botorch") is None, reason="extra bayes")
BOTH = pytest.mark.parametrize("algorithm", ["bayes", "cbo"])


@pytest.fixture
def walk(traced):
    return width_walk(traced("digitsnet"), "macs=0.5")


def test_a_missing_package_is_one_sentence_before_anything_starts(monkeypatch, tmp_path: Path):
    found = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "botorch" else found(name))
    config = RunConfig(agent=AgentConfig(algorithm="cbo"))
    with pytest.raises(UserError, match=r'cbo needs a package: pip install "amc-compress\[bayes\]"'):
        start_run(tmp_path / "run", config)
    assert not (tmp_path / "run").exists()


@needs_botorch
def test_cbo_needs_a_budget_and_an_accuracy_to_maximise(walk, traced):
    with pytest.raises(UserError, match="cbo knows no --goal cost"):
        check_searcher("cbo", ProblemConfig(goal="cost", minimize="macs").goal)
    check_searcher("bayes", "cost")
    free = width_walk(traced("digitsnet"), "macs=1.0")
    free.budgets = ()
    with pytest.raises(UserError, match="cbo learns to keep a budget; give it one"):
        new(free, "cbo")


def test_a_box_plays_what_random_draws_and_repeats_what_was_executed(walk):
    box, rng = ActionBox(walk), np.random.default_rng(3)
    random = new(walk, "random", seed=3)
    drawn = [box.uniform, *(box.draw(rng, 0.3) for _ in range(5))]
    assert [point.policy for point in drawn] == random.ask(6)
    for point in drawn:
        again = box.play(point.vector)
        assert again.policy == point.policy and np.allclose(again.vector, point.vector, atol=1e-6)


def test_a_free_box_reaches_every_legal_policy_and_knows_the_uniform_one(walk):
    box = FreeBox(walk)
    assert box.uniform.policy == walk.reference_policy()
    assert box.play(box.uniform.vector).policy == box.uniform.policy
    ends = [walk.space.table(box.play(np.full(box.size, end)).policy) for end in (-1.0, 1.0)]
    column = walk.space.column("width")
    assert (ends[0][:, column] == walk.space.smallest[:, column]).all()
    assert (ends[1][:, column] == walk.space.largest[:, column]).all()


def test_entries_without_a_meaning_are_no_variables(traced):
    network = traced("resnet20")
    assert (
        ActionBox(width_walk(network, "macs=0.5")).size == FreeBox(width_walk(network, "macs=0.5")).size == 12
    )


def test_the_leader_is_the_best_feasible_point_or_the_nearest_to_it():
    outcomes = np.array([[5.0, 0.2], [9.0, 0.1], [1.0, -0.1], [2.0, 0.0], [2.0, -0.3]])
    assert leader(outcomes[:2]) == 1
    assert leader(outcomes[:3]) == 2
    assert leader(outcomes) == 3
    assert leader(np.array([[1.0], [3.0], [3.0]])) == 1


def test_the_trust_region_grows_shrinks_and_restarts():
    region = TrustRegion(8)
    for _ in range(3):
        region.hear(True)
    assert region.length == 2 * LENGTH
    for _ in range(4):
        region.hear(False)
    assert region.length == LENGTH
    low, high = region.box(np.array([0.9, 0.0]), np.array([2.0, 0.25]))
    assert low.tolist() == pytest.approx([-0.7, -0.2]) and high.tolist() == pytest.approx([1.0, 0.2])
    for _ in range(28):
        region.hear(False)
    assert region.length == LENGTH


def quadratic(count: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Points in two variables, their distance from (0.5, 0) negated, and a constraint: the first below 0."""
    inputs = np.random.default_rng(seed).uniform(-1, 1, (count, 2))
    return inputs, np.stack([-((inputs - [0.5, 0.0]) ** 2).sum(axis=1), inputs[:, 0]], axis=1)


@needs_botorch
def test_the_acquisition_leads_to_the_constrained_optimum():
    inputs, outcomes = quadratic(25)
    low, high = -np.ones(2), np.ones(2)
    starts = np.random.default_rng(1).uniform(low, high, (64, 2))
    free = Surrogate(inputs, outcomes[:, :1]).acquisition()
    assert maximise(free, starts, low, high)[0] == pytest.approx([0.5, 0.0], abs=0.15)
    bounded = Surrogate(inputs, outcomes).acquisition()
    assert maximise(bounded, starts, low, high)[0] == pytest.approx([0.0, 0.0], abs=0.15)


@needs_botorch
def test_without_a_feasible_point_the_probability_of_one_is_maximised():
    inputs, outcomes = quadratic(25)
    right = inputs[:, 0] > 0.2
    surrogate = Surrogate(inputs[right], outcomes[right])
    low, high = -np.ones(2), np.ones(2)
    starts = np.random.default_rng(1).uniform(low, high, (64, 2))
    assert maximise(surrogate.acquisition(), starts, low, high)[0][0] < -0.2


@needs_botorch
def test_a_noisy_constraint_is_smoothed_and_not_believed_point_by_point():
    inputs, outcomes = quadratic(60)
    noisy = outcomes.copy()
    noisy[:, 1] += np.random.default_rng(2).normal(0.0, 0.15, len(noisy))
    misread = inputs[(outcomes[:, 1] > 0.05) & (noisy[:, 1] < 0.0)]
    assert len(misread) > 0
    surrogate = Surrogate(inputs, noisy)
    low, high = -np.ones(2), np.ones(2)
    starts = np.random.default_rng(1).uniform(low, high, (64, 2))
    best = maximise(surrogate.acquisition(), starts, low, high)[0]
    assert best == pytest.approx([0.0, 0.0], abs=0.25)
    noise = surrogate.parameters[:, 0]
    assert noise[1] > 0.01 > noise[0]


@needs_botorch
def test_a_slack_constraint_changes_nothing_and_a_hopeless_one_leaves_no_improvement():
    inputs, outcomes = quadratic(25)
    points = torch.from_numpy(np.random.default_rng(3).uniform(0, 1, (16, 1, 2)))
    slack = np.stack([outcomes[:, 0], outcomes[:, 1] - 50.0], axis=1)
    free = Surrogate(inputs, slack[:, :1]).acquisition()
    bounded, limited = (Surrogate(inputs, each).acquisition() for each in (slack, outcomes))
    with torch.no_grad():
        assert torch.allclose(free(points), bounded(points), atol=1e-6)
        far, near = (limited(torch.tensor([[[(x + 1) / 2, 0.5]]], dtype=torch.float64)) for x in (0.9, -0.05))
        assert far.item() < near.item() - 10.0


@needs_botorch
def test_an_open_proposal_is_not_proposed_again():
    inputs, outcomes = quadratic(8)
    surrogate = Surrogate(inputs, outcomes[:, :1])
    low, high = -np.ones(2), np.ones(2)
    starts = np.random.default_rng(1).uniform(low, high, (64, 2))
    first = maximise(surrogate.acquisition(), starts, low, high)[0]
    point = torch.from_numpy(first + 1.0)[None] / 2.0
    before = surrogate.acquisition()(point).item()
    surrogate.believe(first)
    assert surrogate.acquisition()(point).item() < before - 1.0
    second = maximise(surrogate.acquisition(), starts, low, high)[0]
    assert np.abs(second - first).max() > 0.02


@needs_botorch
@BOTH
def test_first_is_uniform_and_a_seed_decides_the_rest(walk, algorithm):
    evaluate = Sensitivities(walk)
    runs = [digests(advance(new(walk, algorithm, seed=seed), evaluate, [1] * 7)) for seed in (0, 0, 1)]
    assert runs[0] == runs[1] != runs[2]
    assert runs[0][0] == walk.reference_policy().digest()
    assert len(set(runs[0])) == 7


@needs_botorch
def test_bayes_begins_with_the_draws_of_random(walk):
    evaluate = Sensitivities(walk)
    random, bayes = (digests(advance(new(walk, each), evaluate, [1] * 6)) for each in ("random", "bayes"))
    assert random[:5] == bayes[:5] and random[5:] != bayes[5:]


@needs_botorch
@BOTH
@pytest.mark.parametrize("rounds", [[1] * 8, [4, 3, 2]])
def test_resumes_exactly_with_one_or_several_open(walk, tmp_path: Path, algorithm, rounds):
    evaluate = Sensitivities(walk)
    whole = digests(advance(new(walk, algorithm), evaluate, rounds))
    cut = len(rounds) * 5 // 6
    searcher = new(walk, algorithm)
    begun = digests(advance(searcher, evaluate, rounds[:cut]))
    torch.manual_seed(5)  # a resumed process has drawn other numbers from the global generators
    rest = advance(continued(searcher, new(walk, algorithm), tmp_path), evaluate, rounds[cut:])
    assert begun + digests(rest) == whole
    searcher.ask(1)
    with pytest.raises(RuntimeError, match="only when every proposal has been told"):
        searcher.state_dict()


@needs_botorch
def test_no_warmup_and_a_first_batch_of_several_work(walk):
    searcher = new(walk, "bayes", warmup_evaluations=0)
    done = digests(advance(searcher, Sensitivities(walk), [4, 2]))
    assert len(set(done)) == 6 and done[0] == walk.reference_policy().digest()


@needs_botorch
def test_global_generators_are_left_alone(walk):
    before = np.random.get_state()[1].tolist(), torch.get_rng_state().tolist()  # noqa: NPY002
    advance(new(walk, "bayes"), Sensitivities(walk), [1] * 7)
    assert before == (np.random.get_state()[1].tolist(), torch.get_rng_state().tolist())  # noqa: NPY002


@needs_botorch
def test_another_searchers_state_is_refused(walk, traced, tmp_path: Path):
    searcher = new(walk, "bayes")
    advance(searcher, Sensitivities(walk), [1] * 3)
    other = new(width_walk(traced("resnet20"), "macs=0.5"), "bayes")
    with pytest.raises(ValueError, match=r"shape \(7,\), not \(12,\)"):
        continued(searcher, other, tmp_path)


@needs_botorch
@pytest.mark.slow
def test_bayes_beats_random(walk):
    bests = {}
    for algorithm in ("random", "bayes"):
        runs = [
            advance(new(walk, algorithm, seed=seed), Sensitivities(walk, seed), [1] * 20) for seed in (0, 1)
        ]
        bests[algorithm] = np.mean([max(each.score for each in run) for run in runs])
    assert bests["bayes"] > bests["random"] + 0.005, bests


@needs_botorch
def test_cbo_finds_feasible_policies_although_the_uniform_one_is_not(walk):
    """The cost is 1.5 times what the walk's budget knows, and noisy: nothing bounded by it would fit."""
    evaluate = Sensitivities(walk, inflation=1.5, noise=0.02)
    limit = walk.budgets[0].limit
    done = advance(new(walk, "cbo"), evaluate, [1] * 18)
    feasible = [each.costs["macs"] <= limit for each in done]
    assert not feasible[0] and sum(feasible[5:]) >= 5
    assert max(e.costs["macs"] for e, good in zip(done, feasible, strict=True) if good) > 0.85 * limit


@needs_botorch
def test_what_misses_a_budget_never_leads_a_search(walk, tmp_path: Path):
    evaluate, limit = Sensitivities(walk), walk.budgets[0].limit
    result = search(
        new(walk, "cbo", evaluations=14),
        lambda policies: [evaluate(policy) for policy in policies],
        ScoreReward(),
        EvaluationLog(tmp_path / "evaluations.jsonl"),
        budget_evaluations=14,
        limits={"macs": limit},
    )
    rows, best = result.log.rows, result.best
    assert best is not None and best.costs["macs"] <= limit
    assert any(row.reward > best.reward and not row.feasible for row in rows)
    assert [row.feasible for row in rows] == [row.costs["macs"] <= limit for row in rows]


@needs_botorch
def test_cbo_beats_random_in_thirty_dimensions(traced):
    walk = width_walk(traced("resnet56"), "macs=0.5")
    evaluate, box, rng = Sensitivities(walk, seed=1), FreeBox(walk), np.random.default_rng(1)
    assert box.size == 30
    done = advance(new(walk, "cbo", seed=1), evaluate, [1] * 20)
    random = advance(new(walk, "random", seed=1), evaluate, [1] * 20)
    drawn = [evaluate(box.draw(rng, 0.3).policy) for _ in range(20)]
    limit = walk.budgets[0].limit
    best, *others = (max(e.score for e in run if e.costs["macs"] <= limit) for run in (done, random, drawn))
    assert best > max(others) + 0.01, (best, others)


@needs_botorch
@pytest.mark.slow
def test_cbo_beats_random_draws_of_its_own_box(traced):
    walk = width_walk(traced("resnet20"), "macs=0.5")
    gains = []
    for seed in range(2):
        evaluate, box, rng = Sensitivities(walk, seed), FreeBox(walk), np.random.default_rng(seed)
        limit = walk.budgets[0].limit
        drawn = [box.uniform, *(box.draw(rng, 0.3) for _ in range(59))]
        done = advance(new(walk, "cbo", evaluations=60, seed=seed), evaluate, [1] * 60)
        bests = [
            max(each.score for each in evaluations if each.costs["macs"] <= limit)
            for evaluations in ([evaluate(point.policy) for point in drawn], done)
        ]
        gains.append(bests[1] - bests[0])
    assert min(gains) > 0.01, gains

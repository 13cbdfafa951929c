"""The Gaussian process behind the agent's proposals, and the proposals that it chooses."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from agents.buffer import EpisodeRewardBuffer
from agents.config import AgentConfig
from agents.credit import softened
from agents.gaussian_process import GaussianProcess
from agents.off_policy import OffPolicySearcher
from agents.screening import ELITE_SHARE, TRIES, draw_candidates, most_promising
from agents.searcher import make_searcher
from tests.test_search import ToyEvaluate, ToyWalk, outcome, run, toy_actions

SCREENED = AgentConfig(warmup_evaluations=5, hidden_sizes=(16,), updates_per_transition=1)


def bowl(actions: np.ndarray) -> np.ndarray:
    return -((actions - 0.3) ** 2).sum(axis=1)


@pytest.fixture
def drawn() -> np.ndarray:
    return np.random.default_rng(0).uniform(-1.0, 1.0, (40, 4)).astype(np.float32)


def test_the_process_predicts_a_smooth_function(drawn: np.ndarray):
    process = GaussianProcess(drawn[:30], bowl(drawn[:30]))
    standard = process._standard(torch.from_numpy(drawn[30:].astype(np.float64)))
    mean = process._predict(standard)[0].numpy() * process._unit + process._level
    assert np.corrcoef(mean, bowl(drawn[30:]))[0, 1] > 0.9


def test_expected_improvement_is_larger_near_the_optimum_and_never_negative(drawn: np.ndarray):
    process = GaussianProcess(drawn, bowl(drawn))
    near, far = process.improvement(np.array([[0.3] * 4, [-0.9] * 4]))
    assert near > far >= 0.0


def test_expected_improvement_does_not_depend_on_the_scale_of_the_rewards(drawn: np.ndarray):
    small, large = GaussianProcess(drawn, bowl(drawn)), GaussianProcess(drawn, 1000.0 * bowl(drawn) + 50.0)
    points = drawn[:5] * 0.5
    assert 1000.0 * small.improvement(points) == pytest.approx(large.improvement(points), rel=1e-6, abs=1e-9)


def test_what_never_changed_says_nothing(drawn: np.ndarray):
    with_dead = np.concatenate([drawn, np.zeros((40, 1), np.float32)], axis=1)
    process = GaussianProcess(with_dead, bowl(drawn))
    point = np.full((1, 5), 0.2)
    moved = point.copy()
    moved[0, 4] = 0.9
    assert process.improvement(point) == process.improvement(moved)


def test_one_episode_and_equal_rewards_can_be_fitted():
    for n in (1, 6):
        actions = np.random.default_rng(0).uniform(-1.0, 1.0, (n, 3))
        assert np.isfinite(GaussianProcess(actions, np.zeros(n)).improvement(actions)).all()


def test_an_open_proposal_is_not_promising_any_more(drawn: np.ndarray):
    process = GaussianProcess(drawn, bowl(drawn))
    point = np.full(4, 0.25)
    before = process.improvement(point[None])[0]
    process.believe(point)
    assert process.improvement(point[None])[0] < before


def test_candidates_lie_around_the_actor_and_around_the_best_episodes():
    told = np.linspace(-0.9, 0.9, 20, dtype=np.float32).reshape(20, 1, 1)
    values = told[:, 0, 0].copy()
    own = np.zeros((1, 1), np.float32)
    ordered = np.zeros(1, dtype=bool)
    candidates = draw_candidates(np.random.default_rng(0), own, told, values, 100, 0.01, ordered)
    around_own = int(100 * (1 - ELITE_SHARE))
    assert candidates.shape == (100, 1, 1) and candidates.dtype == np.float32
    assert np.abs(candidates[:around_own]).max() < 0.05
    assert candidates[around_own:].min() > np.sort(values)[-5] - 0.05


def test_a_choice_without_an_order_stays_open_where_the_actor_stands_at_a_bound():
    own = np.full((8, 2), -1.0, np.float32)
    which = np.array([False, True])
    candidates = draw_candidates(np.random.default_rng(0), own, own[None], np.ones(1), 500, 0.01, which)
    assert candidates[..., 0].max() < -0.9
    anew = (candidates[..., 1] > -0.9).sum(axis=1)
    assert 0.8 < anew.mean() < 1.1, "of the 8 decisions about one, a twentieth of them near the bound again"
    assert candidates[..., 1].max() > 0.9


def test_the_most_promising_come_first(drawn: np.ndarray):
    candidates = np.stack([np.full((4, 1), centre) for centre in (-0.9, 0.3, 0.9)])
    process = GaussianProcess(drawn, bowl(drawn))
    ordered = list(most_promising(candidates, process))
    assert ordered[0][0, 0] == 0.3 and len(ordered) == 3
    many = np.repeat(candidates, 10, axis=0)
    assert len(list(most_promising(many, process))) == TRIES


def test_softened_rewards_keep_their_order_and_lose_their_tail():
    rewards = [-40.0, -5.0, -1.0, -0.5, 0.0, 2.0]
    learned = [softened(reward) for reward in rewards]
    assert learned == sorted(learned) and learned[2:] == rewards[2:]
    assert learned[0] == pytest.approx(-1.0 - np.log(40.0))
    assert (softened(-1.0) - softened(-1.001)) == pytest.approx(0.001, rel=1e-2)


def test_the_agent_learns_softened_rewards_and_the_log_reports_the_real_ones(tmp_path: Path):
    class Steep(ToyEvaluate):
        def _one(self, policy):
            evaluation = super()._one(policy)
            return type(evaluation)(policy, 100.0 * evaluation.score, evaluation.costs, 0.0)

    rows = run(tmp_path, Steep(), SCREENED, budget=6).log.rows
    searcher = make_searcher(ToyWalk(), SCREENED, 6)
    assert isinstance(searcher, OffPolicySearcher)
    searcher.ask(6)
    searcher.tell([], [row.reward for row in rows])
    assert min(row.reward for row in rows) < -5.0
    assert searcher.model.buffer.rewards.min() == pytest.approx(softened(min(row.reward for row in rows)))


def test_the_buffer_gives_its_episodes_back():
    searcher = make_searcher(ToyWalk(), SCREENED, 10)
    assert isinstance(searcher, OffPolicySearcher)
    policies = searcher.ask(4)
    searcher.tell([], [0.0, 1.0, 2.0, 3.0])
    buffer: EpisodeRewardBuffer = searcher.model.buffer
    actions, values = buffer.episodes()
    assert values.tolist() == [0.0, 1.0, 2.0, 3.0]
    assert np.stack(actions)[:, :, 0] == pytest.approx(np.stack([toy_actions(policy) for policy in policies]))


def test_screened_proposals_find_more_than_unscreened_ones(tmp_path: Path):
    best = {}
    for candidates in (1, 256):
        config = replace(SCREENED, candidates=candidates)
        result = run(tmp_path / str(candidates), config=config, budget=30)
        assert result.best is not None
        best[candidates] = result.best.score
    assert best[256] > 0.5 * best[1] and best[256] > -0.15  # of -1.48 for the uniform policy


def test_proposals_of_one_round_differ_and_no_policy_is_proposed_twice(tmp_path: Path):
    result = run(tmp_path, config=SCREENED, budget=24, proposals_per_round=4)
    assert len({row.digest for row in result.log.rows}) == 24


def test_a_screened_search_resumes_exactly(tmp_path: Path):
    settings = {"config": SCREENED, "proposals_per_round": 3}
    whole = outcome(run(tmp_path / "whole", budget=15, **settings))
    run(tmp_path / "cut", ToyEvaluate(interrupt_at=11), budget=15, checkpoint_every=6, **settings)
    assert outcome(run(tmp_path / "cut", budget=15, **settings)) == whole

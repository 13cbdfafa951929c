"""Buffer arithmetic, exploration noise, and that the agent learns."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from gymnasium import spaces

from agents.buffer import EpisodeRewardBuffer
from agents.config import AgentConfig
from agents.exploration import Exploration, truncated_normal
from agents.off_policy import OffPolicySearcher
from agents.searcher import make_searcher
from tests.test_search import TARGET, ToyWalk, outcome, run


def make_buffer(size: int, n_envs: int = 1) -> EpisodeRewardBuffer:
    box = spaces.Box(-1.0, 1.0, (1,))
    return EpisodeRewardBuffer(size, box, box, n_envs=n_envs)


def add(buffer: EpisodeRewardBuffer, rewards: list[float], dones: list[bool]) -> None:
    zeros = np.zeros((buffer.n_envs, 1))
    buffer.add(zeros, zeros, zeros, np.array(rewards), np.array(dones), [{}] * buffer.n_envs)


def test_reward_is_written_on_all_rows_of_the_episode():
    buffer = make_buffer(10)
    for step in range(4):
        add(buffer, [0.5 if step == 3 else 0.0], [step == 3])
    add(buffer, [0.0], [False])
    assert buffer.rewards[:5, 0].tolist() == [0.5] * 4 + [0.0]
    assert buffer.closed[:5, 0].tolist() == [True] * 4 + [False]


def test_rewards_inside_an_episode_are_summed():
    buffer = make_buffer(10)
    for step, reward in enumerate([1.0, 2.0, -0.5]):
        add(buffer, [reward], [step == 2])
    assert buffer.rewards[:3, 0].tolist() == [2.5] * 3


def test_wrap_around():
    buffer = make_buffer(6)
    for episode in range(3):
        for step in range(4):
            add(buffer, [float(episode) * (step == 3)], [step == 3])
    # Rows 0 and 1 hold the end of episode 1, the others episode 2.
    assert buffer.full and buffer.pos == 0
    assert buffer.rewards[:, 0].tolist() == [1.0, 1.0, 2.0, 2.0, 2.0, 2.0]
    add(buffer, [0.0], [False])
    assert buffer.closed[:, 0].tolist() == [False] + [True] * 5


def test_an_episode_across_the_end_of_the_buffer():
    buffer = make_buffer(6)
    for episode in range(2):
        for step in range(4):
            add(buffer, [float(episode + 1) * (step == 3)], [step == 3])
    assert buffer.rewards[:, 0].tolist() == [2.0, 2.0, 1.0, 1.0, 2.0, 2.0]


def test_columns_end_at_different_times():
    buffer = make_buffer(20, n_envs=2)
    add(buffer, [0.0, 0.0], [False, False])
    add(buffer, [3.0, 0.0], [True, False])
    add(buffer, [0.0, 5.0], [False, True])
    add(buffer, [7.0, 0.0], [True, False])
    assert buffer.rewards[:4].T.tolist() == [[3.0, 3.0, 7.0, 7.0], [5.0, 5.0, 5.0, 0.0]]
    sampled = buffer.sample(200).rewards.flatten().tolist()
    assert set(sampled) == {3.0, 5.0, 7.0}


def test_rewards_shrink_above_fifteen_decisions():
    buffer = make_buffer(100)
    for length in (15, 60):
        for step in range(length):
            add(buffer, [1.0 if step == length - 1 else 0.0], [step == length - 1])
    assert buffer.rewards[:15, 0].sum() == 15
    assert buffer.rewards[15:75, 0].sum() == 15


def test_sampling_has_its_own_generator():
    buffer = make_buffer(50)
    for step in range(40):
        add(buffer, [float(step)], [True])
    draws = []
    for _ in range(2):
        buffer.rng = np.random.default_rng(3)
        np.random.seed(len(draws))  # noqa: NPY002
        draws.append(buffer.sample(16).rewards)
    assert torch.equal(*draws)


@pytest.mark.parametrize("mean", [-1.0, -0.9, 0.0, 0.5, 1.0])
@pytest.mark.parametrize("sigma", [0.05, 0.3, 1.0])
def test_truncated_normal_stays_inside_without_atoms(mean: float, sigma: float):
    draws = truncated_normal(np.random.default_rng(0), np.full(20_000, mean), sigma)
    assert draws.dtype == np.float32 and np.abs(draws).max() <= 1.0
    assert np.mean(np.abs(draws) == 1.0) < 1e-3
    assert np.mean(np.abs(draws) > 0.999) < 0.03  # Clipping would put up to half of the draws here.


def test_truncated_normal_has_the_moments_of_a_normal_far_from_the_bounds():
    draws = truncated_normal(np.random.default_rng(0), np.full(50_000, 0.2), 0.1)
    assert abs(draws.mean() - 0.2) < 2e-3 and abs(draws.std() - 0.1) < 2e-3


def test_sigma_falls_geometrically_over_the_evaluation_budget():
    exploration = Exploration(evaluations=100, warmup=20)
    sigmas = [exploration.sigma(episode) for episode in range(100)]
    assert sigmas[0] == 0.0
    assert sigmas[1:21] == [0.3] * 20
    assert sigmas[90:] == pytest.approx([0.05] * 10)
    assert sigmas[55] == pytest.approx((0.3 * 0.05) ** 0.5)
    assert np.allclose(np.diff(np.log(sigmas[20:91])), np.log(0.05 / 0.3) / 70)


@pytest.mark.parametrize("budget", [1, 2, 5, 12, 25])
def test_sigma_is_defined_for_tiny_budgets(budget: int):
    exploration = AgentConfig().exploration(budget)
    assert exploration.warmup <= budget // 2
    assert all(0.0 <= exploration.sigma(episode) <= 0.3 for episode in range(budget + 5))


def test_the_agent_approaches_the_optimum_and_beats_random(tmp_path: Path):
    best: dict[str, list[float]] = {"ddpg": [], "random": []}
    for seed in range(2):
        for algorithm, found in best.items():
            config = AgentConfig(algorithm=algorithm, seed=seed, hidden_sizes=(64, 64))
            result = run(tmp_path / f"{algorithm}{seed}", config=config, budget=30)
            assert result.best is not None
            found.append(result.best.score)
    assert -(TARGET**2).sum() == pytest.approx(-1.48)  # What the uniform policy scores.
    assert min(best["ddpg"]) > -0.1
    assert np.mean(best["ddpg"]) > np.mean(best["random"]) + 0.15


@pytest.mark.parametrize("algorithm", ["ddpg", "td3", "sac"])
def test_seeded_runs_are_identical(tmp_path: Path, algorithm: str):
    config = replace(AgentConfig(hidden_sizes=(32, 32), warmup_evaluations=5), algorithm=algorithm)
    first, second = (run(tmp_path / name, config=config, budget=9) for name in "ab")
    other = run(tmp_path / "c", config=replace(config, seed=1), budget=9)
    assert outcome(first) == outcome(second) != outcome(other)


def test_making_and_running_a_searcher_leaves_the_global_generators_alone():
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    threads = torch.get_num_threads()
    searcher = make_searcher(ToyWalk(), AgentConfig(algorithm="sac", warmup_evaluations=0), 10)
    searcher.tell([], [0.1 for _ in searcher.ask(3)])
    assert torch.equal(torch.rand(3), expected) and torch.get_num_threads() == threads


def test_updates_per_transition():
    for updates in (1, 4):
        config = AgentConfig(warmup_evaluations=3, hidden_sizes=(8,), updates_per_transition=updates)
        searcher = make_searcher(ToyWalk(), config, 10)
        assert isinstance(searcher, OffPolicySearcher)
        for _ in range(5):
            searcher.ask(1)
            searcher.tell([], [0.0])
        assert searcher.model._n_updates == updates * 6 * 3  # After the third, fourth and fifth episode.

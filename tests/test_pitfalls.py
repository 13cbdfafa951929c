"""Eighteen ways in which an off-policy agent goes wrong on few, expensive episodes: each is a test.

Most of them are silent. The numbers only keep the list complete.
"""

import warnings
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import pytest
import torch
from gymnasium import spaces
from gymnasium.wrappers import TimeLimit
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.env_checker import check_env
from stable_baselines3.common.vec_env import DummyVecEnv, VecNormalize

from agents.checkpoint import load_checkpoint
from agents.config import AgentConfig
from agents.credit import softened
from agents.ddpg import CompressionDDPG, CompressionSAC, CompressionTD3
from agents.exploration import Exploration
from agents.log import EvaluationLog
from agents.off_policy import OffPolicySearcher
from agents.searcher import make_searcher
from tests.test_search import SMALL, ToyEvaluate, ToyWalk, outcome, run

T = 4
TINY: dict[str, Any] = {"policy_kwargs": {"net_arch": [16, 16]}, "seed": 0}


class ToyEnv(gymnasium.Env[np.ndarray, np.ndarray]):
    """Four steps; the reward at the last is minus the squared distance of the executed actions to 0.5."""

    def __init__(self, draws: bool = False, truncates: bool = False, executes: float | None = None):
        self.observation_space = spaces.Box(0.0, 1.0, (T,))
        self.action_space = spaces.Box(-1.0, 1.0, (1,))
        self.draws, self.truncates, self.executes = draws, truncates, executes
        self.played: list[float] = []

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[np.ndarray, dict[str, Any]]:
        super().reset(seed=seed)
        self.actions: list[float] = []
        return self._observe(), {}

    def step(self, action: np.ndarray) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        if self.draws:
            np.random.rand(3)  # noqa: NPY002
        info = {} if self.executes is None else {"executed_action": np.full(1, self.executes, np.float32)}
        self.actions.append(float(action[0]))
        self.played.append(float(action[0]))
        done = len(self.actions) == T
        reward = -float(((np.array(self.actions) - 0.5) ** 2).sum()) if done else 0.0
        return self._observe(), reward, done and not self.truncates, done and self.truncates, info

    def _observe(self) -> np.ndarray:
        return np.eye(T + 1, T, dtype=np.float32)[len(self.actions)]


def agent(env: Any = None, warmup: int = 2, **settings: Any) -> CompressionDDPG:
    exploration = Exploration(evaluations=40, warmup=warmup)
    return CompressionDDPG("MlpPolicy", env or ToyEnv(), exploration=exploration, **{**TINY, **settings})


def stored(model: CompressionDDPG) -> int:
    return model.buffer.size()


def test_01_several_environments_get_as_many_updates_per_transition():
    updates = []
    for n_envs in (1, 2):
        envs = DummyVecEnv([ToyEnv for _ in range(n_envs)])
        model = agent(envs, warmup=0, train_freq=(T, "step")).learn(12 * T)
        updates.append((model._n_updates, stored(model) * n_envs))
    assert updates == [(12 * T, 12 * T)] * 2


def test_02_the_last_transition_is_stored_when_a_search_is_stopped(tmp_path: Path):
    class StopAtTheEnd(BaseCallback):
        def _on_step(self) -> bool:
            return self.num_timesteps < T

    # What a callback of stable-baselines3 would lose (SB3 #2056): the only rewarded row.
    model = agent().learn(100, callback=StopAtTheEnd())
    assert stored(model) == T - 1 and not model.buffer.closed.any()
    # Our loop asks `stop` between rounds.
    calls = iter([False] * 7 + [True])
    run(tmp_path, stop=lambda: next(calls))
    rows = load_checkpoint(tmp_path / "checkpoint")["state"]["model"]["buffer"]["rows"]  # type: ignore[index]
    assert len(rows["rewards"]) == 7 * 6 and rows["closed"].all()


def test_03_a_checkpoint_holds_the_newest_reward(tmp_path: Path):
    run(tmp_path, ToyEvaluate(interrupt_at=9), checkpoint_every=4)
    last = EvaluationLog(tmp_path / "evaluations.jsonl").rows[7]
    checkpoint = load_checkpoint(tmp_path / "checkpoint")
    assert checkpoint is not None and checkpoint["evaluations"] == 8
    rewards = checkpoint["state"]["model"]["buffer"]["rows"]["rewards"]
    assert len(rewards) == 8 * 6 and rewards[-6:].flatten().tolist() == [np.float32(last.reward)] * 6


def test_04_exploration_has_no_atoms_at_the_bounds():
    model = agent()
    torch.nn.init.constant_(model.actor.mu[-2].bias, 2.0)  # The actor's mean is near its upper bound.
    actions = np.array([model.explore(np.zeros(T, np.float32), episode=2) for _ in range(300)])
    assert np.abs(actions).max() < 1.0 and len(np.unique(actions)) == 300


def test_05_the_buffer_holds_the_executed_action():
    model = agent(ToyEnv(executes=0.25)).learn(3 * T)
    assert model.buffer.actions[: 3 * T].flatten().tolist() == [0.25] * 3 * T


def test_06_only_unit_actions_are_accepted():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        check_env(ToyEnv())
    env = ToyEnv()
    env.action_space = spaces.Box(0.0, 1.0, (1,))
    with pytest.raises(ValueError, match=r"must be Box\(-1, 1\)"):
        agent(env)


@pytest.mark.parametrize("env", [ToyEnv(), ToyEnv(truncates=True), TimeLimit(ToyEnv(), T)])
def test_07_no_target_bootstraps_beyond_the_last_layer(env: gymnasium.Env[Any, Any]):
    model = agent(env).learn(2 * T)
    model.buffer.rng = np.random.default_rng(0)
    sample = model.buffer.sample(200)
    last = sample.observations[:, T - 1] == 1
    assert torch.equal(sample.dones.flatten() == 1, last)


def test_08_n_steps_is_refused():
    with pytest.raises(ValueError, match="n_steps has no effect"):
        agent(n_steps=4)


def test_09_a_resumed_search_equals_an_uninterrupted_one(tmp_path: Path):
    whole = run(tmp_path / "whole", budget=14)
    run(tmp_path / "cut", ToyEvaluate(interrupt_at=12), budget=14)
    assert outcome(run(tmp_path / "cut", budget=14)) == outcome(whole)


@pytest.mark.parametrize("algorithm", [CompressionDDPG, CompressionTD3, CompressionSAC])
def test_10_actor_and_critic_keep_their_learning_rates(algorithm: Any):
    model = algorithm("MlpPolicy", ToyEnv(), 1e-3, actor_learning_rate=1e-4, **TINY)
    model.exploration = Exploration(evaluations=10, warmup=1)
    model.learn(3 * T)
    assert model._n_updates > 0
    assert model.actor.optimizer.param_groups[0]["lr"] == 1e-4
    assert model.critic.optimizer.param_groups[0]["lr"] == 1e-3


def test_11_rewards_reach_the_critic_as_they_were_given():
    env = VecNormalize(DummyVecEnv([ToyEnv]))
    with pytest.raises(ValueError, match="VecNormalize is not supported"):
        agent(env)


def test_12_defaults_are_those_of_the_recipe():
    model = CompressionDDPG("MlpPolicy", ToyEnv())
    assert (model.gamma, model.batch_size, model.tau) == (1.0, 64, 0.01)
    assert (model.learning_rate, model.actor_learning_rate) == (1e-3, 1e-3)
    assert (model.policy.net_arch, len(model.critic.q_networks)) == ([300, 300], 1)
    model.learn(19 * T)
    assert model._n_updates == 0  # The warm-up is 20 episodes, not 100 steps.
    model.learn(2 * T, reset_num_timesteps=False)
    assert model._n_updates == 2 * T


def test_13_the_budget_counts_evaluations_exactly(tmp_path: Path):
    evaluate = ToyEvaluate()
    log = run(tmp_path, evaluate, budget=7, proposals_per_round=3).log
    assert len(log) == 7 and [row.index for row in log.rows] == list(range(7))


def test_14_an_environment_that_draws_from_numpy_does_not_change_the_agent():
    played = []
    for draws in (False, True):
        env = ToyEnv(draws)
        agent(env).learn(8 * T)
        played.append(env.played)
    assert played[0] == played[1]


def test_15_noise_follows_the_schedule_inside_learn():
    env = ToyEnv()
    agent(env, warmup=35).learn(5 * T)
    first, later = env.played[:T], env.played[T:]
    assert first == [0.0] * T and all(later)
    settled = [agent(warmup=2).exploration.sigma(episode) for episode in (30, 39)]
    assert settled == pytest.approx([0.05, 0.05])


def test_16_every_row_carries_the_return_of_its_episode_after_wrapping():
    model = agent(buffer_size=3 * T).learn(5 * T)
    episodes = model.buffer.actions.reshape(3, T)
    learned = [softened(float(each)) for each in -((episodes - 0.5) ** 2).sum(axis=1)]
    assert np.allclose(model.buffer.rewards.reshape(3, T), np.array(learned)[:, None], atol=1e-5)


def test_17_goals_in_a_dictionary_are_refused():
    env = ToyEnv()
    env.observation_space = spaces.Dict({"observation": env.observation_space})  # type: ignore[assignment]
    with pytest.raises(ValueError, match="dict observation space"):
        agent(env)


def test_18_measured_latencies_are_replayed_and_consumed_in_proposal_order(tmp_path: Path):
    before = run(tmp_path, ToyEvaluate(interrupt_at=8), budget=12, proposals_per_round=2).log.rows
    after = run(tmp_path, ToyEvaluate(), budget=12, proposals_per_round=2).log.rows
    assert [row.costs["latency"] for row in after[:8]] == [row.costs["latency"] for row in before]
    latencies = [row.costs["latency"] for row in after if not row.cached]
    assert latencies == sorted(latencies)


def test_the_searcher_plays_what_learn_would_play():
    """Asking and telling goes through the same sampling and updates as `learn` on an environment."""
    config = AgentConfig(warmup_evaluations=2, hidden_sizes=(16, 16), updates_per_transition=1)
    searcher = make_searcher(ToyWalk(T), config, 40)
    assert isinstance(searcher, OffPolicySearcher)
    for _ in range(5):
        searcher.ask(1)
        searcher.tell([], [0.1])
    model = agent().learn(5 * T)
    assert searcher.model._n_updates == model._n_updates
    assert (searcher.model.num_timesteps, searcher.model._episode_num) == (5 * T, 5)
    assert SMALL.gamma == model.gamma

"""Off-policy agents of stable-baselines3, adapted to few, expensive, deterministic episodes."""

from typing import Any

import numpy as np
import torch
from gymnasium import spaces
from stable_baselines3 import DDPG, SAC, TD3
from stable_baselines3.common.buffers import ReplayBuffer
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.noise import ActionNoise
from stable_baselines3.common.off_policy_algorithm import OffPolicyAlgorithm
from stable_baselines3.common.utils import FloatSchedule, update_learning_rate

from agents.buffer import EpisodeRewardBuffer
from agents.exploration import Exploration, truncated_normal


def default_settings() -> dict[str, Any]:
    """Settings of stable-baselines3 that differ from its defaults, as a new dictionary.

    Its defaults (gamma 0.99, 100 random *steps*, no noise) saturate the actor within a few episodes here.
    """
    return {
        "gamma": 1.0,
        "batch_size": 64,
        "tau": 0.01,
        "buffer_size": 20_000,
        "train_freq": (1, "episode"),
        "gradient_steps": -1,
        "learning_starts": 0,  # The warm-up is counted in episodes, by `Exploration`.
        "policy_kwargs": {"net_arch": [300, 300], "optimizer_kwargs": {"fused": True}},
        "device": "cpu",
    }


class EpisodicAgent(OffPolicyAlgorithm):
    """Mixin for an off-policy algorithm: episodes, not steps, are what counts.

    It adds truncated-normal exploration on a schedule over the evaluations, the reward on every row of an
    episode, the *executed* action in the replay buffer (`info["executed_action"]`, [K] in [-1, 1]), and
    separate learning rates (SB3 #338). Put it before the algorithm: `class X(EpisodicAgent, DDPG)`.
    """

    def __init__(
        self,
        policy: Any,
        env: Any,
        learning_rate: float = 1e-3,
        *,
        actor_learning_rate: float = 1e-3,
        exploration: Exploration | None = None,
        updates_per_transition: int = 1,
        **settings: Any,
    ):
        """Build the networks and the buffer.

        Args:
            policy: "MlpPolicy" or a policy class.
            env: a Gymnasium environment or a vectorized one, with actions in `Box(-1, 1)`.
            learning_rate: Adam's, for the critic (and SAC's temperature).
            actor_learning_rate: Adam's, for the actor.
            exploration: the noise of each episode.
            updates_per_transition: gradient updates for each transition collected.
            **settings: any other argument of the algorithm; replaces `default_settings`.

        Raises:
            ValueError: the action space is not `Box(-1, 1)`, the environment normalizes its rewards, or
                `n_steps` above 1 is asked for.
        """
        if settings.get("n_steps", 1) != 1:
            # stable-baselines3 would only warn and ignore it (PR #2275).
            raise ValueError("n_steps has no effect with EpisodeRewardBuffer; leave it at 1.")
        self.actor_learning_rate = actor_learning_rate
        self.exploration = exploration or Exploration()
        self.updates_per_transition = updates_per_transition
        settings = {**default_settings(), **settings}
        # stable-baselines3 writes into this dictionary (n_critics, use_sde), which may be the caller's.
        settings["policy_kwargs"] = dict(settings["policy_kwargs"])
        super().__init__(policy, env, learning_rate, replay_buffer_class=EpisodeRewardBuffer, **settings)

    def _setup_model(self) -> None:
        space = self.action_space
        if not isinstance(space, spaces.Box) or not (np.all(space.low == -1) and np.all(space.high == 1)):
            # Any other space would be rescaled silently, and executed actions would mix two scales.
            raise ValueError(f"The action space must be Box(-1, 1), not {space}.")
        if self._vec_normalize_env is not None:
            # It scales rewards by a running deviation that drifts while the buffer holds raw rewards.
            raise ValueError("VecNormalize is not supported: give rewards and observations already scaled.")
        self.actor_schedule = FloatSchedule(self.actor_learning_rate)
        super()._setup_model()
        self.seed_exploration(self.seed)
        self._start_episodes()

    def set_random_seed(self, seed: int | None = None) -> None:
        """Seed everything, the agent's own generator included; None seeds that one from the system."""
        super().set_random_seed(seed)
        if self.replay_buffer is not None:
            self.seed_exploration(seed)

    def seed_exploration(self, seed: int | None) -> None:
        """Seed only the exploration and the replay sampling, and no global generator.

        An environment that draws from NumPy's global generator must not change the agent's actions, so
        the agent draws from generators of its own.
        """
        self.exploration_rng = np.random.default_rng(seed)
        self.buffer.rng = self.exploration_rng.spawn(1)[0]

    def _start_episodes(self) -> None:
        """Number the episode that each environment column plays; the schedule counts by these numbers."""
        self._column_episodes = np.arange(self.n_envs)

    def _setup_learn(
        self, total_timesteps: int, callback: Any = None, reset_num_timesteps: bool = True, *args: Any
    ) -> tuple[int, BaseCallback]:
        if reset_num_timesteps:
            self._start_episodes()
        return super()._setup_learn(total_timesteps, callback, reset_num_timesteps, *args)

    @property
    def buffer(self) -> EpisodeRewardBuffer:
        """The replay buffer, by its real type."""
        assert isinstance(self.replay_buffer, EpisodeRewardBuffer)
        return self.replay_buffer

    def explore(self, observation: np.ndarray, episode: int) -> np.ndarray:
        """The action that the n-th episode tries.

        Args:
            observation: float32 [observation_size].
            episode: number of the episode, from 0; 0 plays the reference policy (all zeros).

        Returns:
            float32 [K] in [-1, 1].
        """
        sigma = self.exploration.sigma(episode)
        if self.exploration.warming_up(episode):
            centre = np.zeros(self.action_space.shape or (), dtype=np.float32)
            return truncated_normal(self.exploration_rng, centre, sigma)
        return self._explore_around_actor(observation, sigma)

    def _explore_around_actor(self, observation: np.ndarray, sigma: float) -> np.ndarray:
        mean, _ = self.predict(observation, deterministic=True)
        return truncated_normal(self.exploration_rng, mean, sigma)

    def _sample_action(
        self, learning_starts: int, action_noise: ActionNoise | None = None, n_envs: int = 1
    ) -> tuple[np.ndarray, np.ndarray]:
        # `ActionNoise` never sees the mean, so a truncated normal is possible only here.
        assert isinstance(self._last_obs, np.ndarray)
        columns = zip(self._last_obs, self._column_episodes, strict=True)
        actions = np.stack([self.explore(observation, int(episode)) for observation, episode in columns])
        return actions, actions

    def _store_transition(
        self,
        replay_buffer: ReplayBuffer,
        buffer_action: np.ndarray,
        new_obs: np.ndarray | dict[str, np.ndarray],
        reward: np.ndarray,
        dones: np.ndarray,
        infos: list[dict[str, Any]],
    ) -> None:
        # The reward belongs to what was executed after bounding and rounding, not to what was asked for.
        pairs = zip(infos, buffer_action, strict=True)
        executed = np.stack([info.get("executed_action", asked) for info, asked in pairs])
        super()._store_transition(replay_buffer, executed, new_obs, reward, dones, infos)
        for column in np.flatnonzero(dones):
            self._column_episodes[column] = self._column_episodes.max() + 1

    def _update_learning_rate(self, optimizers: list[torch.optim.Optimizer] | torch.optim.Optimizer) -> None:
        super()._update_learning_rate(optimizers)
        # train() has just overwritten the actor's rate too (SB3 #338).
        rate = self.actor_schedule(self._current_progress_remaining)
        update_learning_rate(self.actor.optimizer, rate)  # type: ignore[arg-type]

    def train(self, gradient_steps: int, batch_size: int = 64) -> None:
        """Update actor and critic `gradient_steps * updates_per_transition` times; nothing in the warm-up."""
        if not self.exploration.warming_up(self._episode_num):
            super().train(gradient_steps * self.updates_per_transition, batch_size)

    def learn_episode(self, observations: np.ndarray, actions: np.ndarray, reward: float) -> None:
        """Store an episode played elsewhere and learn from it, as `learn` does at the end of an episode.

        Args:
            observations: float32 [T + 1, observation_size].
            actions: the executed actions, float32 [T, K].
            reward: the episode's reward.
        """
        length = len(actions)
        for t in range(length):
            last = t == length - 1
            self.buffer.add(
                observations[t],
                observations[t + 1],
                actions[t],
                np.array([reward if last else 0.0]),
                np.array([last]),
                [{}],
            )
        self.num_timesteps += length
        self._episode_num += 1
        self.train(length, self.batch_size)


class CompressionDDPG(EpisodicAgent, DDPG):
    """DDPG (arXiv 1509.02971) for compression episodes: the agent of AMC (arXiv 1802.03494)."""


class CompressionTD3(EpisodicAgent, TD3):
    """TD3 (arXiv 1802.09477) for compression episodes: two critics, delayed actor, smoothed target."""


class CompressionSAC(EpisodicAgent, SAC):
    """SAC (arXiv 1801.01290) for compression episodes.

    Only its warm-up follows the schedule: after it, SAC explores by sampling its own stochastic actor.
    """

    def _explore_around_actor(self, observation: np.ndarray, sigma: float) -> np.ndarray:
        action, _ = self.predict(observation, deterministic=False)
        return action

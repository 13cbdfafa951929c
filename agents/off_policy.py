"""The learning searchers: an off-policy agent plays the walk and learns from each evaluated episode."""

from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import gymnasium
import numpy as np
import torch
from gymnasium import spaces
from stable_baselines3 import TD3
from stable_baselines3.common.logger import Logger

from agents.config import AgentConfig
from agents.ddpg import CompressionDDPG, CompressionSAC, CompressionTD3, EpisodicAgent, default_settings
from agents.episode import Episode, WalkLike, play, play_sequence
from agents.masked_policy import MaskedPolicy
from agents.recall import recall
from agents.screening import draw_candidates, most_promising
from agents.searcher import State, register_searcher
from agents.state import begin_from, load_model_state, model_state
from agents.threads import one_thread
from amc.evaluate import Evaluation
from amc.policy import CompressionPolicy
from envs.case_walk import CaseWalk

WIDER = (1.0, 3.0, 9.0)
"""Factors of the noise among candidates, tried in turn while all that is promising has been executed."""

_LOSSES = {"train/critic_loss": "critic_loss", "train/actor_loss": "actor_loss"}


class _Spaces(gymnasium.Env[np.ndarray, np.ndarray]):
    """Tells stable-baselines3 the shapes; the episodes are played on the walk, not through `learn`."""

    def __init__(self, walk: WalkLike):
        self.observation_space = spaces.Box(0.0, 1.0, (walk.observation_size,))
        self.action_space = spaces.Box(-1.0, 1.0, (walk.action_size,))


class OffPolicySearcher:
    """Proposes the episodes of an off-policy agent and trains it on the rewards.

    After the warm-up a Gaussian process over all episodes so far ranks noisy candidates, and the most
    promising one is proposed; the actor learns from what was executed. A search that goes on from another
    agent asks that agent's actor first, and has no warm-up. Several proposals may be open at
    once: they are then drawn from one actor, and told in order.
    """

    def __init__(
        self, agent: type[EpisodicAgent], walk: WalkLike, config: AgentConfig, budget_evaluations: int
    ):
        """Build the agent for a walk.

        Args:
            agent: the algorithm.
            walk: the decisions to make.
            config: settings.
            budget_evaluations: evaluations that the whole search may spend.
        """
        self._walk = walk
        self._candidates, self._begun = config.candidates, config.start_from is not None
        # Here and not when their turn comes: a measured latency, or a resumed search, would change them.
        self._openings = [] if self._begun else walk.openings
        self._open: deque[Episode] = deque()
        self._asked = 0
        self._losses: dict[str, float] = {}
        # The agent's torch generator is kept apart: evaluations draw from the global one when they
        # augment images, and a resumed search does not repeat them.
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(config.seed)
            self.model = _make_model(agent, walk, config, budget_evaluations)
            if config.start_from is not None:
                begin_from(self.model, config.start_from)
            self._torch_rng = torch.get_rng_state()

    @contextmanager
    def _own_torch(self) -> Iterator[None]:
        outside = torch.get_rng_state()
        torch.set_rng_state(self._torch_rng)
        try:
            with one_thread():
                yield
        finally:
            self._torch_rng = torch.get_rng_state()
            torch.set_rng_state(outside)

    def ask(self, n: int) -> list[CompressionPolicy]:
        """Play `n` episodes with the actor and the noise of their turn."""
        policies = []
        with self._own_torch():
            for _ in range(n):
                self._open.append(self._play())
                policies.append(self._open[-1].policy)
        return policies

    def _play(self) -> Episode:
        number, self._asked = self._asked, self._asked + 1
        if isinstance(self._walk, CaseWalk):
            self._walk.choose(self._walk.case_of(number))
        references = self.model.exploration.references
        if self._begun and references <= number < 2 * references:
            return play(self._walk, self._decide)
        opening = number - references
        if 0 <= opening < len(self._openings):
            return play_sequence(self._walk, self._openings[opening])
        nothing_told = self.model.buffer.size() == 0
        if self._candidates == 1 or nothing_told or self.model.exploration.warming_up(number):
            return play(self._walk, lambda observation: self.model.explore(observation, number))
        return self._play_screened(self.model.exploration.sigma(number))

    def _play_screened(self, sigma: float) -> Episode:
        """The most promising candidate that has not been executed yet; a promising one, if all have been.

        Where rounding leaves few policies near the best ones, the noise grows until it reaches others.
        """
        known = recall(self._walk, *self.model.buffer.episodes(), self._open)
        own = play(self._walk, self._decide)
        rng = self.model.exploration_rng
        for wider in WIDER:
            candidates = draw_candidates(
                rng,
                own.actions,
                known.told,
                known.worth,
                self._candidates,
                sigma * wider,
                self._walk.categorical,
            )
            for actions in most_promising(candidates, known.process):
                episode = play_sequence(self._walk, actions)
                if episode.actions.tobytes() not in known.executed:
                    return episode
        return episode

    def _decide(self, observation: np.ndarray) -> np.ndarray:
        action, _ = self.model.predict(observation, deterministic=True)
        return action

    def tell(self, evaluations: Sequence[Evaluation], rewards: Sequence[float]) -> None:
        """Write the oldest open episodes into the replay buffer, and train T updates after each."""
        with self._own_torch():
            for reward in rewards:
                episode = self._open.popleft()
                self.model.learn_episode(episode.observations, episode.actions, reward)
        values = self.model.logger.name_to_value
        self._losses = {ours: float(values[theirs]) for theirs, ours in _LOSSES.items() if theirs in values}

    def metrics(self, index: int) -> dict[str, float]:
        """Sigma of evaluation `index`, and the mean losses of the last training."""
        return {"sigma": self.model.exploration.sigma(index), **self._losses}

    def state_dict(self) -> State:
        """Networks, optimizers, replay buffer, generators and counters.

        Raises:
            RuntimeError: a proposal has not been told yet.
        """
        if self._open:
            raise RuntimeError("a searcher can be saved only when every proposal has been told")
        return {
            "model": model_state(self.model),
            "torch_rng": self._torch_rng.numpy().copy(),
            "asked": self._asked,
            "losses": self._losses,
        }

    def load_state_dict(self, state: State) -> None:
        """Continue where `state_dict` was taken.

        Raises:
            ValueError, KeyError, RuntimeError: the state is of an agent of another shape.
        """
        load_model_state(self.model, state["model"])
        self._torch_rng = torch.from_numpy(np.array(state["torch_rng"]))
        self._asked = int(state["asked"])
        self._losses = dict(state["losses"])
        self._open.clear()


def _make_model(
    agent: type[EpisodicAgent], walk: WalkLike, config: AgentConfig, budget_evaluations: int
) -> EpisodicAgent:
    policy_kwargs = {**default_settings()["policy_kwargs"], "net_arch": list(config.hidden_sizes)}
    cases, longest = (len(walk.names), walk.longest) if isinstance(walk, CaseWalk) else (1, walk.length)
    masked = issubclass(agent, TD3)  # DDPG and TD3; SAC's squashed Gaussian has no such place
    if masked:
        policy_kwargs["alive"] = walk.alive
    # SAC's temperature starts at 1 by default, ten times the size of a typical reward here.
    settings: dict[str, Any] = {"ent_coef": "auto_0.1"} if agent is CompressionSAC else {}
    model = agent(
        MaskedPolicy if masked else "MlpPolicy",
        _Spaces(walk),
        config.critic_learning_rate,
        actor_learning_rate=config.actor_learning_rate,
        exploration=config.exploration(budget_evaluations, cases),
        updates_per_transition=config.updates_per_transition,
        gamma=config.gamma,
        batch_size=config.batch_size,
        tau=config.tau,
        buffer_size=longest * budget_evaluations,
        policy_kwargs=policy_kwargs,
        **settings,
    )
    # Not through `seed=`: that would also reseed the global generators of Python, NumPy and torch.
    model.seed_exploration(config.seed)
    model.set_logger(Logger(folder=None, output_formats=[]))
    return model


@register_searcher("ddpg", learns=True)
def _ddpg(walk: WalkLike, config: AgentConfig, budget_evaluations: int) -> OffPolicySearcher:
    return OffPolicySearcher(CompressionDDPG, walk, config, budget_evaluations)


@register_searcher("td3", learns=True)
def _td3(walk: WalkLike, config: AgentConfig, budget_evaluations: int) -> OffPolicySearcher:
    return OffPolicySearcher(CompressionTD3, walk, config, budget_evaluations)


@register_searcher("sac", learns=True)
def _sac(walk: WalkLike, config: AgentConfig, budget_evaluations: int) -> OffPolicySearcher:
    return OffPolicySearcher(CompressionSAC, walk, config, budget_evaluations)

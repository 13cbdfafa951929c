"""The replay buffer that credits every decision of an episode with the episode's reward."""

from typing import Any

import numpy as np
from gymnasium import spaces
from stable_baselines3.common.buffers import ReplayBuffer
from stable_baselines3.common.type_aliases import ReplayBufferSamples
from stable_baselines3.common.vec_env import VecNormalize

from agents.credit import credit


class EpisodeRewardBuffer(ReplayBuffer):
    """Writes the softened reward of an episode on all of its rows when the episode ends.

    The reward of a compression policy is known only when the network is complete. Written on every row,
    one-step targets carry it to the first decision at once (AMC, arXiv 1802.03494, does the same); a
    terminal reward would need T sweeps. stable-baselines3 has no hook for it (SB3 #1370, #821).

    Rows of an episode that is still open are never sampled. The end of an episode is final: `truncated` is
    treated like `terminated`, so no target bootstraps beyond the last layer. Sampling draws from the
    buffer's own generator, not from NumPy's global one, which an environment could disturb.
    """

    def __init__(
        self,
        buffer_size: int,
        observation_space: spaces.Space,
        action_space: spaces.Space,
        device: Any = "cpu",
        n_envs: int = 1,
        optimize_memory_usage: bool = False,
    ):
        """Allocate `buffer_size // n_envs` rows of `n_envs` columns.

        Raises:
            ValueError: `optimize_memory_usage` is asked for; shared rows cannot hold several episodes' ends.
        """
        if optimize_memory_usage:
            raise ValueError("EpisodeRewardBuffer keeps next observations and cannot optimize_memory_usage.")
        super().__init__(
            buffer_size, observation_space, action_space, device, n_envs, handle_timeout_termination=False
        )
        self.rng = np.random.default_rng()
        self.closed = np.zeros((self.buffer_size, n_envs), dtype=bool)
        self._open_rows = np.zeros(n_envs, dtype=np.int64)
        self._open_return = np.zeros(n_envs, dtype=np.float64)

    def add(
        self,
        obs: np.ndarray,
        next_obs: np.ndarray,
        action: np.ndarray,
        reward: np.ndarray,
        done: np.ndarray,
        infos: list[dict[str, Any]],
    ) -> None:
        """Store one transition per column; see `ReplayBuffer.add`. `done` credits that column's episode."""
        row = self.pos
        super().add(obs, next_obs, action, reward, done, infos)
        self.closed[row] = False
        self._open_rows += 1
        self._open_return += reward
        for column in np.flatnonzero(done):
            self._close_episode(row, int(column))

    def _close_episode(self, last_row: int, column: int) -> None:
        length = int(self._open_rows[column])
        # An episode longer than the buffer has overwritten its own beginning.
        rows = (last_row - np.arange(min(length, self.buffer_size))) % self.buffer_size
        self.rewards[rows, column] = credit(float(self._open_return[column]), length)
        self.closed[rows, column] = True
        self._open_rows[column], self._open_return[column] = 0, 0.0

    def episodes(self) -> tuple[list[np.ndarray], np.ndarray]:
        """All ended episodes in order, where there is one column that has never been full.

        Returns:
            Executed actions, each [T, K], and what the episodes are credited with [n].
        """
        ends = np.flatnonzero(self.dones[: self.size(), 0]) + 1
        pieces = np.split(self.actions[: self.size(), 0], ends)[: len(ends)]
        return pieces, self.rewards[ends - 1, 0]

    def sample(self, batch_size: int, env: VecNormalize | None = None) -> ReplayBufferSamples:
        """Draw transitions of ended episodes uniformly, with replacement.

        Returns:
            Tensors of `batch_size` rows: observations, actions, next observations, dones, rewards.

        Raises:
            ValueError: no episode has ended yet.
        """
        candidates = np.flatnonzero(self.closed[: self.size()])
        chosen = candidates[self.rng.integers(len(candidates), size=batch_size)]
        index = np.divmod(chosen, self.n_envs)
        data = (
            self.observations[index],
            self.actions[index],
            self.next_observations[index],
            self.dones[index].reshape(-1, 1),
            self.rewards[index].reshape(-1, 1),
        )
        # Indexing with arrays has copied already.
        return ReplayBufferSamples(*(self.to_torch(array, copy=False) for array in data))

    _ROWS = ("observations", "next_observations", "actions", "rewards", "dones", "closed")

    def state_dict(self) -> dict[str, Any]:
        """Everything written so far, as arrays and JSON values."""
        rows = {name: getattr(self, name)[: self.size()].copy() for name in self._ROWS}
        open_episodes = {"rows": self._open_rows.copy(), "return": self._open_return.copy()}
        return {
            "rows": rows,
            "open": open_episodes,
            "pos": self.pos,
            "full": self.full,
            "rng": self.rng.bit_generator.state,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take over what `state_dict` gave, also from a smaller buffer that had just been filled.

        Raises:
            ValueError: the rows do not fit.
        """
        stored = len(state["rows"]["rewards"])
        for name in self._ROWS:
            getattr(self, name)[:stored] = state["rows"][name]
        same_size = not state["full"] or stored == self.buffer_size
        self.pos, self.full = (state["pos"], state["full"]) if same_size else (stored, False)
        self._open_rows[:] = state["open"]["rows"]
        self._open_return[:] = state["open"]["return"]
        self.rng.bit_generator.state = state["rng"]

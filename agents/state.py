"""An agent's whole learning state as arrays and JSON values, without pickle."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch

from agents.checkpoint import CHECKPOINT_FOLDER, load_checkpoint
from agents.ddpg import EpisodicAgent
from amc.errors import UserError
from amc.plugins import one_line

_COUNTERS = ("num_timesteps", "_episode_num", "_n_updates")
"""`_n_updates` decides on which updates TD3 moves its actor."""


def model_state(model: EpisodicAgent) -> dict[str, Any]:
    """Networks, optimizers, replay buffer, generators and counters of an agent.

    stable-baselines3's own `save` leaves out the buffer and every generator (SB3 #326, #435).
    """
    return {
        "policy": _arrays(model.policy.state_dict()),
        "optimizers": {name: _optimizer_state(each) for name, each in _optimizers(model)},
        "tensors": {name: tensor.detach().numpy().copy() for name, tensor in _tensors(model)},
        "buffer": model.buffer.state_dict(),
        "exploration_rng": model.exploration_rng.bit_generator.state,
        "counters": {name: getattr(model, name) for name in _COUNTERS},
    }


def load_model_state(model: EpisodicAgent, state: dict[str, Any]) -> None:
    """Put an agent into the state that `model_state` took of one with the same settings.

    Raises:
        ValueError, KeyError, RuntimeError: the state is of an agent of another shape.
    """
    model.policy.load_state_dict({name: _tensor(array) for name, array in state["policy"].items()})
    for name, optimizer in _optimizers(model):
        _load_optimizer(optimizer, state["optimizers"][name])
    for name, tensor in _tensors(model):
        tensor.data.copy_(_tensor(state["tensors"][name]))
    model.buffer.load_state_dict(state["buffer"])
    model.exploration_rng.bit_generator.state = state["exploration_rng"]
    for name in _COUNTERS:
        setattr(model, name, int(state["counters"][name]))


def begin_from(model: EpisodicAgent, folder: Path) -> None:
    """Give a new agent the networks of a trained one, and nothing else of it.

    Args:
        model: with the same settings.
        folder: where the trained one's checkpoint lies: of a run, or of a training on several networks.

    Raises:
        UserError: there is none, or its networks have other sizes.
    """
    checkpoint = load_checkpoint(folder / CHECKPOINT_FOLDER)
    if checkpoint is None:
        raise UserError(f"--start-from {folder}: there is no checkpoint of a trained agent in it.")
    try:
        policy = checkpoint["state"]["model"]["policy"]
        model.policy.load_state_dict({name: _tensor(array) for name, array in policy.items()})
    except (KeyError, TypeError, RuntimeError) as error:
        raise UserError(
            f"--start-from {folder}: its agent has other observations, knobs or layers. Train it, and go on "
            f"from it, with --observation summary and the same --hidden-sizes ({one_line(error)})."
        ) from error


def _optimizers(model: EpisodicAgent) -> Iterator[tuple[str, torch.optim.Optimizer]]:
    yield "actor", model.actor.optimizer  # type: ignore[misc]
    yield "critic", model.critic.optimizer  # type: ignore[attr-defined]
    temperature = getattr(model, "ent_coef_optimizer", None)
    if temperature is not None:
        yield "temperature", temperature


def _tensors(model: EpisodicAgent) -> Iterator[tuple[str, torch.Tensor]]:
    """Learned tensors outside the policy: SAC's temperature."""
    temperature = getattr(model, "log_ent_coef", None)
    if temperature is not None:
        yield "log_ent_coef", temperature


def _optimizer_state(optimizer: torch.optim.Optimizer) -> dict[str, Any]:
    # The parameter groups hold settings only, and those come from the configuration.
    state = optimizer.state_dict()["state"]
    return {str(index): _arrays(entries) for index, entries in state.items()}


def _load_optimizer(optimizer: torch.optim.Optimizer, state: dict[str, Any]) -> None:
    entries = {
        int(index): {name: _tensor(array) for name, array in moments.items()}
        for index, moments in state.items()
    }
    optimizer.load_state_dict({**optimizer.state_dict(), "state": entries})


def _arrays(tensors: dict[str, torch.Tensor]) -> dict[str, np.ndarray]:
    return {name: tensor.detach().cpu().numpy().copy() for name, tensor in tensors.items()}


def _tensor(array: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(np.array(array))

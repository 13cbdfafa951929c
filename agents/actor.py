"""The trained actor and critic of a run as small ONNX files, with the contract of what they observe."""

import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch
from onnx import TensorProto, helper, numpy_helper
from torch import nn

from agents.actor_contract import actor_contract, legal_budgets
from agents.actor_file import (
    ACTION,
    ACTOR_FILE,
    CONTRACT_FILE,
    CRITIC_FILE,
    OBSERVATION,
    VALUE,
    check_budgets,
    open_session,
)
from agents.checkpoint import CHECKPOINT_FOLDER, load_checkpoint
from agents.credit import reward_of
from agents.ddpg import EpisodicAgent
from agents.episode import Episode, WalkLike, play
from agents.log import EvaluationLog
from agents.masked_policy import MaskedActor
from agents.off_policy import OffPolicySearcher
from agents.run import Run
from agents.searcher import Searcher, make_searcher
from amc.errors import UserError
from amc.files import write_atomically, write_json
from amc.policy import CompressionPolicy

OPSET, IR_VERSION = 17, 8
TOLERANCE = 1e-5
"""Largest difference between torch's actions and ONNX Runtime's."""


@dataclass(frozen=True)
class TrainedActor:
    """An agent as its run's checkpoint left it.

    Attributes:
        model: the agent; its deterministic actor is what is exported.
        evaluations: evaluations that it has learned from.
        updates: gradient updates of its critic; 0 means that the actor is as it was drawn.
    """

    model: EpisodicAgent
    evaluations: int
    updates: int

    def act(self, observation: np.ndarray) -> np.ndarray:
        """The action without exploration, float32 [K] or [N, K], of observations [size] or [N, size]."""
        action, _ = self.model.predict(observation, deterministic=True)
        return action

    def value(self, observations: np.ndarray, actions: np.ndarray) -> np.ndarray:
        """What the critic thinks of actions [N, K]: float32 [N, 1], the least of several critics."""
        with torch.no_grad():
            found = self.model.critic(torch.from_numpy(observations), torch.from_numpy(actions))  # type: ignore[attr-defined]
        result: np.ndarray = torch.stack(list(found)).amin(dim=0).numpy()
        return result

    def mistakes(self) -> tuple[np.ndarray, np.ndarray]:
        """Rewards that the critic expects of the episodes that it has learned from, and the real ones [n].

        It is asked about the last decision of each, when all others are known.
        """
        buffer = self.model.buffer
        last = np.flatnonzero(buffer.dones[: buffer.size(), 0])
        lengths = np.diff(last, prepend=-1).tolist()
        values = self.value(buffer.observations[last, 0], buffer.actions[last, 0])[:, 0]
        expected, real = (
            np.array([reward_of(*pair) for pair in zip(credited.tolist(), lengths, strict=True)])
            for credited in (values, buffer.rewards[last, 0])
        )
        return expected, real

    def policy(self, walk: WalkLike) -> CompressionPolicy:
        """What the actor decides on a walk, without noise and without any evaluation."""
        return play(walk, self.act).policy


def load_actor(run: Run) -> TrainedActor | None:
    """Restore the agent of a run from its checkpoint; None where the searcher has no actor.

    The run's own searcher is left as it is.

    Raises:
        UserError: there is no checkpoint yet, or it does not belong to the run's log.
    """
    agent = run.config.agent
    walk = run.problem.training_walk(agent.seed)
    return restored(run.folder, make_searcher(walk, agent, run.config.search.evaluations), run.log)


def restored(folder: Path, searcher: Searcher, log: EvaluationLog) -> TrainedActor | None:
    """The agent of a new searcher in the state of a folder's checkpoint; None where it has no actor.

    Raises:
        UserError: there is no checkpoint yet, or it does not belong to the log.
    """
    if not isinstance(searcher, OffPolicySearcher):
        return None
    checkpoint = load_checkpoint(folder / CHECKPOINT_FOLDER)
    if checkpoint is None:
        raise UserError(f"{folder} has no checkpoint yet, so there is no trained actor to export.")
    try:
        evaluations, last = checkpoint["evaluations"], checkpoint["last_policy"]
        if log.rows[evaluations - 1].digest != last:
            raise ValueError("it was written by another search")
        searcher.load_state_dict(checkpoint["state"])
    except (ValueError, KeyError, TypeError, RuntimeError, IndexError) as error:
        raise UserError(f"The checkpoint in {folder} does not fit its log: {error}.") from error
    return TrainedActor(searcher.model, evaluations, searcher.model._n_updates)


def policy_under(run: Run, budgets: Sequence[str]) -> CompressionPolicy:
    """The policy of a run's actor under any budgets that it was trained for, without any search.

    Raises:
        UserError: the run has no actor, or a budget is not one that it knows.
    """
    actor = load_actor(run)
    if actor is None:
        raise UserError(f"The searcher {run.algorithm} has no actor that could be asked.")
    walk = run.problem.walk(budgets)
    check_budgets(legal_budgets(run.problem), walk)
    return actor.policy(walk)


def export_actor(run: Run, folder: Path | None = None) -> Path | None:
    """Write `actor.onnx`, `critic.onnx` and the contract `actor.json`; None where there is no actor.

    Args:
        run: the run, finished or not.
        folder: where to write; the run directory by default.

    Raises:
        UserError: see `load_actor`.
        RuntimeError: ONNX Runtime disagrees with torch, which would be an error of this exporter.
    """
    actor = load_actor(run)
    if actor is None:
        return None
    folder = folder or run.folder
    folder.mkdir(parents=True, exist_ok=True)
    walk = run.problem.training_walk(run.config.agent.seed)
    contract = actor_contract(run.problem, actor, run.algorithm)
    write_actor(folder, actor, contract, walk)
    return folder / ACTOR_FILE


def write_actor(folder: Path, actor: TrainedActor, contract: dict[str, Any], walk: WalkLike) -> None:
    """Write actor, critic and contract, after both files have been compared with torch.

    Raises:
        RuntimeError: ONNX Runtime disagrees with torch, which would be an error of this exporter.
    """
    metadata = {f"amc.{name}": json.dumps(contract[name]) for name in _METADATA}
    episode = play(walk, actor.act)
    models = {
        ACTOR_FILE: actor_model(actor.model, metadata),
        CRITIC_FILE: critic_model(actor.model, metadata),
    }
    _check(models[ACTOR_FILE], models[CRITIC_FILE], actor, episode)
    for name, model in models.items():
        write_atomically(folder / name, model.SerializeToString())
    write_json(folder / CONTRACT_FILE, contract)


_METADATA = ("format", "version", "algorithm", "network", "budgets", "evaluations", "observation_size")
"""What the ONNX file says about itself, each as JSON under `amc.<name>`; the rest is in the contract."""


def actor_model(agent: EpisodicAgent, metadata: dict[str, str]) -> onnx.ModelProto:
    """The deterministic actor as ONNX: `observation` [N, size] to `action` [N, K], both float32."""
    nodes, weights, value = _chain(_layers(agent.actor), OBSERVATION, "value")
    masking, bounds = _mask(agent.actor, value)
    shapes = {OBSERVATION: agent.observation_space.shape or (), ACTION: agent.action_space.shape or ()}
    return _model("actor", [*nodes, *masking], [*weights, *bounds], shapes, ACTION, metadata)


def critic_model(agent: EpisodicAgent, metadata: dict[str, str]) -> onnx.ModelProto:
    """The critic as ONNX: `observation` and `action` to `value` [N, 1]; the least of several critics."""
    joined = helper.make_node("Concat", [OBSERVATION, ACTION], ["joined"], axis=1)
    nodes, weights, values = [joined], list[TensorProto](), list[str]()
    for number, critic in enumerate(agent.critic.q_networks):  # type: ignore[attr-defined]
        own, own_weights, value = _chain(critic, "joined", f"critic_{number}")
        nodes, weights, values = [*nodes, *own], [*weights, *own_weights], [*values, value]
    nodes.append(helper.make_node("Min", values, [VALUE]))
    shapes = {
        OBSERVATION: agent.observation_space.shape or (),
        ACTION: agent.action_space.shape or (),
        VALUE: (1,),
    }
    return _model("critic", nodes, weights, shapes, VALUE, metadata)


def _chain(
    modules: Iterable[nn.Module], value: str, prefix: str
) -> tuple[list[onnx.NodeProto], list[TensorProto], str]:
    """Modules that are applied in turn: nodes, weights, and the name of the last value."""
    nodes, weights = [], []
    for index, module in enumerate(modules):
        inputs, output = [value], f"{prefix}_{index}"
        if isinstance(module, nn.Linear):
            for name, tensor in module.named_parameters():
                weights.append(numpy_helper.from_array(tensor.detach().cpu().numpy(), f"{output}_{name}"))
                inputs.append(f"{output}_{name}")
        nodes.append(_node(module, inputs, output))
        value = output
    return nodes, weights, value


def _model(
    name: str,
    nodes: list[onnx.NodeProto],
    weights: list[TensorProto],
    shapes: dict[str, tuple[int, ...]],
    output: str,
    metadata: dict[str, str],
) -> onnx.ModelProto:
    described = {
        value: helper.make_tensor_value_info(value, TensorProto.FLOAT, ["N", *shape])
        for value, shape in shapes.items()
    }
    inputs = [info for value, info in described.items() if value != output]
    graph = helper.make_graph(nodes, name, inputs, [described[output]], weights)
    opset = [helper.make_opsetid("", OPSET)]
    model = helper.make_model(graph, opset_imports=opset, ir_version=IR_VERSION, producer_name="amc")
    helper.set_model_props(model, metadata)
    onnx.checker.check_model(model)
    return model


def _layers(actor: nn.Module) -> Iterator[nn.Module]:
    """The modules that an actor of stable-baselines3 applies in turn to a flat observation."""
    if hasattr(actor, "latent_pi"):
        # SAC: the mean of its normal distribution, squashed; DDPG and TD3 end in their own Tanh.
        yield from (*actor.latent_pi, actor.mu, nn.Tanh())  # type: ignore[misc]
    else:
        yield from actor.mu  # type: ignore[misc]


def _mask(actor: nn.Module, value: str) -> tuple[list[onnx.NodeProto], list[TensorProto]]:
    """From the last layer to the action: 0 in dead entries where the actor does that, else as it is."""
    if not isinstance(actor, MaskedActor):
        return [helper.make_node("Identity", [value], [ACTION])], []
    bounds = {"alive_start": actor.alive.start, "alive_end": actor.alive.stop, "alive_axis": 1}
    cut = helper.make_node("Slice", [OBSERVATION, *bounds], ["alive"])
    arrays = [numpy_helper.from_array(np.array([number]), name) for name, number in bounds.items()]
    return [cut, helper.make_node("Mul", [value, "alive"], [ACTION])], arrays


def _node(module: nn.Module, inputs: list[str], output: str) -> onnx.NodeProto:
    if isinstance(module, nn.Linear):
        return helper.make_node("Gemm", inputs, [output], transB=1)
    operators = {nn.ReLU: "Relu", nn.Tanh: "Tanh"}
    return helper.make_node(operators[type(module)], inputs, [output])


def _check(
    actor_file: onnx.ModelProto, critic_file: onnx.ModelProto, actor: TrainedActor, episode: Episode
) -> None:
    """Compare with torch on the observations of the actor's own episode and on as many random ones."""
    seen = episode.observations
    drawn = np.random.default_rng(0).random(seen.shape, dtype=np.float32)
    observations = np.concatenate([seen, drawn])
    actions = open_session(actor_file.SerializeToString()).run([ACTION], {OBSERVATION: observations})[0]
    asked = {OBSERVATION: observations, ACTION: actions}
    values = open_session(critic_file.SerializeToString()).run([VALUE], asked)[0]
    wanted = actor.value(observations, actions)
    difference = float(np.abs(actions - actor.act(observations)).max())
    scale = max(1.0, float(np.abs(wanted).max()))
    difference = max(difference, float(np.abs(values - wanted).max()) / scale)
    if not difference <= TOLERANCE:
        raise RuntimeError(f"the exported actor differs from torch by {difference:.2g}")

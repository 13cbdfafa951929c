"""The trained actor of a run as a small ONNX file, with the contract of what it observes and decides."""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
from onnx import TensorProto, helper, numpy_helper
from torch import nn

from agents.actor_contract import actor_contract
from agents.checkpoint import load_checkpoint
from agents.ddpg import EpisodicAgent
from agents.episode import WalkLike, play
from agents.masked_policy import MaskedActor
from agents.off_policy import OffPolicySearcher
from agents.run import Run
from agents.search import CHECKPOINT_FOLDER
from agents.searcher import make_searcher
from amc.errors import UserError
from amc.files import write_atomically, write_json
from amc.policy import CompressionPolicy
from envs.walk import Walk

ACTOR_FILE, CONTRACT_FILE = "actor.onnx", "actor.json"
OBSERVATION, ACTION = "observation", "action"
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


def load_actor(run: Run) -> TrainedActor | None:
    """Restore the agent of a run from its checkpoint; None where the searcher has no actor.

    The run's own searcher is left as it is.

    Raises:
        UserError: there is no checkpoint yet, or it does not belong to the run's log.
    """
    searcher = make_searcher(run.problem.walk(), run.config.agent, run.config.search.evaluations)
    if not isinstance(searcher, OffPolicySearcher):
        return None
    checkpoint = load_checkpoint(run.folder / CHECKPOINT_FOLDER)
    if checkpoint is None:
        raise UserError(f"{run.folder} has no checkpoint yet, so there is no trained actor to export.")
    try:
        evaluations, last = checkpoint["evaluations"], checkpoint["last_policy"]
        if run.log.rows[evaluations - 1].digest != last:
            raise ValueError("it was written by another search")
        searcher.load_state_dict(checkpoint["state"])
    except (ValueError, KeyError, TypeError, RuntimeError, IndexError) as error:
        raise UserError(f"The checkpoint in {run.folder} does not fit its log: {error}.") from error
    return TrainedActor(searcher.model, evaluations, searcher.model._n_updates)


def export_actor(run: Run, folder: Path | None = None) -> Path | None:
    """Write `actor.onnx` and its contract `actor.json`; None where the searcher has no actor.

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
    contract = actor_contract(run, actor.evaluations, actor.updates)
    model = actor_model(actor.model, {f"amc.{name}": json.dumps(contract[name]) for name in _METADATA})
    _check(model, actor, run.problem.walk())
    write_atomically(folder / ACTOR_FILE, model.SerializeToString())
    write_json(folder / CONTRACT_FILE, contract)
    return folder / ACTOR_FILE


_METADATA = ("format", "version", "algorithm", "network", "budgets", "evaluations", "observation_size")
"""What the ONNX file says about itself, each as JSON under `amc.<name>`; the rest is in the contract."""


def actor_model(agent: EpisodicAgent, metadata: dict[str, str]) -> onnx.ModelProto:
    """The deterministic actor as ONNX: `observation` [N, size] to `action` [N, K], both float32."""
    nodes, weights, value = [], [], OBSERVATION
    for index, module in enumerate(_layers(agent.actor)):
        inputs, output = [value], f"value_{index}"
        if isinstance(module, nn.Linear):
            for name, tensor in module.named_parameters():
                weights.append(numpy_helper.from_array(tensor.detach().cpu().numpy(), f"{name}_{index}"))
                inputs.append(f"{name}_{index}")
        nodes.append(_node(module, inputs, output))
        value = output
    masking, bounds = _mask(agent.actor, value)
    nodes, weights = nodes + masking, weights + bounds
    sizes = {OBSERVATION: agent.observation_space.shape, ACTION: agent.action_space.shape}
    described = {
        name: helper.make_tensor_value_info(name, TensorProto.FLOAT, ["N", *(shape or ())])
        for name, shape in sizes.items()
    }
    graph = helper.make_graph(nodes, "actor", [described[OBSERVATION]], [described[ACTION]], weights)
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


def _check(model: onnx.ModelProto, actor: TrainedActor, walk: Walk) -> None:
    """Compare with torch on the observations of the actor's own episode and on as many random ones."""
    seen = play(walk, actor.act).observations
    drawn = np.random.default_rng(0).random(seen.shape, dtype=np.float32)
    observations = np.concatenate([seen, drawn])
    actions = _session(model.SerializeToString()).run([ACTION], {OBSERVATION: observations})[0]
    difference = float(np.abs(actions - actor.act(observations)).max())
    if not difference <= TOLERANCE:
        raise RuntimeError(f"the exported actor differs from torch by {difference:.2g}")


def _session(source: bytes | str) -> onnxruntime.InferenceSession:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    return onnxruntime.InferenceSession(source, options, providers=["CPUExecutionProvider"])


def roll_actor(path: Path, walk: WalkLike) -> CompressionPolicy:
    """The policy that an exported actor decides, without torch and without any evaluation.

    Args:
        path: an `actor.onnx`.
        walk: the decisions to make; its observations and actions must have the sizes of the actor's.

    Raises:
        UserError: the file is missing, not an actor, or of another problem.
    """
    if not path.is_file():
        raise UserError(f"There is no actor {path}: export one with export_actor first.")
    try:
        session = _session(str(path))
        observed, decided = session.get_inputs()[0], session.get_outputs()[0]
    except Exception as error:  # ONNX Runtime's exceptions have no common base class
        raise UserError(f"{path} is not an ONNX file that can be run: {error}.") from error
    sizes = [tuple(each.shape[1:]) for each in (observed, decided)]
    if (observed.name, decided.name) != (OBSERVATION, ACTION):
        raise UserError(f"{path} is not an exported actor: it maps {observed.name} to {decided.name}.")
    if sizes != [(walk.observation_size,), (walk.action_size,)]:
        raise UserError(
            f"{path} observes {sizes[0][0]} entries and decides {sizes[1][0]} knobs; this problem has "
            f"{walk.observation_size} and {walk.action_size}, so the actor was trained for another one."
        )
    return play(walk, lambda seen: session.run([ACTION], {OBSERVATION: seen[None]})[0][0]).policy

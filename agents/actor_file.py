"""Exported actors in use: decide a policy and say what it will be worth, with ONNX Runtime alone."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import onnxruntime

from agents.credit import reward_of
from agents.episode import Episode, WalkLike, play
from amc.errors import UserError
from amc.plugins import one_line
from amc.policy import CompressionPolicy
from envs.walk import Walk

ACTOR_FILE, CRITIC_FILE, CONTRACT_FILE = "actor.onnx", "critic.onnx", "actor.json"
OBSERVATION, ACTION, VALUE = "observation", "action", "value"
FORMAT, VERSION = "amc-actor", 2
EDGE = 1e-6
"""Rounding that a budget at the end of the legal range may have."""


@dataclass(frozen=True)
class ActorFile:
    """An exported actor with its critic and its contract.

    Attributes:
        path: the actor's file; critic and contract lie beside it.
        actor, critic: sessions.
        contract: the content of `actor.json`.
    """

    path: Path
    actor: onnxruntime.InferenceSession
    critic: onnxruntime.InferenceSession
    contract: dict[str, Any]

    def check(self, walk: Walk) -> None:
        """Refuse a walk that the actor cannot make.

        Raises:
            UserError: says what differs, or which budgets it knows.
        """
        wanted, found = self.contract["knobs"], list(walk.knob_names)
        if wanted != found:
            raise UserError(
                f"{self.path} decides {', '.join(wanted)} and this network offers "
                f"{', '.join(found) or 'nothing'}: it was trained for other decisions."
            )
        check_budgets(self.contract["legal_budgets"], walk)
        points = [point["name"] for point in self.contract["points"]]
        here = [walk.space.points[row].name for row in walk.rows]
        if walk.layout.kind == "positions" and len(points) != len(here):
            raise UserError(
                f"{self.path} was trained on {len(points)} decisions and this network has {len(here)}: an "
                "actor for other networks is trained with --observation summary."
            )
        _check_sizes(self.path, self.actor, walk)

    def decide(self, walk: WalkLike) -> Episode:
        """The actor's episode, without noise."""
        return play(walk, lambda seen: self.actor.run([ACTION], {OBSERVATION: seen[None]})[0][0])

    def expected_reward(self, episode: Episode) -> float:
        """What the critic thinks of a finished episode, in the unit of the training's rewards.

        It is asked about the last decision, when all others are known.
        """
        asked = {OBSERVATION: episode.observations[-2][None], ACTION: episode.actions[-1][None]}
        value = float(self.critic.run([VALUE], asked)[0].reshape(()))
        return reward_of(value, len(episode.actions))


def load_actor_file(path: Path) -> ActorFile:
    """Open an exported actor with the critic and the contract beside it.

    Raises:
        UserError: a file is missing, damaged or of another release.
    """
    session = _actor_session(path)
    contract_path = path.with_name(CONTRACT_FILE)
    try:
        contract = json.loads(contract_path.read_text())
        if (contract["format"], contract["version"]) != (FORMAT, VERSION):
            raise ValueError(f"it has version {contract['version']} and not {VERSION}")
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(f"{contract_path} is not the contract of an actor: {one_line(error)}.") from error
    return ActorFile(path, session, open_session(path.with_name(CRITIC_FILE), "a critic"), contract)


def roll_actor(path: Path, walk: WalkLike) -> CompressionPolicy:
    """The policy that an exported actor decides, without torch and without any evaluation.

    Args:
        path: an `actor.onnx`.
        walk: the decisions to make; its observations and actions must have the sizes of the actor's.

    Raises:
        UserError: the file is missing, not an actor, or of another problem.
    """
    session = _actor_session(path)
    _check_sizes(path, session, walk)
    return play(walk, lambda seen: session.run([ACTION], {OBSERVATION: seen[None]})[0][0]).policy


def open_session(source: Path | bytes, what: str = "an actor") -> onnxruntime.InferenceSession:
    """A session of one thread.

    Raises:
        UserError: the file is missing or cannot be run.
    """
    if isinstance(source, Path) and not source.is_file():
        raise UserError(f"There is no {what.split()[-1]} {source}: export one with scripts/export_policy.py.")
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    given = source if isinstance(source, bytes) else str(source)
    try:
        return onnxruntime.InferenceSession(given, options, providers=["CPUExecutionProvider"])
    except Exception as error:  # ONNX Runtime's exceptions have no common base class
        raise UserError(f"{source!r} is not an ONNX file that can be run: {one_line(error)}.") from error


def _actor_session(path: Path) -> onnxruntime.InferenceSession:
    session = open_session(path)
    observed, decided = session.get_inputs()[0], session.get_outputs()[0]
    if (observed.name, decided.name) != (OBSERVATION, ACTION):
        raise UserError(f"{path} is not an exported actor: it maps {observed.name} to {decided.name}.")
    return session


def _check_sizes(path: Path, session: onnxruntime.InferenceSession, walk: WalkLike) -> None:
    sizes = [tuple(each.shape[1:]) for each in (session.get_inputs()[0], session.get_outputs()[0])]
    if sizes != [(walk.observation_size,), (walk.action_size,)]:
        raise UserError(
            f"{path} observes {sizes[0][0]} entries and decides {sizes[1][0]} knobs; this problem has "
            f"{walk.observation_size} and {walk.action_size}, so the actor was trained for another one."
        )


def check_budgets(legal: Sequence[dict[str, Any]], walk: Walk) -> None:
    """Refuse budgets that an actor was not trained for.

    Args:
        legal: of the contract: cost, lowest and highest share of each.
        walk: under the budgets in question.

    Raises:
        UserError: names the budgets that it knows.
    """
    known, asked = [each["cost"] for each in legal], [budget.cost.name for budget in walk.budgets]
    if known != asked:
        raise UserError(
            f"This actor knows budgets of {' and '.join(known)}, in this order, and not of "
            f"{' and '.join(asked) or 'nothing'}."
        )
    for each, budget in zip(legal, walk.budgets, strict=True):
        low, high = each["lowest"], each["highest"]
        if not low - EDGE <= budget.fraction <= high + EDGE:
            raise UserError(
                f"This actor was trained with {each['cost']} from {low:.4g} to {high:.4g} of the original's, "
                f"and {budget.fraction:.4g} lies outside."
            )

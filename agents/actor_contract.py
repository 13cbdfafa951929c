"""What an exported actor observes and decides, entry by entry, so that it can be used elsewhere."""

from collections.abc import Sequence
from dataclasses import asdict
from typing import Any, Protocol

import numpy as np

from agents.actor_file import FORMAT, VERSION
from envs.observation import (
    PARTS,
    PLACE_FEATURES,
    PROGRESS_FEATURES,
    RECENT,
    STATIC_FEATURES,
    layer_features,
)
from envs.problem import Problem
from envs.problem_config import ProblemConfig
from envs.reward import LEAST_LOSS, SCORE_SCALE
from envs.walk import Walk

ASKED_ANEW = {"budget", "levels", "freeze", "min_widths", "target"}
"""Settings that whoever applies an actor gives for the network at hand."""

MEANINGS = {
    "layer": "static features of the current point's layer, each divided by its largest value in the network",
    "progress": "share of the first budget's cost (MACs without one) that decisions so far have removed, and "
    "share that open decisions can still change",
    "previous": "executed action of the previous step, mapped from [-1, 1] to [0, 1]; 0.5 at the first step",
    "alive": "1 where the knob is decided at this point, 0 where it is inherited or has one legal value",
    "budget": "each budget as a fraction of the original's cost, 1 without one",
    "one_hot": "1 at the current decision point",
    "decided": "keep ratio or rank of bits of every decision so far, 0 where open; point by point",
    "place": "share of the decisions that has been made; log2(1 + decisions) / log2(257); share of the "
    "layers whose width is decided here; share of the layer's inputs left if the rest is decided uniformly",
    "reference": "keep ratio, or rank, that the action 0 stands for here",
    "recent": "keep ratio or rank of the last three decisions, the latest first; 0 before the first",
    "mean": "mean of the decisions so far, weighted by the MACs of their layers in the original network",
    "least": "the smallest decision so far, 0 before the first",
    "by_depth": "the same means in each quarter of the decisions, in their order",
}
ACTION_MEANING = (
    "one entry a knob; 0 is the reference policy's value, -1 the smallest value from which the "
    "rest can still use a budget up, 1 the largest from which the rest can still keep every budget; linear "
    "in between, rounded to the nearest feasible value; entries of knobs that are not alive are ignored"
)


CRITIC_MEANING = (
    "value of an action at an observation; at the last decision of an episode of T decisions it is the "
    "expected reward, below -1 as -1 - log(-reward), times min(1, 15 / T)"
)


class Learned(Protocol):
    """What the contract says of a trained agent."""

    @property
    def evaluations(self) -> int:
        """Evaluations that it has learned from."""

    @property
    def updates(self) -> int:
        """Gradient updates of its critic; 0 means that the actor is as it was drawn."""

    def mistakes(self) -> tuple[np.ndarray, np.ndarray]:
        """What the critic thinks of the episodes that it has learned from, and what they were worth."""


def actor_contract(
    problem: Problem, learned: Learned, algorithm: str, networks: Sequence[str] = ()
) -> dict[str, Any]:
    """What someone needs to feed the actor and to read its actions, as JSON values.

    Args:
        problem: what it was trained on, one of them where there were several.
        learned: the trained agent.
        algorithm: its name.
        networks: fingerprints of the networks, where there were several.
    """
    walk, config = problem.walk(), problem.config
    return {
        "format": FORMAT,
        "version": VERSION,
        "algorithm": algorithm,
        "network": problem.network.fingerprint,
        "networks": list(networks) or [problem.network.fingerprint],
        "budgets": list(config.budgets),
        "legal_budgets": legal_budgets(problem),
        "evaluations": learned.evaluations,
        "updates": learned.updates,
        "observation_size": walk.observation_size,
        "observation": observation_table(walk),
        "action": {"size": walk.action_size, "range": [-1.0, 1.0], "meaning": ACTION_MEANING},
        "knobs": list(walk.knob_names),
        "points": _points(walk),
        "critic": {"meaning": CRITIC_MEANING, "reward": _reward(config), **_trust(learned)},
        "problem": {name: value for name, value in asdict(config).items() if name not in ASKED_ANEW},
    }


def legal_budgets(problem: Problem) -> list[dict[str, Any]]:
    """Each budget's cost and the range that was trained, as shares of the original's cost."""
    ends = [problem.parse_budgets(problem.config.budget_levels[place]) for place in (0, -1)]
    return [
        {"cost": low.cost.name, "lowest": low.fraction, "highest": high.fraction}
        for low, high in zip(*ends, strict=True)
    ]


def _reward(config: ProblemConfig) -> dict[str, Any]:
    """How a reward becomes a score again: the reference policy's plus the reward times a scale."""
    if config.goal != "accuracy":
        return {"kind": "cost", "meaning": "of --goal cost, which says nothing about the score alone"}
    if config.shares:
        meaning = "score = reference + reward x max(original - reference, scale)"
        return {"kind": "share", "scale": LEAST_LOSS, "meaning": meaning}
    return {"kind": "score", "scale": SCORE_SCALE, "meaning": "score = reference + reward x scale"}


def _trust(learned: Learned) -> dict[str, float]:
    """How far the critic is off on what it has learned from: in rewards, and as a correlation."""
    thought, real = learned.mistakes()
    if len(real) < 2 or min(thought.std(), real.std()) < 1e-9:
        return {"mean_error": float(np.abs(thought - real).mean()), "correlation": 0.0}
    correlation = float(np.corrcoef(thought, real)[0, 1])
    return {"mean_error": float(np.abs(thought - real).mean()), "correlation": correlation}


def observation_table(walk: Walk) -> list[dict[str, Any]]:
    """The parts of an observation in order: name, offset, size, names of the entries, meaning."""
    knobs = list(walk.knob_names)
    points = [walk.space.points[row].name for row in walk.rows]
    entries = {
        "layer": list(STATIC_FEATURES),
        "progress": list(PROGRESS_FEATURES),
        "previous": knobs,
        "alive": knobs,
        "budget": [budget.cost.name for budget in walk.budgets] or ["none"],
        "one_hot": points,
        "decided": [f"{point}/{knob}" for point in points for knob in knobs],
        "place": list(PLACE_FEATURES),
        "reference": knobs,
        "recent": [f"{ago} ago/{knob}" for ago in range(1, RECENT + 1) for knob in knobs],
        "mean": knobs,
        "least": knobs,
        "by_depth": [f"part {part}/{knob}" for part in range(1, PARTS + 1) for knob in knobs],
    }
    table, offset = [], 0
    for name, size in walk.layout.parts.items():
        row = {"name": name, "offset": offset, "size": size, "entries": entries[name]}
        table.append({**row, "meaning": MEANINGS[name]})
        offset += size
    return table


def _points(walk: Walk) -> list[dict[str, Any]]:
    """The stops of the walk with their static features, so that observing needs no traced network."""
    features = layer_features(walk.space.network.layers).astype(float).round(6).tolist()
    return [
        {
            "name": walk.space.points[row].name,
            "layer": dict(zip(STATIC_FEATURES, features[row], strict=True)),
        }
        for row in walk.rows
    ]

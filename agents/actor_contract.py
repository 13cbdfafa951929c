"""What an exported actor observes and decides, entry by entry, so that it can be used elsewhere."""

from typing import Any

from agents.run import Run
from envs.observation import PROGRESS_FEATURES, STATIC_FEATURES, layer_features
from envs.walk import Walk

FORMAT, VERSION = "amc-actor", 1

MEANINGS = {
    "layer": "static features of the current point's layer, each divided by its largest value in the network",
    "progress": "share of the first budget's cost (MACs without one) that decisions so far have removed, and "
    "share that open decisions can still change",
    "previous": "executed action of the previous step, mapped from [-1, 1] to [0, 1]; 0.5 at the first step",
    "alive": "1 where the knob is decided at this point, 0 where it is inherited or has one legal value",
    "budget": "each budget as a fraction of the original's cost, 1 without one",
    "one_hot": "1 at the current decision point",
    "decided": "keep ratio or rank of bits of every decision so far, 0 where open; point by point",
}
ACTION_MEANING = (
    "one entry a knob; 0 is the reference (uniform) policy's value, -1 the smallest value from which the "
    "rest can still use a budget up, 1 the largest from which the rest can still keep every budget; linear "
    "in between, rounded to the nearest feasible value; entries of knobs that are not alive are ignored"
)


def actor_contract(run: Run, evaluations: int, updates: int) -> dict[str, Any]:
    """What someone needs to feed the actor and to read its actions, as JSON values.

    Args:
        run: where the actor was trained.
        evaluations: how many it has learned from.
        updates: gradient updates of its critic; 0 means that the actor is as it was drawn.
    """
    walk, config = run.problem.walk(), run.config
    return {
        "format": FORMAT,
        "version": VERSION,
        "algorithm": config.agent.algorithm,
        "network": run.network.fingerprint,
        "budgets": list(config.problem.budgets),
        "evaluations": evaluations,
        "updates": updates,
        "observation_size": walk.observation_size,
        "observation": observation_table(walk),
        "action": {"size": walk.action_size, "range": [-1.0, 1.0], "meaning": ACTION_MEANING},
        "knobs": _knobs(walk),
        "points": _points(walk),
    }


def observation_table(walk: Walk) -> list[dict[str, Any]]:
    """The parts of an observation in order: name, offset, size, names of the entries, meaning."""
    knobs = _knobs(walk)
    points = [walk.space.points[row].name for row in walk.rows]
    entries = {
        "layer": list(STATIC_FEATURES),
        "progress": list(PROGRESS_FEATURES),
        "previous": knobs,
        "alive": knobs,
        "budget": [budget.cost.name for budget in walk.budgets] or ["none"],
        "one_hot": points,
        "decided": [f"{point}/{knob}" for point in points for knob in knobs],
    }
    table, offset = [], 0
    for name, size in walk.layout.parts.items():
        row = {"name": name, "offset": offset, "size": size, "entries": entries[name]}
        table.append({**row, "meaning": MEANINGS[name]})
        offset += size
    return table


def _knobs(walk: Walk) -> list[str]:
    """Names of an action's entries; knobs that are alive nowhere have none."""
    return [walk.space.knobs[column].name for column in walk.columns]


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

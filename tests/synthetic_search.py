"""A made-up score over real walks, and searches on it: what tests of searchers share."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from agents.checkpoint import load_checkpoint, save_checkpoint
from agents.config import AgentConfig
from agents.searcher import Searcher, make_searcher
from amc.costs.budget import parse_budget
from amc.costs.symbolic import symbolic_costs
from amc.evaluate import Evaluation
from amc.knobs import BitsKnob, WidthKnob
from amc.network import Network
from amc.policy import CompressionPolicy
from amc.space import Space
from envs.walk import Walk


def width_walk(network: Network, *budgets: str) -> Walk:
    """The walk of channel pruning alone."""
    bits = (BitsKnob("weight_bits", network, (8,)), BitsKnob("activation_bits", network, (8,)))
    space = Space(network, (WidthKnob(1), *bits))
    costs = symbolic_costs(space)
    original = {name: cost.of(space.original()) for name, cost in costs.items()}
    parsed = [parse_budget(text, costs, original) for text in budgets]
    return Walk(space, parsed, {"width"}, costs["macs"])


class Sensitivities:
    """Score = exp(-sum of s (1 / keep - 1)) with one log-normal s a layer; costs MACs times `inflation`.

    `noise` is the relative spread of the costs, fixed for each policy, as of a latency.
    """

    def __init__(self, walk: Walk, seed: int = 0, inflation: float = 1.0, noise: float = 0.0):
        self._walk, self._inflation, self._noise = walk, inflation, noise
        draws = np.exp(np.random.default_rng(seed).normal(0.0, 1.2, len(walk.space.points)))
        self._s, self._macs = 0.05 * draws, walk.budgets[0].cost

    def __call__(self, policy: CompressionPolicy) -> Evaluation:
        table = self._walk.space.table(policy)
        width = self._walk.space.column("width")
        keep = table[:, width] / self._walk.space.largest[:, width]
        score = float(np.exp(-(self._s * (1.0 / keep - 1.0)).sum()))
        rng = np.random.default_rng(int(policy.digest(), 16) % 2**32)
        factor = self._inflation * (1.0 + self._noise * rng.normal())
        return Evaluation(policy, score, {"macs": self._macs.of(table) * factor}, 0.0)


def new(walk: Walk, algorithm: str, evaluations: int = 40, **settings: int) -> Searcher:
    config = replace(AgentConfig(warmup_evaluations=5), algorithm=algorithm, **settings)
    return make_searcher(walk, config, evaluations)


def advance(
    searcher: Searcher, evaluate: Callable[[CompressionPolicy], Evaluation], rounds: Sequence[int]
) -> list[Evaluation]:
    """Ask, evaluate and tell; `rounds` says how many proposals are open at once."""
    done: list[Evaluation] = []
    for count in rounds:
        evaluations = [evaluate(policy) for policy in searcher.ask(count)]
        searcher.tell(evaluations, [10.0 * evaluation.score for evaluation in evaluations])
        done += evaluations
    return done


def digests(evaluations: Sequence[Evaluation]) -> list[str]:
    return [evaluation.policy.digest() for evaluation in evaluations]


def continued(searcher: Searcher, fresh: Searcher, folder: Path) -> Searcher:
    """`fresh`, in the state of `searcher` as a checkpoint on disk holds it."""
    save_checkpoint(folder, searcher.state_dict())
    state = load_checkpoint(folder)
    assert state is not None
    fresh.load_state_dict(state)
    return fresh

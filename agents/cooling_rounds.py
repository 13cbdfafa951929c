"""What each round of a cooled search is asked for, in the words of an ordinary one."""

import math
from dataclasses import replace

from agents.config import CoolingConfig
from agents.cooling_schedule import constraints, fractions, shares
from agents.run_config import RunConfig
from amc.errors import UserError
from amc.network import Network
from envs.bits import width_knob
from envs.problem_config import ProblemConfig


def round_config(config: RunConfig, number: int, budgets: tuple[str, ...]) -> RunConfig:
    """The settings of a round as an ordinary search.

    Args:
        config: of the whole search.
        number: of the round, from 1.
        budgets: of the round.
    """
    evaluations = shares(config.search.evaluations, config.cooling.rounds)[number - 1]
    return replace(
        config,
        problem=replace(config.problem, budget=budgets),
        search=replace(config.search, evaluations=evaluations, time_budget=None),
        cooling=CoolingConfig(),
    )


def first_config(config: RunConfig) -> RunConfig:
    """The settings of the first round, whose network is the original.

    Raises:
        UserError: there is something that rounds cannot do.
    """
    if config.problem.goal != "accuracy":
        raise UserError("--cooling tightens budgets, and --goal cost has none.")
    if config.problem.varies:
        raise UserError("--cooling tightens one budget round by round, and takes no range of them.")
    if config.problem.drop_blocks:
        raise UserError("--cooling does not go with --drop-blocks: rounds are matched layer by layer.")
    if config.problem.operators:
        raise UserError(
            "--cooling does not go with --operators: only widths are kept from round to round, and what "
            "replaced a layer would be lost."
        )
    texts = [
        f"{name}={budget_share(config.cooling, 1, fraction)!r}"
        for name, fraction in fractions(config.problem.budgets).items()
    ]
    return round_config(config, 1, tuple(texts))


def budget_share(cooling: CoolingConfig, number: int, end: float) -> float:
    """What a round may cost, as a fraction of the original's.

    Args:
        cooling: schedule and rounds.
        number: of the round, from 1.
        end: what the last one may cost.
    """
    assert cooling.cooling != "none"
    return constraints(cooling.cooling, cooling.rounds, end)[number - 1]


def least_widths(problem: ProblemConfig, original: Network) -> tuple[str, ...]:
    """The smallest widths that rounds together may leave: those of one search in the original network.

    A share of what the round before has left would let every round go below it.
    """
    knob = width_knob(problem, original, 1)
    return tuple(f"{group.name}={knob.least(group)}" for group in original.groups if not group.frozen)


def floor_text(name: str, limit: float) -> str:
    """An absolute budget as text: `macs=1234567B`, whose unit says that it is no fraction."""
    return f"{name}={math.floor(limit)}B"

"""What a learning searcher knows of the episodes so far, and expects of others."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from agents.episode import Episode, WalkLike
from agents.gaussian_process import GaussianProcess
from envs.case_walk import CaseWalk


@dataclass(frozen=True)
class Recall:
    """The episodes that say something about the one that is played next.

    Attributes:
        told: executed actions of those that have been evaluated, [n, T, K].
        worth: what each is worth, or would probably be at the level that is played next, [n].
        executed: the action sequences that need not be tried again, as bytes.
        process: predicts what other episodes would be worth.
    """

    told: np.ndarray
    worth: np.ndarray
    executed: frozenset[bytes]
    process: GaussianProcess


def recall(
    walk: WalkLike, told: Sequence[np.ndarray], values: np.ndarray, still_open: Sequence[Episode]
) -> Recall:
    """Fit the process to all episodes of the network that is played now.

    Args:
        walk: about to play; of a `CaseWalk` the case is chosen.
        told: executed actions of the episodes so far in order, each [T, K]; at least one.
        values: what they are credited with.
        still_open: the episodes after those, which have not been evaluated yet.
    """
    if not isinstance(walk, CaseWalk):
        actions = np.stack(told)
        process = GaussianProcess(actions.reshape(len(actions), -1), values)
        return _recalled(actions, values, np.ones(len(actions), bool), still_open, process)
    cases = [walk.case_of(number) for number in range(len(told) + len(still_open))]
    mine = [number for number in range(len(told)) if walk.same_network(cases[number])]
    actions = np.stack([told[number] for number in mine])
    levels = np.stack([walk.fractions(cases[number]) for number in mine])
    flat = actions.reshape(len(actions), -1)
    process = GaussianProcess(flat, values[mine], levels, walk.fractions(walk.case))
    same_case = np.array([cases[number] == walk.case for number in mine])
    waiting = [each for each, case in zip(still_open, cases[len(told) :], strict=True) if case == walk.case]
    return _recalled(actions, process.expected(flat), same_case, waiting, process)


def _recalled(
    actions: np.ndarray,
    worth: np.ndarray,
    repeatable: np.ndarray,
    still_open: Sequence[Episode],
    process: GaussianProcess,
) -> Recall:
    waiting = [episode.actions for episode in still_open]
    for each in waiting:
        process.believe(each.reshape(-1))
    executed = frozenset(each.tobytes() for each in (*actions[repeatable], *waiting))
    return Recall(actions, worth, executed, process)

"""Searchers: whatever proposes policies and learns from their rewards, behind one small protocol."""

import importlib.util
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol

import numpy as np

from agents.config import AgentConfig
from agents.episode import WalkLike, play, play_sequence
from agents.exploration import truncated_normal
from amc.errors import UserError
from amc.evaluate import Evaluation
from amc.policy import CompressionPolicy
from envs.problem_config import ProblemConfig, Reference

State = dict[str, Any]
"""A nested dictionary of NumPy arrays and JSON values: what a checkpoint can hold."""


class Searcher(Protocol):
    """Proposes policies; its first proposal is always the reference policy.

    The same calls in the same order give the same proposals, also after `load_state_dict`; a searcher
    draws from generators of its own only.
    """

    def ask(self, n: int) -> list[CompressionPolicy]:
        """Propose up to `n` policies; an empty list says that nothing is left to propose."""

    def tell(self, evaluations: Sequence[Evaluation], rewards: Sequence[float]) -> None:
        """Learn from the oldest proposals that have not been told yet, in the order of `ask`."""

    def metrics(self, index: int) -> dict[str, float]:
        """Figures worth a curve when evaluation `index` (from 0) is proposed: sigma, losses."""

    def state_dict(self) -> State:
        """Everything that decides future proposals; asked for only when every proposal has been told."""

    def load_state_dict(self, state: State) -> None:
        """Continue where `state_dict` was taken."""


SearcherFactory = Callable[[WalkLike, AgentConfig, int], Searcher]
"""Walk, settings and evaluation budget to a searcher."""


@dataclass(frozen=True)
class Registration:
    """What is known of a searcher without building it.

    Attributes:
        factory: builds it.
        package: the optional package that it needs, "" for none.
        extra: the extra that brings the package.
        goals: what it can search for.
        learns: whether it trains an agent, which takes a range of budgets or goes on from another agent.
        reference: the reference policy that it is about; None where that is the problem's own matter.
    """

    factory: SearcherFactory
    package: str
    extra: str
    goals: tuple[str, ...]
    learns: bool
    reference: Reference | None = None


_SEARCHERS: dict[str, Registration] = {}


def register_searcher(
    name: str,
    *,
    package: str = "",
    extra: str = "",
    goals: tuple[str, ...] = ("accuracy", "cost"),
    learns: bool = False,
    reference: Reference | None = None,
) -> Callable[[SearcherFactory], SearcherFactory]:
    """Make a searcher known as `--algorithm name`; use it as a decorator of its factory or class.

    Args:
        name: unique.
        package, extra: an optional package that it needs, and the extra that brings it.
        goals: what it can search for.
        learns: whether it trains an agent, which takes a range of budgets or goes on from another agent.
        reference: the reference policy that it is about, where it is about one.
    """

    def register(factory: SearcherFactory) -> SearcherFactory:
        _SEARCHERS[name] = Registration(factory, package, extra, goals, learns, reference)
        return factory

    return register


def searcher_names() -> list[str]:
    """The registered names, sorted."""
    # Imported late: stable-baselines3 takes seconds to import, and reading a log needs none of it.
    import agents.bayes.constrained
    import agents.bayes.plain
    import agents.evolution
    import agents.greedy
    import agents.heuristic
    import agents.off_policy  # noqa: F401

    return sorted(_SEARCHERS)


def check_searcher(name: str, goal: str | None = None, learning_for: str = "") -> None:
    """Refuse a searcher that cannot work, before anything is built for it.

    Args:
        name: the searcher.
        goal: what is searched for, if that is known.
        learning_for: what only a learning searcher can do and is asked for; "" for nothing.

    Raises:
        UserError: there is no such searcher, its package is not installed, or it knows no such goal.
    """
    names = searcher_names()
    if name not in names:
        raise UserError(f"There is no searcher '{name}'; choose one of {', '.join(names)}.")
    searcher = _SEARCHERS[name]
    if searcher.package and importlib.util.find_spec(searcher.package) is None:
        raise UserError(f'The searcher {name} needs a package: pip install "amc-compress[{searcher.extra}]".')
    if goal is not None and goal not in searcher.goals:
        raise UserError(f"The searcher {name} knows no --goal {goal}; choose another --algorithm.")
    if learning_for and not searcher.learns:
        able = ", ".join(each for each in names if _SEARCHERS[each].learns)
        raise UserError(f"The searcher {name} trains no agent and takes no {learning_for}; {able} do.")


def make_searcher(walk: WalkLike, config: AgentConfig, budget_evaluations: int) -> Searcher:
    """Build the searcher that `config.algorithm` names.

    Raises:
        UserError: there is no such searcher, or its package is not installed.
    """
    check_searcher(config.algorithm)
    return _SEARCHERS[config.algorithm].factory(walk, config, budget_evaluations)


def with_reference(problem: ProblemConfig, algorithm: str) -> ProblemConfig:
    """A problem with the reference policy that a searcher is about.

    Raises:
        UserError: there is no such searcher, or the problem asks for another one or cannot have it.
    """
    check_searcher(algorithm)
    wanted = _SEARCHERS[algorithm].reference
    if wanted is None or problem.reference == wanted:
        return problem
    if problem.reference != "auto":
        raise UserError(
            f"--algorithm {algorithm} begins at the {wanted} policy, not at --reference {problem.reference}."
        )
    return replace(problem, reference=wanted)


def _reference(walk: WalkLike) -> CompressionPolicy:
    zeros = np.zeros(walk.action_size, dtype=np.float32)
    return play(walk, lambda observation: zeros).policy


@register_searcher("uniform", reference="uniform")
@register_searcher("balanced", reference="balanced")
class ReferenceSearcher:
    """Proposes the reference policy, once."""

    def __init__(self, walk: WalkLike, config: AgentConfig, budget_evaluations: int):
        self._walk = walk
        self._asked = False

    def ask(self, n: int) -> list[CompressionPolicy]:
        """The reference policy at the first call, nothing afterwards."""
        if self._asked or n < 1:
            return []
        self._asked = True
        return [_reference(self._walk)]

    def tell(self, evaluations: Sequence[Evaluation], rewards: Sequence[float]) -> None:
        """There is nothing to learn."""

    def metrics(self, index: int) -> dict[str, float]:
        """No curve."""
        return {}

    def state_dict(self) -> State:
        """Whether it has been asked."""
        return {"asked": self._asked}

    def load_state_dict(self, state: State) -> None:
        """Continue where `state_dict` was taken."""
        self._asked = bool(state["asked"])


@register_searcher("random")
class RandomSearcher:
    """Draws from the agent's warm-up distribution: a truncated normal around the reference policy.

    With the seed of an agent it proposes the very policies of that agent's warm-up, so that both are
    compared from the same start. Drawing uniformly from the box would be a straw man.
    """

    def __init__(self, walk: WalkLike, config: AgentConfig, budget_evaluations: int):
        self._walk = walk
        self._openings = walk.openings
        self._sigma = config.sigma_start
        self._rng = np.random.default_rng(config.seed)
        self._asked = 0

    def ask(self, n: int) -> list[CompressionPolicy]:
        """Draw `n` policies; the very first is the reference policy."""
        return [self._draw() for _ in range(n)]

    def _draw(self) -> CompressionPolicy:
        number, self._asked = self._asked, self._asked + 1
        if 1 <= number <= len(self._openings):
            return play_sequence(self._walk, self._openings[number - 1]).policy
        sigma = self._sigma if number else 0.0
        zeros = np.zeros(self._walk.action_size, dtype=np.float32)
        return play(self._walk, lambda observation: truncated_normal(self._rng, zeros, sigma)).policy

    def tell(self, evaluations: Sequence[Evaluation], rewards: Sequence[float]) -> None:
        """There is nothing to learn."""

    def metrics(self, index: int) -> dict[str, float]:
        """The constant sigma; 0 for the reference policy."""
        return {"sigma": self._sigma if index else 0.0}

    def state_dict(self) -> State:
        """Generator and count."""
        return {"rng": self._rng.bit_generator.state, "asked": self._asked}

    def load_state_dict(self, state: State) -> None:
        """Continue where `state_dict` was taken."""
        rng: Mapping[str, Any] = state["rng"]
        self._rng.bit_generator.state = rng
        self._asked = int(state["asked"])

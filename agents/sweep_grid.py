"""The trials of a sweep: each combination of networks, budgets, searchers and seeds is an ordinary run."""

import itertools
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path

from agents.cooling_rounds import first_config
from agents.run_config import CONFIG_FILE, RunConfig, SourceConfig, read_config
from agents.searcher import check_searcher
from agents.source import load_source
from amc.errors import UserError
from amc.targets import get_target

FREE = {"evaluations", "time_budget", "schedule_evaluations", "data_root"}
"""Settings that a run may go on with after they have changed."""


@dataclass(frozen=True)
class Trial:
    """One search of a sweep.

    Attributes:
        name: of its run directory.
        network: what the network is called in the sweep.
        config: every setting.
    """

    name: str
    network: str
    config: RunConfig

    @property
    def cores(self) -> int:
        """CPU cores that it has to itself."""
        return max(self.config.source.threads, self.config.search.workers)


@dataclass(frozen=True)
class Axes:
    """What varies; an empty axis has the one value that the other settings give.

    Attributes:
        networks: `name=weights file`, or `package.module:factory`.
        budgets: each a budget, or several that hold at once with commas between them.
        searchers: by name.
        seeds: of the searchers.
    """

    networks: tuple[str, ...] = ()
    budgets: tuple[str, ...] = ()
    searchers: tuple[str, ...] = ()
    seeds: tuple[int, ...] = ()


def make_trials(base: RunConfig, axes: Axes) -> list[Trial]:
    """Every combination, seeds innermost, so that a sweep that is cut has few rows without their repeats.

    Args:
        base: the settings that do not vary. A trial has as many threads as they say, and by default one: the
            same on every machine, as the number decides how sums are rounded.
        axes: the settings that do.

    Raises:
        UserError: a value makes no sense, or two trials would be the same.
    """
    sources = [network_source(base.source, text) for text in axes.networks] or [_absolute(base.source)]
    problems = [
        replace(base.problem, budget=tuple(part.strip() for part in text.split(","))) for text in axes.budgets
    ] or [base.problem]
    agents = [
        replace(base.agent, algorithm=searcher, seed=seed)
        for searcher in axes.searchers or (base.agent.algorithm,)
        for seed in axes.seeds or (base.agent.seed,)
    ]
    names = _network_names(sources)
    trials = [
        Trial(_name(names[source], config), names[source], config)
        for source, problem, agent in itertools.product(sources, problems, agents)
        for config in [replace(base, source=source, problem=problem, agent=agent)]
    ]
    repeated = [name for name, count in Counter(trial.name for trial in trials).items() if count > 1]
    if repeated:
        raise UserError(f"The grid has {repeated[0]} twice: a value of an axis is repeated.")
    return trials


def check_trials(trials: Sequence[Trial], folder: Path) -> None:
    """Refuse, before anything is started, what can be known to fail.

    Each network is loaded once with its weights and data.

    Raises:
        UserError: says what does not fit, or which run of the folder was made with other settings.
    """
    for algorithm, goal in {(t.config.agent.algorithm, t.config.problem.goal) for t in trials}:
        check_searcher(algorithm, goal)
    for trial in trials:
        if trial.config.cooling.is_on:
            first_config(trial.config)
    for trial in trials:
        if (folder / trial.name / CONFIG_FILE).exists():
            _check_same(folder / trial.name, trial.config)
    for target in {trial.config.problem.target for trial in trials}:
        get_target(target).runtime_version  # noqa: B018 - a missing runtime is noticed here
    for source in dict.fromkeys(trial.config.source for trial in trials):
        load_source(source)


def _check_same(folder: Path, wanted: RunConfig) -> None:
    stored = read_config(folder)
    for part in fields(wanted):
        old, new = getattr(stored, part.name), getattr(wanted, part.name)
        # The evaluations of a cooled search are divided among its rounds.
        free = FREE - {"evaluations"} if wanted.cooling.is_on else FREE
        for name in (field.name for field in fields(new) if field.name not in free):
            if getattr(old, name) != getattr(new, name):
                raise UserError(
                    f"{folder} was made with --{name.replace('_', '-')} {getattr(old, name)}, and not "
                    f"{getattr(new, name)}: choose another --name for this sweep."
                )


def network_source(base: SourceConfig, text: str) -> SourceConfig:
    """The network that `name=weights file` or an import path names."""
    model, _, weights = text.partition("=")
    return _absolute(replace(base, model=model, weights=Path(weights) if weights else None))


def _absolute(source: SourceConfig) -> SourceConfig:
    """Paths that mean the same in every process, and a number of threads that does not depend on one."""
    weights = None if source.weights is None else source.weights.absolute()
    return replace(
        source, weights=weights, data_root=source.data_root.absolute(), threads=source.threads or 1
    )


def _network_names(sources: Sequence[SourceConfig]) -> dict[SourceConfig, str]:
    """The network's name, and that of its weights where one network has several."""
    models = Counter(source.model for source in sources)
    return {
        source: source.model.replace(":", ".")
        + (f"-{source.weights.stem}" if models[source.model] > 1 and source.weights else "")
        for source in sources
    }


def _name(network: str, config: RunConfig) -> str:
    """No sign that a shell or TensorBoard's filter would read."""
    wanted = [budget.replace("=", "") for budget in config.problem.budgets]
    if config.problem.goal == "cost":
        wanted.append(f"min-{config.problem.minimize}")
    rounds = [config.cooling.cooling] if config.cooling.is_on else []
    return "-".join([network, *wanted, config.agent.algorithm, *rounds, f"seed{config.agent.seed}"])

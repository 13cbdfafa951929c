"""The rows of the cooling results: which there are, their order, and the searches behind them."""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, cast

from agents.config import AgentConfig, CoolingConfig, SearchConfig
from agents.run_config import RunConfig
from envs.problem_config import ProblemConfig
from scripts.results_runs import recipe
from scripts.search_rows import SEEDS, SearchResults, source

SEARCHERS = ("cbo", "ddpg")
ONE_SHOT = "one-shot"
Schedule = Literal["linear", "exponential"]


@dataclass(frozen=True)
class CoolingResults(SearchResults):
    """Options; rows that the output already has are made again only with --again."""

    out: Path = Path("docs/results/cooling.json")
    """Figures file; every finished row is written at once. Several calls may write to it side by side."""
    runs: Path = Path("runs/cooling")
    """Where the run directories go; interrupted searches and fine-tunings continue."""
    rounds: int = 5
    """Rounds of a cooled search."""
    round_epochs: int = 2
    """Epochs of fine-tuning after each round; a search at once has those of all rounds after it."""

    @property
    def epochs(self) -> int:
        """Epochs of fine-tuning in all, the same for every row."""
        return self.rounds * self.round_epochs


@dataclass(frozen=True)
class Spec:
    """One row: a search, at once or in rounds, and the fine-tuning of what it has found.

    Attributes:
        network, searcher: by name.
        budget: fraction of the original's MACs, as text.
        schedule: "one-shot", "linear" or "exponential".
        seed: of the search, as text.
    """

    network: str
    budget: str
    searcher: str
    schedule: str
    seed: str

    @property
    def name(self) -> str:
        """The row's id."""
        return "/".join(vars(self).values())

    def to_json(self) -> dict[str, Any]:
        """The fields."""
        return dict(vars(self))


def plan() -> list[Spec]:
    """Every row; the paper's claim comes first, and pairs are complete early."""
    claim, mild = (ONE_SHOT, "exponential"), (ONE_SHOT, "exponential", "linear")
    return [
        *block("resnet20", "0.15", claim),
        *block("resnet20", "0.15", ("linear",)),
        *block("resnet20", "0.25", mild),
        *block("resnet56", "0.15", mild),
    ]


def block(network: str, budget: str, schedules: tuple[str, ...]) -> list[Spec]:
    """The rows of a network under a budget, the seeds in the outer loop."""
    return [
        Spec(network, budget, searcher, schedule, seed)
        for seed in SEEDS
        for searcher in SEARCHERS
        for schedule in schedules
    ]


def search_config(options: CoolingResults, spec: Spec) -> RunConfig:
    """The search of a row; between rounds the networks are trained as at the end."""
    last = recipe(Path(), Path(), options.round_epochs, False)
    settings = RunConfig(
        source(options, spec.network),
        ProblemConfig(budget=(f"macs={spec.budget}",)),
        AgentConfig(algorithm=spec.searcher, seed=int(spec.seed)),
        SearchConfig(evaluations=options.evaluations),
    )
    if spec.schedule == ONE_SHOT:
        return settings
    schedule = cast(Schedule, spec.schedule)
    rounds = CoolingConfig(
        cooling=schedule,
        rounds=options.rounds,
        round_epochs=options.round_epochs,
        round_lr=last.lr,
        round_batch_size=last.batch_size,
    )
    return replace(settings, cooling=rounds)


def last_epochs(options: CoolingResults, spec: Spec) -> int:
    """Epochs of fine-tuning after the search."""
    return options.epochs if spec.schedule == ONE_SHOT else options.round_epochs


def run_folder(options: CoolingResults, spec: Spec) -> Path:
    """The run directory of a row."""
    return options.runs / spec.name.replace("/", "-")


def command(options: CoolingResults, spec: Spec) -> str:
    """What makes a row again, with weights and data where the options expect them."""
    default = CoolingResults()
    names = ("evaluations", "rounds", "round_epochs")
    changed = [
        f" --{name.replace('_', '-')} {getattr(options, name)}"
        for name in names
        if getattr(options, name) != getattr(default, name)
    ]
    return f"python -m scripts.cooling_results --only '{spec.name}'{''.join(changed)}"

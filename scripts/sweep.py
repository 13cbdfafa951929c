"""Search a grid of networks, budgets, searchers and seeds, on this machine or on a Ray cluster."""

import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from types import TracebackType
from typing import Any

if not __package__:  # started as a file: Python then looks in scripts/ and not in the folder above it
    sys.path[0] = str(Path(__file__).resolve().parents[1])

from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

from agents.config import AgentConfig, CoolingConfig
from agents.ray_session import check_ray
from agents.report import write_report
from agents.report_text import COST_NAMES, cost_text
from agents.run_config import RunConfig, SourceConfig
from agents.sweep import run_sweep
from agents.sweep_grid import Axes, Trial, check_trials, make_trials
from agents.sweep_results import PARETO_FILE, TABLE_FILES, Collected, Result, collect
from agents.sweep_trial import is_finished
from amc.errors import UserError
from envs.problem_config import ProblemConfig
from scripts.cli import console
from scripts.cli import run as run_script
from scripts.progress import print_table
from scripts.train_agent import SearchOptions

PAGE_FILE = "comparison.html"


@dataclass(frozen=True)
class Sweep:
    """Options of the sweep; all that do not vary are those of train_agent."""

    name: str = "sweep"
    """Folder of the sweep, with a run directory for each trial; with the same name it goes on."""
    runs: Path = Path("runs")
    """Folder that holds sweeps and runs; on a cluster one that all machines share."""
    networks: tuple[str, ...] = ()
    """Networks: name=weights file, or package.module:factory; by default --model with --weights."""
    budgets: tuple[str, ...] = ()
    """Budgets, one a trial: macs=0.5 macs=0.3; several that hold at once with commas: macs=0.5,size=100KB."""
    searchers: tuple[str, ...] = ()
    """Searchers; by default --algorithm."""
    seeds: tuple[int, ...] = ()
    """Seeds; by default --seed."""
    address: str | None = None
    """A running Ray cluster: host:6379, or auto for the one that this machine belongs to; by default trials
    run here."""
    cores: int | None = None
    """Cores of this machine to use at once, by default all; a trial has its own, as many as it has --threads
    (1 by default) or --workers."""
    source: SourceConfig = field(default_factory=SourceConfig)
    """The trained network and its data."""
    problem: ProblemConfig = field(default_factory=ProblemConfig)
    """What is wanted of it."""
    agent: AgentConfig = field(default_factory=AgentConfig)
    """Who searches."""
    search: SearchOptions = field(default_factory=SearchOptions)
    """For how long, each trial."""
    cooling: CoolingConfig = field(default_factory=CoolingConfig)
    """In rounds, or at once."""

    @property
    def base(self) -> RunConfig:
        """The settings that all trials share, but for what varies."""
        return RunConfig(self.source, self.problem, self.agent, self.search.config, self.cooling)

    @property
    def folder(self) -> Path:
        """Where the sweep is."""
        return self.runs / self.name

    @property
    def axes(self) -> Axes:
        """What varies.

        Raises:
            UserError: an axis and the option that it replaces are both given.
        """
        pairs = (
            (self.networks, "networks", self.source, ("model", "weights")),
            (self.budgets, "budgets", self.problem, ("budget",)),
            (self.searchers, "searchers", self.agent, ("algorithm",)),
            (self.seeds, "seeds", self.agent, ("seed",)),
        )
        for values, axis, settings, replaced in pairs:
            default = {each.name: each.default for each in fields(settings)}
            given = [name for name in replaced if getattr(settings, name) != default[name]]
            if values and given:
                raise UserError(f"--{axis} takes the place of --{given[0]}: give one of them.")
        return Axes(self.networks, self.budgets, self.searchers, self.seeds)


def main(options: Sweep) -> None:
    """Search a grid of networks, budgets, searchers and seeds; cut off, the same command goes on."""
    check_ray("A sweep", "ray.tune")
    if options.cores is not None and options.cores < 1:
        raise UserError(f"--cores must be at least 1, not {options.cores}.")
    trials = make_trials(options.base, options.axes)
    check_trials(trials, options.folder)
    errors: dict[str, str] = {}
    try:
        with SweepProgress(trials, options.folder) as progress:
            errors = run_sweep(
                trials, options.folder, address=options.address, cores=options.cores, listener=progress
            )
    except KeyboardInterrupt:
        ended = sum(is_finished(options.folder / trial.name, trial.config) for trial in trials)
        show(options.folder, collect(trials, options.folder, errors))
        raise KeyboardInterrupt(
            f"; {ended} of {len(trials)} trials are finished, the same command goes on"
        ) from None
    show(options.folder, collect(trials, options.folder, errors))
    if errors:
        raise UserError(f"{len(errors)} of {len(trials)} trials failed; the table says why.")


class SweepProgress:
    """Draws how many trials have ended, and what the latest news is."""

    def __init__(self, trials: Sequence[Trial], folder: Path):
        self._before = {trial.name for trial in trials if is_finished(folder / trial.name, trial.config)}
        self._ended = set(self._before)
        columns = (
            TextColumn("sweeping"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TextColumn("{task.description}"),
        )
        self._progress = Progress(*columns, console=console())
        self._bar = self._progress.add_task("", total=len(trials), completed=len(self._ended))

    def __enter__(self) -> "SweepProgress":
        self._progress.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._progress.stop()

    def __call__(self, name: str, news: dict[str, Any]) -> None:
        """Hear of a trial."""
        if "ended" in news:
            self._ended.add(name)
            text = f"{name}: {'failed' if 'error' in news else 'finished'}"
        else:
            text = f"{name}: {news['score']:.2%} after {news['evaluations']} evaluations"
        if "trace" in news:
            self._progress.console.print(news["trace"], markup=False, highlight=False)
        self._progress.update(self._bar, completed=len(self._ended), description=text)


def show(folder: Path, found: Collected) -> None:
    """Print the table, and name the files; with two runs or more also the page that compares them."""
    print_table(table(found))
    for row in found.rows:
        if "error" in row:
            print(f"{row['trial']}: {row['error']}")
    written = [folder / name for name in TABLE_FILES]
    if (folder / PARETO_FILE).exists():
        written.append(folder / PARETO_FILE)
    if len(found.records) > 1:
        written.append(write_report([record.folder for record in found.records], folder / PAGE_FILE)[0])
    print("\n".join(map(str, written)))


def table(found: Collected) -> Table:
    """One line a trial; faint: another trial's network is no worse in score and cost, and better in one."""
    costs = [name for name in COST_NAMES if any(name in record.costs for record in found.records)]
    largest = {name: max(row.get(name, 0.0) for row in found.rows) for name in costs}
    unit = found.records[0].latency_unit if found.records else "ms"
    shown = Table()
    for name in ("network", "budget", "searcher"):
        shown.add_column(name)
    scores = ("reference", "best", "test")
    for name in ("seed", "done", *scores, *costs, "status"):
        shown.add_column(name, justify="right", no_wrap=True)
    for row in found.rows:
        shown.add_row(*_cells(row, largest, unit), style="dim" if row.get("dominated") else None)
    return shown


def _cells(row: Result, largest: Mapping[str, float], unit: str) -> list[str]:
    figures = [_share(row.get(name)) for name in ("reference_score", "best_score", "best_test_score")]
    figures += [
        cost_text(name, row[name], most, unit) if name in row else "" for name, most in largest.items()
    ]
    named = [
        row["network"],
        row["budget"],
        row["searcher"],
        str(row["seed"]),
        str(row.get("evaluations", "")),
    ]
    return [*named, *figures, row["status"]]


def _share(score: float | None) -> str:
    return "" if score is None else f"{score:.2%}"


if __name__ == "__main__":
    run_script(main)

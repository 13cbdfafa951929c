"""Search for the best compression policy of a trained network."""

import sys
import time
from dataclasses import dataclass, field
from pathlib import Path

if not __package__:  # started as a file: Python then looks in scripts/ and not in the folder above it
    sys.path[0] = str(Path(__file__).resolve().parents[1])

from agents.config import AgentConfig, SearchConfig
from agents.run import Run, check_new_folder, load_run, load_source, prepare_device, start_run
from agents.run_config import RunConfig, SourceConfig
from amc.errors import UserError
from envs.problem import Problem, ProblemConfig, build_problem
from scripts.cli import run as run_script
from scripts.progress import SearchProgress, outcome_table, print_table


@dataclass(frozen=True)
class TrainAgent:
    """Options of the search."""

    name: str | None = None
    """Name of the run directory; by default network, budget, searcher and seed."""
    runs: Path = Path("runs")
    """Folder that holds the run directories."""
    resume: Path | None = None
    """Continue this run directory with the settings stored in it; --evaluations may be raised."""
    dry_run: bool = False
    """Only show what would be searched: groups, frozen layers, smallest budget, seconds per evaluation."""
    source: SourceConfig = field(default_factory=SourceConfig)
    """The trained network and its data."""
    problem: ProblemConfig = field(default_factory=ProblemConfig)
    """What is wanted of it."""
    agent: AgentConfig = field(default_factory=AgentConfig)
    """Who searches."""
    search: SearchConfig = field(default_factory=SearchConfig)
    """For how long."""

    @property
    def config(self) -> RunConfig:
        """The part that is stored with the run."""
        return RunConfig(self.source, self.problem, self.agent, self.search)

    @property
    def folder(self) -> Path:
        """The run directory."""
        wanted = "-".join(self.problem.budgets) or f"min-{self.problem.minimize}"
        model = self.source.model.replace(":", ".")
        return self.runs / (self.name or f"{model}-{wanted}-{self.agent.algorithm}-seed{self.agent.seed}")


def main(options: TrainAgent) -> None:
    """Search for the best compression policy of a trained network; the run directory keeps everything."""
    if options.dry_run:
        dry_run(options)
        return
    run = open_run(options)
    try:
        for note in run.problem.notes:
            print(note)
        print(f"run directory {run.folder}; curves: tensorboard --logdir {run.folder.parent}")
        search(run)
    finally:
        run.problem.close()


def open_run(options: TrainAgent) -> Run:
    """Start a run, or continue one.

    Raises:
        UserError: the settings or the directory do not fit.
    """
    if options.resume is None:
        return start_run(options.folder, options.config)
    more = options.search.evaluations
    run = load_run(options.resume)
    if more > run.config.search.evaluations and more != SearchConfig().evaluations:
        run = load_run(options.resume, evaluations=more)
    return run


def search(run: Run) -> None:
    """Search under a progress bar, then print the before/after table."""
    with SearchProgress(run.config.search.evaluations, run.log) as progress:
        result = run.search(callbacks=(progress,))
    print(f"search ended ({result.ending}) after {len(run.log)} evaluations")
    if result.best is None:
        return
    print_table(outcome_table(run.outcomes(), run.task.score_name))
    print(f"best policy in {run.folder / 'policy.json'}")
    if result.ending == "interrupted":
        raise KeyboardInterrupt(f"; continue with --resume {run.folder}")


def dry_run(options: TrainAgent) -> None:
    """Show what a search would work on, and time one evaluation."""
    check_new_folder(options.folder)
    model, task = load_source(options.source)
    problem = build_problem(model, task, options.problem, prepare_device(options.source))
    try:
        describe(problem)
    finally:
        problem.close()


def describe(problem: Problem) -> None:
    """Print groups, frozen layers, knobs, smallest reachable costs and the time of one evaluation."""
    for note in problem.notes:
        print(note)
    network, space = problem.network, problem.space
    print(f"{len(network.layers)} layers, {network.macs / 1e6:.2f} MMACs, fingerprint {network.fingerprint}")
    for group in network.groups:
        layers = [name for name in group.producers() if name in network.group_of]
        state = f"frozen: {group.frozen}" if group.frozen else f"widths {_widths(problem, group.name)}"
        print(f"  {group.name}: {group.channels} channels of {', '.join(layers)}; {state}")
    for knob in space.knobs:
        values = knob.values(space.points[0], None) if knob.name != "width" else ()
        print(f"knob {knob.name}: {'live' if knob.name in problem.live else 'dead'} {values or ''}")
    for name, cost in problem.costs.items():
        least = cost.lower_bound(space.empty())
        print(f"smallest reachable {name}: {least:,.0f} ({least / problem.original_costs[name]:.3f})")
    walk = problem.walk()
    if walk.length == 0:
        raise UserError("Nothing is left to decide: every layer is frozen or has a single legal value.")
    started = time.perf_counter()
    evaluation = problem.evaluator([walk.reference_policy()])[0]
    print(
        f"uniform policy: {problem.task.score_name} {evaluation.score:.2%} on the reward split; "
        f"{time.perf_counter() - started:.2f} s per evaluation, {walk.length} decisions"
    )


def _widths(problem: Problem, name: str) -> str:
    values = problem.space.legal(problem.space.row(name), problem.space.column("width"))
    return f"{values[0]}..{values[-1]} in {len(values)} steps"


if __name__ == "__main__":
    run_script(main)

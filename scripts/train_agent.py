"""Search for the best compression policy of a trained network."""

import sys
import time
from dataclasses import dataclass, field, fields, replace
from pathlib import Path

if not __package__:  # started as a file: Python then looks in scripts/ and not in the folder above it
    sys.path[0] = str(Path(__file__).resolve().parents[1])

from agents.compress import finish
from agents.config import AgentConfig, CoolingConfig, SearchConfig
from agents.cooling_run import CooledRun
from agents.outcome import Outcome
from agents.ray_session import check_ray
from agents.report_settings import quantizers, rounds, scoring, searcher
from agents.run import Run, load_run, load_source, prepare_device, start_run
from agents.run_config import RunConfig, SourceConfig, read_config
from agents.run_folder import run_lock
from agents.search import POLICIES_FOLDER
from amc.errors import UserError
from amc.network import Network
from amc.policy import CompressionPolicy
from amc.space import Knob, Space
from envs.problem import Problem, ProblemConfig, build_problem
from scripts.cli import run as run_script
from scripts.progress import (
    DECIMALS,
    MeasuringProgress,
    SearchProgress,
    level_table,
    miss_sentence,
    outcome_table,
    print_table,
)

MOST_LISTED = 10
"""Values of a knob that a dry run names one by one."""


@dataclass(frozen=True)
class SearchOptions:
    """For how long; what is not given is 200 evaluations, or with --resume what the run has stored."""

    evaluations: int | None = None
    """Policies evaluated in all, 200 by default; a policy met again counts, but is not measured again."""
    time_budget: float | None = None
    """Seconds after which the search must have ended, even if evaluations are left; inf for no limit."""
    checkpoint_every: int | None = None
    """Evaluations between two checkpoints, 10 by default; fewer only shorten a resume, nothing is lost."""
    proposals_per_round: int | None = None
    """Policies proposed at once and evaluated together, 1 by default; at least one a worker."""
    workers: int | None = None
    """Processes that evaluate, one thread each, 1 by default; with N of them N policies are proposed before
    any is judged, so the same seed finds other policies with another N."""

    @property
    def config(self) -> SearchConfig:
        """The settings of a new search."""
        return replace(
            SearchConfig(), **{name: value for name, value in vars(self).items() if value is not None}
        )


@dataclass(frozen=True)
class TrainAgent:
    """Options of the search."""

    name: str | None = None
    """Name of the run directory; by default network, budget, searcher and seed."""
    runs: Path = Path("runs")
    """Folder that holds the run directories."""
    resume: Path | None = None
    """Continue this run directory with the settings stored in it; only --evaluations and --time-budget may
    be given anew. The exploration noise keeps falling over the evaluations that the run was started with."""
    address: str | None = None
    """Ray cluster, host:6379 or auto, whose machines run the workers (extra cluster); the evaluations are
    those of as many workers here, and a run may go on elsewhere than it began."""
    dry_run: bool = False
    """Only show what would be searched: groups, frozen layers, smallest budget, seconds per evaluation."""
    source: SourceConfig = field(default_factory=SourceConfig)
    """The trained network and its data."""
    problem: ProblemConfig = field(default_factory=ProblemConfig)
    """What is wanted of it."""
    agent: AgentConfig = field(default_factory=AgentConfig)
    """Who searches."""
    search: SearchOptions = field(default_factory=SearchOptions)
    """For how long."""
    cooling: CoolingConfig = field(default_factory=CoolingConfig)
    """In rounds, or at once."""

    @property
    def config(self) -> RunConfig:
        """The part that is stored with the run."""
        return RunConfig(self.source, self.problem, self.agent, self.search.config, self.cooling)

    @property
    def folder(self) -> Path:
        """The run directory; its name has no sign that a shell or TensorBoard's filter would read."""
        wanted = [budget.replace("=", "").replace("..", "-") for budget in self.problem.budgets]
        if self.problem.goal == "cost":
            wanted.append(f"min-{self.problem.minimize}")
        model = self.source.model.replace(":", ".")
        rounds = [self.cooling.cooling] if self.cooling.is_on else []
        parts = (model, *wanted, self.agent.algorithm, *rounds, f"seed{self.agent.seed}")
        return self.runs / (self.name or "-".join(parts))


def main(options: TrainAgent) -> None:
    """Search for the best compression policy of a trained network; the run directory keeps everything."""
    if options.dry_run:
        dry_run(options)
        return
    if options.address is not None:
        check_ray("--address")
    run = start(options) if options.resume is None else resume(options, options.resume)
    run.address = options.address
    try:
        for note in run.problem.notes:
            print(note)
        print(f"run directory {run.folder}; curves: tensorboard --logdir {run.folder.parent}")
        search(run)
    finally:
        run.problem.close()


def start(options: TrainAgent) -> Run:
    """Set up a new run; measures random policies first where a latency budget needs them."""
    with MeasuringProgress(f"measuring {options.problem.target}") as progress:
        return start_run(options.folder, options.config, progress=progress)


def resume(options: TrainAgent, folder: Path) -> Run:
    """Open a run to continue it.

    Raises:
        UserError: there is none, it is being searched, or an option would make it another search.
    """
    stored = read_config(folder)
    changed = changed_options(options, stored)
    if changed:
        raise UserError(
            f"{folder} goes on with its own settings, so {', '.join(changed)} cannot be given with --resume."
        )
    with run_lock(folder):
        pass  # refused here already, before the data are read
    return load_run(folder, evaluations=options.search.evaluations, time_budget=options.search.time_budget)


def changed_options(options: TrainAgent, stored: RunConfig) -> list[str]:
    """Options that were given and differ from what a run has stored; a default counts as not given."""
    pairs = (
        (options.source, SourceConfig(), stored.source),
        (options.problem, ProblemConfig(), stored.problem),
        (options.agent, AgentConfig(), stored.agent),
        (replace(options.search, evaluations=None, time_budget=None), SearchOptions(), stored.search),
        (options.cooling, CoolingConfig(), stored.cooling),
    )
    return [
        "--" + setting.name.replace("_", "-")
        for given, default, kept in pairs
        for setting in fields(given)
        if getattr(given, setting.name) not in (getattr(default, setting.name), getattr(kept, setting.name))
    ]


def search(run: Run) -> None:
    """Search under a progress bar, then print the before/after table."""
    if isinstance(run, CooledRun):
        run.announce = announce
    with SearchProgress(run.config.search.evaluations, run.log) as progress:
        compressed = finish(run, (progress,))
    print(f"search ended ({compressed.ending}) after {len(run.log)} evaluations")
    unit = run.problem.target.unit
    if run.log.cases:
        show_levels(run, compressed.outcomes)
        return
    print_table(outcome_table(compressed.outcomes, run.task.score_name, unit))
    if compressed.note:
        print(compressed.note)
    best = run.log.best()
    if best is not None and best.policy.removed:
        print(f"the best policy leaves out {left_out(run.network, best.policy)}")
    if best is not None and not best.feasible:
        print(miss_sentence(best, run.problem))
    if best is not None and best.latency_source == "unreliable":
        print("The machine was too busy for a reliable latency; measure again with scripts/benchmark.py.")
    print(f"best policy in {run.folder / 'policy.json'}")


def show_levels(run: Run, outcomes: list[Outcome]) -> None:
    """Print what one training gave at every level of its budget, and how to have the levels between."""
    print_table(level_table(outcomes, run.task.score_name))
    print(f"best policies in {run.folder / POLICIES_FOLDER}; the actor's at any budget between, unsearched:")
    ends = " ".join(run.config.problem.budget_levels[len(run.log.cases) // 2])
    print(f"  python -m scripts.export_policy --run {run.folder} --budget {ends}")


def announce(sentence: str) -> None:
    """Print what a cooled search says between its rounds; the bar moves out of the way."""
    print(sentence, file=sys.stderr)


def left_out(network: Network, policy: CompressionPolicy) -> str:
    """Which residual blocks a policy leaves out: `1 of 2 residual blocks: block1.conv1, block1.conv2`."""
    gone = [block for block in network.blocks if block.name in policy.removed]
    layers = "; ".join(", ".join(block.layers) for block in gone)
    return f"{len(gone)} of {len(network.blocks)} residual blocks{f': {layers}' if layers else ''}"


def dry_run(options: TrainAgent) -> None:
    """Show what a search would work on, and time one evaluation; nothing is written."""
    config = options.config if options.resume is None else read_config(options.resume)
    device = prepare_device(config.source)
    model, task = load_source(config.source)
    with MeasuringProgress(f"measuring {config.problem.target}") as progress:
        problem = build_problem(model, task, config.problem, device, progress=progress)
    try:
        describe_settings(config)
        describe(problem)
    finally:
        problem.close()


def describe_settings(config: RunConfig) -> None:
    """Print who searches, how policies are evaluated, and with which quantizers."""
    print(f"searcher: {searcher(config)}")
    how = rounds(config)
    print(f"policies are scored {scoring(config)}{f', {how}' if how else ''}")
    if quantizers(config):
        print(f"quantizers: {quantizers(config)}")


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
    if problem.config.drop_blocks:
        print("residual blocks that may go:", "; ".join(", ".join(block.layers) for block in network.blocks))
    for knob in space.knobs:
        print(f"knob {knob.name}: {'live' if knob.name in problem.live else 'dead'} {_choices(space, knob)}")
    for name, cost in problem.costs.items():
        least = cost.lower_bound(space.empty())
        share = least / problem.original_costs[name]
        print(f"smallest reachable {name}: {least:,.{DECIMALS.get(name, 0)}f} ({share:.3f})")
    if "latency" in problem.original_costs:
        latency = problem.original_costs["latency"]
        print(f"latency of the original on {problem.target.name}: {latency:.3f} {problem.target.unit}")
    time_evaluation(problem)


def time_evaluation(problem: Problem) -> None:
    """Evaluate the reference policy once, and print its score and how long that took.

    Raises:
        UserError: there is nothing to decide.
    """
    walk = problem.walk()
    if walk.length == 0:
        raise UserError("Nothing is left to decide: every layer is frozen or has a single legal value.")
    policy, started = walk.reference_policy(), time.perf_counter()
    evaluation = problem.evaluator([policy])[0]
    if problem.config.drop_blocks:
        print(f"the {problem.reference_name} policy leaves out {left_out(problem.network, policy)}")
    print(
        f"{problem.reference_name} policy: {problem.task.score_name} {evaluation.score:.2%} on the reward "
        f"split; {time.perf_counter() - started:.2f} s per evaluation, {walk.length} decisions"
    )


def _choices(space: Space, knob: Knob) -> str:
    """The values of a knob that some layer may have; a long row of them as its ends."""
    values = sorted({value for point in space.points for value in knob.values(point, None)})
    if len(values) > MOST_LISTED:
        return f"{values[0]}..{values[-1]}"
    return " ".join(map(str, values))


def _widths(problem: Problem, name: str) -> str:
    values = problem.space.legal(problem.space.row(name), problem.space.column("width"))
    return f"{values[0]}..{values[-1]} in {len(values)} steps"


if __name__ == "__main__":
    run_script(main)

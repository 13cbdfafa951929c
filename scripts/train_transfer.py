"""Train one agent on several networks of one data set, to go on to others with."""

import sys
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path

if not __package__:  # started as a file: Python then looks in scripts/ and not in the folder above it
    sys.path[0] = str(Path(__file__).resolve().parents[1])

from agents.config import AgentConfig, SearchConfig
from agents.run_config import SourceConfig
from agents.searcher import check_searcher
from agents.source import load_source, prepare_device
from agents.sweep_grid import network_source
from agents.transfer import Transfer, general
from amc.errors import UserError
from envs.problem import Problem, ProblemConfig, build_problem
from scripts.cli import run
from scripts.progress import SearchProgress


@dataclass(frozen=True)
class TrainTransfer:
    """Options of the training."""

    name: str
    """Name of its directory; with the same name and settings it goes on."""
    networks: tuple[str, ...]
    """Networks to train on, at least two: name=weights file, or package.module:factory."""
    runs: Path = Path("runs")
    """Folder that holds the directory."""
    source: SourceConfig = field(default_factory=SourceConfig)
    """The data that all networks share."""
    problem: ProblemConfig = field(default_factory=ProblemConfig)
    """What is wanted of each; the observation is a summary and rewards are shares, whatever is given."""
    agent: AgentConfig = field(default_factory=AgentConfig)
    """Who learns."""
    search: SearchConfig = field(default_factory=SearchConfig)
    """For how long; one process evaluates."""


def main(options: TrainTransfer) -> None:
    """Train one agent on several networks of one data set, to go on to others with."""
    if len(options.networks) < 2:
        raise UserError("--networks takes at least two; an agent of one network is train_agent.py's.")
    if options.search.at_once > 1:
        raise UserError("Several networks are evaluated by one process: leave out --workers.")
    check_searcher(options.agent.algorithm, options.problem.goal, "several networks")
    sources = [network_source(options.source, text) for text in options.networks]
    if len({source.model for source in sources}) < len(sources):
        raise UserError("--networks names one network twice.")
    with ExitStack() as stack:
        problems = {
            source.model.replace(":", "."): opened(source, options.problem, stack) for source in sources
        }
        transfer = Transfer(options.runs / options.name, problems, options.agent, options.search)
        train(transfer)


def opened(source: SourceConfig, config: ProblemConfig, stack: ExitStack) -> Problem:
    """A network as a problem that is closed with the stack."""
    device = prepare_device(source)
    problem = build_problem(*load_source(source), general(config), device)
    stack.callback(problem.close)
    return problem


def train(transfer: Transfer) -> None:
    """Train to the end, export the actor, and say what was gained on each network."""
    with SearchProgress(transfer.settings.evaluations, transfer.log) as progress:
        ending = transfer.train((progress,)).ending
    if ending == "interrupted":
        raise KeyboardInterrupt("; the same command goes on")
    print(f"training ended ({ending}) after {len(transfer.log)} evaluations")
    for case in transfer.log.cases:
        first, best = transfer.log.first(case), transfer.log.best(case)
        assert best is not None
        print(f"{case}: reference {first.score:.2%}, best {best.score:.2%} on the reward split")
    print(f"actor in {transfer.export()}; train_agent.py goes on from it with --start-from {transfer.folder}")


if __name__ == "__main__":
    run(main)

"""Regenerate searches for a detector and retrieval networks, row by row; may be cut and repeated."""

import sys
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

if not __package__:  # started as a file: Python then looks in scripts/ and not in the folder above it
    sys.path[0] = str(Path(__file__).resolve().parents[1])

import torch

from agents.config import AgentConfig, SearchConfig
from agents.outcome import Outcome
from agents.run_config import RunConfig, SourceConfig
from amc.errors import UserError
from envs.problem_config import ProblemConfig
from scripts import pretrain
from scripts.cli import run as run_script
from scripts.results_runner import RowOptions
from scripts.results_runs import searched
from scripts.tasks_rows import TASKS_FILE, TaskRunner, no_summary

SECTION = "searches"
SEEDS = (0, 1, 2)
EVALUATIONS = 60


@dataclass(frozen=True)
class Setting:
    """A network and what is asked of it; chosen before the first figure was seen.

    Attributes:
        title: on the page.
        source: network and data; the weights are trained here.
        problem: budgets.
        training: what the training of the original has beside the source.
    """

    title: str
    source: SourceConfig
    problem: ProblemConfig
    training: dict[str, Any]


DIGITS = SourceConfig("digitsnet-pqn48", None, 0.5, "digits", side=8, task="retrieval", device="cpu")
SETTINGS = {
    "detector": Setting(
        "detector on shapes, half of the MACs and a fifth of the size",
        SourceConfig("detector", None, 0.5, "shapes", task="detection", device="cpu"),
        ProblemConfig(budget=("macs=0.5", "size=0.2")),
        {"epochs": 20, "batch_size": 16, "lr": 0.05},
    ),
    "retrieval": Setting(
        "retrieval of digits by 48 bits, a third of the MACs",
        DIGITS,
        ProblemConfig(budget=("macs=0.33",)),
        {"epochs": 12},
    ),
    "code": Setting(
        "retrieval of digits, network and codes of 10,000 images in 40 kB",
        DIGITS,
        ProblemConfig(budget=("storage=40KB",), database=10_000),
        {"epochs": 12},
    ),
}


@dataclass(frozen=True)
class TaskSearchResults(RowOptions):
    """Options; rows that the output already has are made again only with --again."""

    only: str = "*"
    """Make the rows whose names match this shell pattern, as in 'code/*'."""
    out: Path = TASKS_FILE
    """Figures file; every finished row is written at once."""
    runs: Path = Path("runs/task_searches")
    """Where weights and searches are kept."""
    threads: int = 1
    """CPU threads."""


@dataclass(frozen=True)
class Spec:
    """One row: a search of DDPG's, beside the uniform policy that it starts from.

    Attributes:
        setting: a key of `SETTINGS`.
        seed: of the search; all seeds of a setting compress the same network.
    """

    setting: str
    seed: int

    @property
    def name(self) -> str:
        """The row's key."""
        return f"{self.setting}/{self.seed}"

    def to_json(self) -> dict[str, Any]:
        """The fields."""
        return asdict(self)


def main(options: TaskSearchResults) -> None:
    """Make the missing rows of the searches, in order; may be cut anywhere and repeated."""
    runner = TaskRunner[Spec](
        options.out,
        key=lambda spec: spec.name,
        make=lambda spec: row(options, spec),
        about=lambda spec: {"command": f"python -m scripts.task_search_results --only '{spec.name}'"},
        summary=no_summary,
        prepare=lambda missing: prepare(options, missing),
        section=SECTION,
    )
    runner.run(runner.chosen(plan(), options.only), options)


def plan() -> list[Spec]:
    """Every row; the seeds in the outer loop, so that each setting has a figure early."""
    return [Spec(setting, seed) for seed in SEEDS for setting in SETTINGS]


def prepare(options: TaskSearchResults, missing: list[Spec]) -> list[Spec]:
    """Refuse before any work what some row would only notice later; sets the threads."""
    if options.threads < 1:
        raise UserError(f"--threads must be at least 1, not {options.threads}.")
    torch.set_num_threads(options.threads)
    options.runs.mkdir(parents=True, exist_ok=True)
    return missing


def row(options: TaskSearchResults, spec: Spec) -> dict[str, Any]:
    """The figures of one search: original, uniform policy and the agent's, all without fine-tuning."""
    config = config_of(options, spec)
    train_original(options, spec.setting)
    with searched(options.runs / spec.name.replace("/", "-"), config) as run:
        found = {each.name: figures(each) for each in run.outcomes()}
        return {
            "score": run.task.score_name,
            "budget": list(config.problem.budget),
            "evaluations": len(run.log),
            "networks": {"ddpg" if name == run.algorithm else name: each for name, each in found.items()},
        }


def config_of(options: TaskSearchResults, spec: Spec) -> RunConfig:
    """The search of a row."""
    setting = SETTINGS[spec.setting]
    source = {**vars(setting.source), "weights": weights(options, spec.setting), "threads": options.threads}
    return RunConfig(
        SourceConfig(**source), setting.problem, AgentConfig(seed=spec.seed), SearchConfig(EVALUATIONS)
    )


def figures(outcome: Outcome) -> dict[str, Any]:
    """Scores and costs of one network."""
    scores = {"reward": outcome.reward_score, "test": outcome.test_score, **outcome.further}
    return {**scores, "costs": outcome.costs}


def weights(options: TaskSearchResults, setting: str) -> Path:
    """The file of an original's weights; settings of one network share it."""
    source = SETTINGS[setting].source
    return options.runs / f"{source.model}-{source.data}.safetensors"


def train_original(options: TaskSearchResults, setting: str) -> None:
    """Train the network of a setting, unless an earlier call has."""
    path, about = weights(options, setting), SETTINGS[setting]
    if path.is_file():
        return
    source = about.source
    pretrain.main(
        pretrain.Pretrain(
            source.model,
            source.data,
            source.task,
            side=source.side,
            width=source.width,
            threads=options.threads,
            device="cpu",
            out=path,
            force=True,
            **about.training,
        )
    )


if __name__ == "__main__":
    run_script(main)

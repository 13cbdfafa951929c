"""Does the reward mean anything? Ranks of policies before fine-tuning against their ranks after it."""

import copy
import json
import math
import sys
import time
from collections.abc import Sequence
from contextlib import closing
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

if not __package__:  # started as a file: Python then looks in scripts/ and not in the folder above it
    sys.path[0] = str(Path(__file__).resolve().parents[1])

import torch
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table
from torch import fx, nn

from agents.config import AgentConfig
from agents.run_config import SourceConfig
from agents.searcher import make_searcher
from agents.source import load_source, prepare_device
from amc.compress import ChannelPruning, apply
from amc.errors import UserError
from amc.evaluate import Evaluator
from amc.files import write_json
from amc.policy import CompressionPolicy
from amc.pruning.asymmetric import AsymmetricReconstruction
from amc.pruning.reconstruction import SymmetricReconstruction, input_moments
from amc.recovery.fine_tune import fine_tune, settle_statistics
from amc.tasks.base import Task
from amc.training import Recipe
from envs.problem import Problem, build_problem
from envs.problem_config import ProblemConfig
from scripts.cli import console
from scripts.cli import run as run_script
from scripts.progress import print_table
from scripts.rank_correlation import Correlation, correlate
from scripts.results_page import origin

SPLITS = ("reward", "test")
PROXIES = ("raw", "renormalized", "symmetric", "asymmetric")
"""Un-tuned scores: sliced only; with batch norms re-estimated; refitted before that in one of two ways."""
TUNED = "tuned"
FEWEST_POLICIES = 4
# What rows of one file may differ in; "policies" only says how many there will be.
FREE_TO_CHANGE = {"out", "policies", "data_root", "weights", "threads", "device"}

Scores = dict[str, dict[str, float]]


@dataclass(frozen=True)
class ProxyCorrelation:
    """Options; policies that the rows file already has are not done again."""

    source: SourceConfig = field(default_factory=SourceConfig)
    budget: str = "macs=0.5"
    """The budget that all policies keep."""
    policies: int = 24
    """Random policies, from the distribution that a search starts with."""
    epochs: int = 3
    """Passes of fine-tuning over the training images, taught by the original network."""
    batch_size: int = 64
    """Images a step."""
    lr: float = 0.01
    """Peak learning rate."""
    train_images: int = 0
    """Training images that the fine-tuning sees; 0 for all."""
    reward_images: int = 2000
    """Images of the reward split that score each policy."""
    seed: int = 0
    """Draws the policies and the order of the images."""
    out: Path = Path("runs/proxy_correlation.json")
    """Summary file; the rows, one JSON line a policy, lie beside it with the ending .jsonl."""

    def __post_init__(self) -> None:
        """Refuse what gives no correlation.

        Raises:
            UserError: a value makes no sense.
        """
        if self.policies < FEWEST_POLICIES or self.epochs < 1:
            raise UserError(f"--policies must be at least {FEWEST_POLICIES} and --epochs at least 1.")
        if self.train_images and self.train_images < self.batch_size:
            raise UserError("--train-images must hold at least one batch, or be 0 for all of them.")

    @property
    def rows_file(self) -> Path:
        """One JSON line a finished policy."""
        return self.out.with_suffix(".jsonl")

    @property
    def settings(self) -> dict[str, Any]:
        """What all rows of a file share, as JSON."""
        values = {**asdict(self.source), **{k: v for k, v in asdict(self).items() if k != "source"}}
        return {name: value for name, value in values.items() if name not in FREE_TO_CHANGE}


def main(options: ProxyCorrelation) -> None:
    """Correlate un-tuned with fine-tuned scores over random policies; may be cut anywhere and repeated."""
    rows = read_rows(options)
    if len(rows) < options.policies:
        options.out.parent.mkdir(parents=True, exist_ok=True)
        add_rows(options, rows)
    figures = summary(options, rows[: options.policies])
    write_json(options.out, figures)
    show(figures)


def read_rows(options: ProxyCorrelation) -> list[dict[str, Any]]:
    """The finished policies; a torn last line is dropped from the file.

    Raises:
        UserError: the rows were made with other settings, or the file holds something else.
    """
    path = options.rows_file
    if not path.exists():
        return []
    text = path.read_text()
    whole = text[: text.rfind("\n") + 1]
    try:
        rows: list[dict[str, Any]] = [json.loads(line) for line in whole.splitlines()]
        changed = [
            name
            for name, value in options.settings.items()
            for row in rows[:1]
            if row["settings"][name] != value
        ]
    except (KeyError, TypeError, ValueError) as error:
        raise UserError(f"{path} does not hold rows of this script: give another --out.") from error
    if changed:
        raise UserError(f"The rows in {path} have another {', '.join(changed)}: give another --out.")
    if whole != text:
        with path.open("r+") as file:
            file.truncate(len(whole.encode()))
    return rows


def add_rows(options: ProxyCorrelation, rows: list[dict[str, Any]]) -> None:
    """Do the missing policies; each is on disk before the next one starts."""
    device = prepare_device(options.source)
    model, task = load_source(options.source)
    config = ProblemConfig(budget=(options.budget,), reconstruct="none", reward_images=options.reward_images)
    columns = (TextColumn("policies"), BarColumn(), MofNCompleteColumn(), TextColumn("{task.description}"))
    with (
        closing(build_problem(model, task, config, device)) as problem,
        Progress(*columns, TimeRemainingColumn(), console=console()) as progress,
    ):
        policies, proxies = draw(options, problem), Proxies(problem)
        bar = progress.add_task("", total=options.policies, completed=len(rows))
        try:
            for index in range(len(rows), options.policies):
                rows.append(row(options, problem, proxies, policies[index], index))
                with options.rows_file.open("a") as file:
                    file.write(json.dumps(rows[-1]) + "\n")
                tuned, seconds = rows[-1]["scores"][TUNED]["test"], rows[-1]["seconds"]
                said = f"last: {tuned:.2%} on the test split after {seconds:.0f} s"
                progress.update(bar, completed=index + 1, description=said)
        except KeyboardInterrupt:
            raise KeyboardInterrupt(f"; {len(rows)} policies are done, repeat the command to go on") from None


def draw(options: ProxyCorrelation, problem: Problem) -> list[CompressionPolicy]:
    """The policies; the uniform one, with which every search begins, is not among them."""
    settings = AgentConfig(algorithm="random", seed=options.seed)
    searcher = make_searcher(problem.walk(), settings, options.policies + 1)
    return searcher.ask(options.policies + 1)[1:]


class Proxies:
    """Compresses a policy in each way whose score could be the reward.

    Args:
        problem: without reconstruction.
    """

    def __init__(self, problem: Problem):
        network, calibration = problem.network, problem.task.calibration(problem.config.calibration_images)
        (pruning,) = (each for each in problem.evaluator.compressors if isinstance(each, ChannelPruning))
        refits = {
            "renormalized": None,
            "symmetric": SymmetricReconstruction(input_moments(network, calibration)),
            "asymmetric": AsymmetricReconstruction.of(network, calibration),
        }
        self._raw = (pruning,)
        self._network, self._device = network, problem.evaluator.device
        self._evaluators = {
            name: Evaluator(
                network,
                problem.space,
                problem.task,
                (ChannelPruning(pruning.ranking, None, refit),),
                problem.costs,
                calibration,
                device=str(self._device),
                precision=problem.evaluator.precision,
            )
            for name, refit in refits.items()
        }

    def compressed(self, proxy: str, policy: CompressionPolicy) -> fx.GraphModule:
        """The policy's network, in evaluation mode."""
        if proxy == "raw":
            return apply(policy, self._network, self._raw).to(self._device).eval()
        return self._evaluators[proxy].compressed(policy)


def row(
    options: ProxyCorrelation, problem: Problem, proxies: Proxies, policy: CompressionPolicy, index: int
) -> dict[str, Any]:
    """One policy: its scores before and after fine-tuning, which starts from the symmetric network."""
    started = time.perf_counter()
    scores: Scores = {proxy: score(problem.task, proxies.compressed(proxy, policy)) for proxy in PROXIES}
    untuned = time.perf_counter() - started
    model = proxies.compressed("symmetric", policy)
    scores[TUNED] = tuned_score(options, problem, model)
    return {
        "index": index,
        "policy": policy.digest(),
        "costs": problem.evaluator.costs_of(policy),
        "scores": scores,
        "untuned_seconds": round(untuned, 2),
        "seconds": round(time.perf_counter() - started, 1),
        "settings": options.settings,
        "values": policy.values("width"),
    }


def score(task: Task, model: nn.Module) -> dict[str, float]:
    """Scores on the split that searches use and on the test split."""
    return {split: task.score(model, split) for split in SPLITS}


def tuned_score(options: ProxyCorrelation, problem: Problem, model: fx.GraphModule) -> dict[str, float]:
    """Scores after fine-tuning, which changes the model."""
    teacher = problem.network.copy().to(problem.evaluator.device)
    recipe = Recipe(
        epochs=options.epochs,
        batch_size=options.batch_size,
        lr=options.lr,
        weight_decay=1e-4,
        seed=options.seed,
    )
    task, precision = with_train_images(problem.task, options), problem.evaluator.precision
    fine_tune(model, teacher, task, recipe, precision=precision)
    settle_statistics(model, problem.task, problem.evaluator.calibration)
    return score(problem.task, model)


def with_train_images(task: Task, options: ProxyCorrelation) -> Task:
    """The task with a random part of its training images."""
    count = len(task.data.train)
    if not 0 < options.train_images < count:
        return task
    chosen = torch.randperm(count, generator=torch.Generator().manual_seed(options.seed))
    cut = copy.copy(task)
    train = task.data.train.take(chosen[: options.train_images])
    cut.data = replace(task.data, train=train, _normalised={})
    return cut


def summary(options: ProxyCorrelation, rows: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Correlations of every proxy with the tuned test score, and of the two splits with each other."""

    def values(name: str, split: str) -> list[float]:
        return [row["scores"][name][split] for row in rows]

    wanted = values(TUNED, "test")
    proxies = {name: correlate(values(name, "reward"), wanted) for name in PROXIES}
    splits = {name: correlate(values(name, "reward"), values(name, "test")) for name in (*PROXIES, TUNED)}
    return {
        "proxy_rank_correlation": {name: _number(found["spearman"].value) for name, found in proxies.items()},
        "proxies": {name: _plain(found) for name, found in proxies.items()},
        "reward_against_test": {name: _plain(found) for name, found in splits.items()},
        "mean_score": {
            name: {split: sum(values(name, split)) / len(rows) for split in SPLITS}
            for name in (*PROXIES, TUNED)
        },
        "policies": len(rows),
        "seconds": round(sum(row["seconds"] for row in rows), 1),
        "settings": options.settings,
        "origin": origin(),
    }


def _plain(found: dict[str, Correlation]) -> dict[str, dict[str, float | None]]:
    return {
        measure: {name: _number(value) for name, value in vars(each).items()}
        for measure, each in found.items()
    }


def _number(value: float) -> float | None:
    """A figure for JSON, which knows no NaN."""
    return None if math.isnan(value) else round(value, 4)


def show(figures: dict[str, Any]) -> None:
    """Print the correlations."""
    table = Table(
        "reward-split score", title=f"{figures['policies']} policies, {figures['settings']['budget']}"
    )
    for heading in ("mean", "Spearman, tuned test", "Kendall, tuned test", "Spearman, own test"):
        table.add_column(heading, justify="right")
    for name, found in figures["proxies"].items():
        own = figures["reward_against_test"][name]["spearman"]
        cells = (_cell(each) for each in (found["spearman"], found["kendall"], own))
        table.add_row(name, f"{figures['mean_score'][name]['reward']:.2%}", *cells)
    own = _cell(figures["reward_against_test"][TUNED]["spearman"])
    table.add_row("fine-tuned", f"{figures['mean_score'][TUNED]['reward']:.2%}", "", "", own)
    print_table(table)


def _cell(found: dict[str, float | None]) -> str:
    if found["value"] is None:
        return "none"
    return f"{found['value']:+.2f} [{found['low']:+.2f}, {found['high']:+.2f}]"


if __name__ == "__main__":
    torch.manual_seed(0)
    run_script(main)

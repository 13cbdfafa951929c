"""Does the reward mean anything? Ranks of policies before fine-tuning against their ranks after it."""

import copy
import json
import math
import statistics
import sys
import time
from collections.abc import Mapping, Sequence
from contextlib import closing
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

if not __package__:  # started as a file: Python then looks in scripts/ and not in the folder above it
    sys.path[0] = str(Path(__file__).resolve().parents[1])

import torch
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table
from torch import fx

from agents.config import AgentConfig
from agents.run_config import SourceConfig
from agents.searcher import make_searcher
from agents.source import load_source, prepare_device
from amc.compress import ChannelPruning
from amc.errors import UserError
from amc.evaluate import Evaluator
from amc.files import write_json
from amc.policy import CompressionPolicy
from amc.recovery.fine_tune import fine_tune, settle_statistics
from amc.tasks.base import Task
from amc.training import Recipe
from envs.problem import Problem, build_problem
from envs.problem_config import ProblemConfig, Reconstruct
from envs.pruning import make_reconstruction
from scripts.cli import console
from scripts.cli import run as run_script
from scripts.progress import print_table
from scripts.rank_correlation import Correlation, correlate
from scripts.results_page import origin

SPLITS = ("reward", "test")
PROXIES: dict[str, Reconstruct] = {
    "raw": "none",
    "renormalized": "none",
    "symmetric": "symmetric",
    "asymmetric": "asymmetric",
}
"""Un-tuned scores, to what refits the layers: nothing, with batch norms left alone or re-estimated; or one of
two reconstructions."""
DEFAULT = ProblemConfig().reconstruct
"""The proxy that searches see unless they are told otherwise; fine-tuning starts from its network."""
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
        kept = {name: value for name, value in values.items() if name not in FREE_TO_CHANGE}
        return {**kept, "default": DEFAULT}


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
    config = ProblemConfig(budget=(options.budget,), reward_images=options.reward_images)
    columns = (TextColumn("policies"), BarColumn(), MofNCompleteColumn(), TextColumn("{task.description}"))
    with (
        closing(build_problem(model, task, config, device)) as problem,
        Progress(*columns, TimeRemainingColumn(), console=console()) as progress,
    ):
        policies, proxies = draw(problem, options.policies, options.seed), Proxies(problem)
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


def draw(problem: Problem, count: int, seed: int) -> list[CompressionPolicy]:
    """Random policies; the reference policy, with which every search begins, is not among them."""
    settings = AgentConfig(algorithm="random", seed=seed)
    return make_searcher(problem.walk(), settings, count + 1).ask(count + 1)[1:]


class Proxies:
    """Evaluates a policy in each way whose score could be the reward, just as a search with that would.

    Args:
        problem: with today's defaults; proxies differ in what refits the layers, and whether anything does.
    """

    def __init__(self, problem: Problem):
        self._task = problem.task
        self._evaluators = {
            name: problem.evaluator if name == DEFAULT else self._another(problem, name) for name in PROXIES
        }

    @staticmethod
    def _another(problem: Problem, name: str) -> Evaluator:
        config = replace(problem.config, reconstruct=PROXIES[name])
        images = problem.task.calibration(config.calibration_images)
        refits, default = make_reconstruction(problem.network, images, config), problem.evaluator
        return Evaluator(
            problem.network,
            problem.space,
            problem.task,
            [
                one.refitting(refits) if isinstance(one, ChannelPruning) else one
                for one in default.compressors
            ],
            problem.costs,
            () if name == "raw" else images,
            device=str(default.device),
            precision=default.precision,
        )

    def measure(self, name: str, policy: CompressionPolicy) -> tuple[dict[str, float], float]:
        """A policy's scores by split, and the seconds that the one a search would see has taken."""
        evaluator = self._evaluators[name]
        (found,) = evaluator([policy])
        test = self._task.score(evaluator.searched(policy), "test")
        return {"reward": found.score, "test": test}, found.seconds


def row(
    options: ProxyCorrelation, problem: Problem, proxies: Proxies, policy: CompressionPolicy, index: int
) -> dict[str, Any]:
    """One policy: its scores before fine-tuning, and after one that starts from what the default delivers."""
    started = time.perf_counter()
    measured = {name: proxies.measure(name, policy) for name in PROXIES}
    scores: Scores = {name: found for name, (found, _) in measured.items()}
    scores[TUNED] = tuned_score(options, problem, problem.evaluator.compressed(policy))
    return {
        "index": index,
        "policy": policy.digest(),
        "costs": problem.evaluator.costs_of(policy),
        "scores": scores,
        "proxy_seconds": {name: round(seconds, 3) for name, (_, seconds) in measured.items()},
        "seconds": round(time.perf_counter() - started, 1),
        "settings": options.settings,
        "values": policy.values("width"),
    }


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
    return {split: problem.task.score(model, split) for split in SPLITS}


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
        "proxies": {name: plain(found) for name, found in proxies.items()},
        "reward_against_test": {name: plain(found) for name, found in splits.items()},
        "mean_score": {
            name: {split: sum(values(name, split)) / len(rows) for split in SPLITS}
            for name in (*PROXIES, TUNED)
        },
        "proxy_seconds": {
            name: statistics.median(row["proxy_seconds"][name] for row in rows) for name in PROXIES
        },
        "default": DEFAULT,
        "policies": len(rows),
        "seconds": round(sum(row["seconds"] for row in rows), 1),
        "settings": options.settings,
        "origin": origin(),
    }


def plain(found: dict[str, Correlation]) -> dict[str, dict[str, float | None]]:
    """Correlations by measure, as JSON."""
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
    for heading in ("seconds", "mean", "Spearman, tuned test", "Kendall, tuned test", "Spearman, own test"):
        table.add_column(heading, justify="right")
    for name, found in figures["proxies"].items():
        own = figures["reward_against_test"][name]["spearman"]
        cells = (_cell(each) for each in (found["spearman"], found["kendall"], own))
        seconds = f"{figures['proxy_seconds'][name]:.2f}"
        table.add_row(name, seconds, f"{figures['mean_score'][name]['reward']:.2%}", *cells)
    own = _cell(figures["reward_against_test"][TUNED]["spearman"])
    table.add_row("fine-tuned", "", f"{figures['mean_score'][TUNED]['reward']:.2%}", "", "", own)
    print_table(table)
    print(conclusion(figures["proxy_rank_correlation"], figures["proxy_seconds"], figures["default"]))


def conclusion(ranks: Mapping[str, float | None], seconds: Mapping[str, float], default: str) -> str:
    """Which proxy ranks policies best and at what cost, and whether that is the default.

    Args:
        ranks: proxy to its Spearman correlation with the fine-tuned score; None where all scores are alike.
        seconds: proxy to the median seconds of an evaluation.
        default: the proxy that searches see.
    """

    def said(name: str) -> str:
        rank = ranks[name]
        return f"{name} ({'no correlation' if rank is None else f'{rank:+.2f}'}, {seconds[name]:.2f} s)"

    known = {name: -math.inf if rank is None else rank for name, rank in ranks.items()}
    best = max(known, key=known.__getitem__)
    if best == default:
        return f"The default reward, {said(best)}, ranks policies best of all."
    ratio = seconds[default] / seconds[best]
    return (
        f"The best rank correlation is that of {said(best)}, and not that of the default reward, "
        f"{said(default)}, whose evaluation takes {ratio:.2f} times as long."
    )


def _cell(found: dict[str, float | None]) -> str:
    if found["value"] is None:
        return "none"
    return f"{found['value']:+.2f} [{found['low']:+.2f}, {found['high']:+.2f}]"


if __name__ == "__main__":
    torch.manual_seed(0)
    run_script(main)

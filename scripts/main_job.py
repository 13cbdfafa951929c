"""Regenerate the figures of the main job: searches on ResNet-20, by MACs and by measured latency."""

import json
import math
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

if not __package__:  # started as a file: Python then looks in scripts/ and not in the folder above it
    sys.path[0] = str(Path(__file__).resolve().parents[1])

import numpy as np
import torch

from agents.config import AgentConfig, SearchConfig
from agents.log import EvaluationLog
from agents.run import LOG_FILE, OUTCOMES_FILE, Run, load_run, start_run
from agents.run_config import CONFIG_FILE, RunConfig, SourceConfig, read_config, read_facts
from amc.export import export_onnx
from amc.policy import CompressionPolicy
from amc.targets import get_target
from envs.problem_config import ProblemConfig
from scripts.cli import run as run_script
from scripts.main_job_page import write_main_job_page
from scripts.progress import SearchProgress
from scripts.results_page import origin, read_figures, save_figures

SEEDS = (0, 1, 2)
SEARCHERS = ("ddpg", "random")
CIFAR_TEST_IMAGES = 10_000


@dataclass(frozen=True)
class MainJob:
    """Options; rows that the output already has are not made again."""

    weights: Path = Path("resnet20.th")
    """The common ResNet-20 weights for CIFAR-10 (option-A shortcuts, 91.73 % on the test set)."""
    data_root: Path = Path("data")
    """Folder that holds cifar-10-batches-py."""
    runs: Path = Path("runs/main_job")
    """Where the run directories go; interrupted searches continue."""
    out: Path = Path("docs/results/main_job.json")
    """Figures file; the page lies beside it."""
    part: Literal["all", "macs50", "latency"] = "all"
    """Which table to make."""
    evaluations: int = 200
    """Evaluations of each search under the MACs budget."""
    latency_evaluations: int = 100
    """Evaluations of the search for latency."""
    max_drop: float = 4.0
    """Largest un-tuned drop on the reward split, in points, of the search for latency. The weights know these
    images, so drops were larger on them than on the test split in the MACs table."""
    threads: int = 4
    """CPU threads for scoring."""


def main(options: MainJob) -> None:
    """Make the missing rows of the main job's tables, in order; may be cut anywhere and repeated."""
    figures = read_figures(options.out)
    if options.part in ("all", "macs50"):
        for seed in SEEDS:
            for searcher in SEARCHERS:
                macs_row(options, figures, searcher, seed)
                save_figures(options.out, figures)
    if options.part in ("all", "latency") and "resnet20_latency" not in figures:
        figures["resnet20_latency"] = latency_row(options) | {"origin": origin()}
        save_figures(options.out, figures)
    write_main_job_page(options.out.with_suffix(".md"), figures)


def source(options: MainJob) -> SourceConfig:
    """ResNet-20 on CIFAR-10."""
    return SourceConfig(
        "resnet20", options.weights, data="cifar10", data_root=options.data_root, threads=options.threads
    )


def search(folder: Path, config: RunConfig) -> tuple[Run, float | None]:
    """Run or continue a search; the run, and the seconds of the whole search if this call did all of it."""
    started = time.perf_counter()
    run = load_run(folder) if (folder / CONFIG_FILE).exists() else start_run(folder, config)
    whole = len(run.log) == 0
    with SearchProgress(config.search.evaluations, run.log) as progress:
        ending = run.search(callbacks=(progress,)).ending
    if ending == "interrupted":
        raise KeyboardInterrupt("; repeat the command to go on")
    return run, time.perf_counter() - started if whole else None


def macs_row(options: MainJob, figures: dict[str, Any], searcher: str, seed: int) -> None:
    """Add one search under 50 % of the MACs to the table, unless it is there."""
    table = figures.setdefault("resnet20_macs50", {})
    table.setdefault("reward_split", {})
    if len(table.setdefault(searcher, [])) > seed:
        return
    config = RunConfig(
        source(options),
        ProblemConfig(budget=("macs=0.5",)),
        AgentConfig(algorithm=searcher, seed=seed),
        SearchConfig(evaluations=options.evaluations),
    )
    folder = options.runs / f"macs50-{searcher}-seed{seed}"
    if not finished(folder, options.evaluations):
        run, seconds = search(folder, config)
        run.problem.close()
        if seconds is not None:
            table["seconds_per_search"] = max(round(seconds, 1), table.get("seconds_per_search", 0.0))
    add_row(table, folder, searcher)


def finished(folder: Path, evaluations: int) -> bool:
    """Whether a search has spent its evaluations and scored its outcomes."""
    log = folder / LOG_FILE
    return (folder / OUTCOMES_FILE).exists() and log.exists() and len(EvaluationLog(log)) >= evaluations


def add_row(table: dict[str, Any], folder: Path, searcher: str) -> None:
    """Add a finished run to the table."""
    splits = table["reward_split"]
    outcomes = {row["name"]: row for row in json.loads((folder / OUTCOMES_FILE).read_text())}
    for name in ("original", "uniform"):
        table[name], splits[name] = outcomes[name]["test_score"], outcomes[name]["reward_score"]
    table[searcher].append(outcomes[searcher]["test_score"])
    splits.setdefault(searcher, []).append(outcomes[searcher]["reward_score"])
    evaluating = sum(row.seconds for row in EvaluationLog(folder / LOG_FILE).rows)
    table.setdefault("evaluation_seconds", {}).setdefault(searcher, []).append(round(evaluating, 1))
    threads = read_config(folder).source.threads
    table.setdefault("threads", {}).setdefault(searcher, []).append(threads)
    table["standard_error"] = {
        "reward": standard_error(splits["uniform"], read_facts(folder)["reward_images"]),
        "test": standard_error(table["uniform"], CIFAR_TEST_IMAGES),
    }
    table["origin"] = origin()


def standard_error(score: float, images: int) -> float:
    """Standard error of a share measured on so many images."""
    return math.sqrt(score * (1.0 - score) / images)


def latency_row(options: MainJob) -> dict[str, Any]:
    """Search for the fastest int8 network within a drop, then measure it beside fp32 and int8 unpruned."""
    with get_target("openvino") as target:
        weight_bits = target.weight_bits_exact
    config = RunConfig(
        source(options),
        ProblemConfig(
            goal="cost",
            minimize="latency",
            max_drop=options.max_drop,
            target="openvino",
            weight_bits=(weight_bits,),
            activation_bits=(8,),
        ),
        AgentConfig(seed=0),
        SearchConfig(evaluations=options.latency_evaluations),
    )
    run, _ = search(options.runs / "latency-ddpg-seed0", config)
    try:
        evaluating = round(sum(row.seconds for row in run.log.rows), 1)
        return measured(run) | {"evaluation_seconds": evaluating, "evaluations": len(run.log)}
    finally:
        run.problem.close()


def int8_policy(run: Run) -> CompressionPolicy:
    """All channels, every layer at the fewest legal bits."""
    space = run.problem.space
    table = space.smallest.copy()
    table[:, space.column("width")] = space.largest[:, space.column("width")]
    return space.policy(table)


def measured(run: Run) -> dict[str, Any]:
    """Accuracy of the exported files in their runtime, and latencies from the same rounds."""
    problem = run.problem
    models = {
        "original": problem.network.module,
        "int8": run.evaluator.compressed(int8_policy(run)),
        "agent": run.evaluator.compressed(run.best_policy),
    }
    with tempfile.TemporaryDirectory() as folder:
        files = {name: Path(folder) / f"{name}.onnx" for name in models}
        for name, model in models.items():
            export_onnx(model, problem.network.example, files[name])
        timings = dict(zip(files, problem.target.measure(list(files.values())), strict=True))
        images = run.task.data.normalised("test").numpy()
        labels = run.task.data.test.labels.numpy()
        accuracy = {
            name: float(np.mean(problem.target.run(file, images).argmax(axis=1) == labels))
            for name, file in files.items()
        }
    policy = run.best_policy
    return {
        "speedup": 1.0 / timings["agent"].ratio,
        "speedup_over_int8": timings["int8"].best / timings["agent"].best,
        "int8_speedup": 1.0 / timings["int8"].ratio,
        "accuracy_drop": accuracy["original"] - accuracy["agent"],
        "test_accuracy": accuracy,
        "milliseconds": {name: timing.best for name, timing in timings.items()},
        "reliable": all(timing.reliable for timing in timings.values()),
        "macs_fraction": run.evaluator.costs_of(policy)["macs"] / problem.original_costs["macs"],
        "target": f"{problem.target.name} {problem.target.runtime_version}",
        "max_drop_on_reward_split": run.config.problem.max_drop,
    }


if __name__ == "__main__":
    torch.manual_seed(0)
    run_script(main)

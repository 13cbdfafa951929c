"""The whole way on scikit-learn's digits: pretrain, search, fine-tune, export, before/after table."""

import sys
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

if not __package__:  # started as a file: Python then looks in scripts/ and not in the folder above it
    sys.path[0] = str(Path(__file__).resolve().parents[1])

import torch
from rich.table import Table

from agents.config import AgentConfig, SearchConfig
from agents.export import ExportedRun, export_run
from agents.report import write_report
from agents.run import Run, start_run
from agents.run_config import RunConfig, SourceConfig
from amc.export.model import INT8_FILE
from amc.files import write_json
from amc.policy import CompressionPolicy
from amc.targets import get_target
from envs.problem_config import ProblemConfig
from scripts import fine_tune, pretrain
from scripts.cli import run as run_script
from scripts.evaluate import InTarget
from scripts.progress import SearchProgress, print_table
from scripts.results_page import origin

RUNTIMES = ("openvino", "onnxruntime")


@dataclass(frozen=True)
class Demo:
    """Options of the demonstration."""

    runs: Path = Path("runs")
    """Folder for everything that is written; a new demo-N is made in it."""
    epochs: int = 12
    """Epochs of pretraining."""
    evaluations: int = 40
    """Policies that each search evaluates."""
    budget: tuple[str, ...] = ("macs=0.2", "size=0.04")
    """What the compressed network must keep: shares of the original's multiply-accumulates and bytes."""
    threads: int = 2
    """CPU threads."""
    seed: int = 0
    """Seed of training and searches."""
    started: int = 0
    """Unix time at which the whole command began; make demo passes it, so that installation counts."""
    json: Path | None = None
    """Also write the figures to this file."""


def main(options: Demo) -> None:
    """Pretrain a small network on digits, search for a policy, export it, print the before/after table."""
    started = options.started or time.time()
    torch.set_num_threads(options.threads)
    folder = new_folder(options.runs)
    weights = folder / "digitsnet.safetensors"
    print("1. pretraining DigitsNet on scikit-learn's digits (32 px)")
    pretrain.main(
        pretrain.Pretrain(epochs=options.epochs, out=weights, threads=options.threads, seed=options.seed)
    )
    config = RunConfig(
        SourceConfig(weights=weights, threads=options.threads),
        ProblemConfig(budget=options.budget),
        AgentConfig(seed=options.seed),
        SearchConfig(evaluations=options.evaluations),
    )
    print(f"2. searching under {' and '.join(options.budget)}: DDPG, then random at equal evaluations")
    agent = search(folder / "ddpg", config)
    random = search(folder / "random", replace(config, agent=replace(config.agent, algorithm="random")))
    compare_searches(agent, random)
    print("3. fine-tuning the agent's network, taught by the original")
    fine_tune.main(fine_tune.FineTune(run=agent.folder))
    print("4. exporting to ONNX and measuring")
    rows, files = measure(agent, folder)
    seconds = time.time() - started
    print_table(table_of(rows))
    print(f"milliseconds: one image on one core; {seconds:.0f} s since the start. Written:")
    for path in [weights, *files, *write_report([agent.folder, random.folder])]:
        print(f"  {path}")
    print(f"curves: tensorboard --logdir {folder}")
    agent.problem.close()
    random.problem.close()
    if options.json is not None:
        write_json(options.json, {"seconds": round(seconds, 1), "rows": rows, "origin": origin()})


def new_folder(runs: Path) -> Path:
    """The first free `demo-N`."""
    number = 1
    while (runs / f"demo-{number}").exists():
        number += 1
    folder = runs / f"demo-{number}"
    folder.mkdir(parents=True)
    return folder


def search(folder: Path, config: RunConfig) -> Run:
    """One search under a progress bar."""
    run = start_run(folder, config)
    with SearchProgress(config.search.evaluations, run.log) as progress:
        if run.search(callbacks=(progress,)).ending == "interrupted":
            raise KeyboardInterrupt(f"; continue with python -m scripts.train_agent --resume {folder}")
    return run


def compare_searches(agent: Run, random: Run) -> None:
    """Say how the searches did on the reward split, as it is."""
    first = agent.log.rows[0].score
    bests = {run.algorithm: run.log.best() for run in (agent, random)}
    scores = ", ".join(f"{name} {best.score:.2%}" for name, best in bests.items() if best is not None)
    images = len(agent.task.data.reward)
    error = (first * (1 - first) / images) ** 0.5
    reference = f"{agent.problem.reference_name} {first:.2%}"
    print(f"   best on the reward split: {scores}; {reference} (standard error {error:.2%})")


def measure(run: Run, folder: Path) -> tuple[list[dict[str, Any]], list[Path]]:
    """Export original, uniform and best policy; score and time them and the fine-tuned file in both runtimes.

    Returns:
        Rows of the table, and the files written.
    """
    exports = {
        "uniform": export_run(run, run.problem.uniform_policy(), folder / "uniform"),
        "agent": export_run(run, None, folder / "export"),
    }
    tuned = run.folder / "fine_tuned"
    files = {
        "original fp32": exports["agent"].original,
        "uniform int8": exports["uniform"].files[-1].path,
        "agent int8": exports["agent"].files[-1].path,
        "agent int8, fine-tuned": tuned / INT8_FILE,
    }
    policies = [None, exports["uniform"].policy, exports["agent"].policy, exports["agent"].policy]
    rows: list[dict[str, Any]] = [
        {"name": name, **costs_of(run, policy)} for name, policy in zip(files, policies, strict=True)
    ]
    for runtime in RUNTIMES:
        with get_target(runtime) as target:
            timings = target.measure(list(files.values()))
            for row, file, timing in zip(rows, files.values(), timings, strict=True):
                row[f"{runtime}_ms"] = timing.best
                row[f"{runtime}_reliable"] = timing.reliable
                if runtime == run.config.problem.target:
                    row["test_accuracy"] = run.task.score(InTarget(target, file), "test")
    return rows, [*written(exports), *sorted(tuned.iterdir())]


def costs_of(run: Run, policy: CompressionPolicy | None) -> dict[str, float]:
    """MACs and bytes of a policy, or of the uncompressed network."""
    costs = run.problem.original_costs if policy is None else run.evaluator.costs_of(policy)
    return {"macs": costs["macs"], "bytes": costs["size"]}


def written(exports: dict[str, ExportedRun]) -> list[Path]:
    """Every exported file."""
    return [path for exported in exports.values() for path in exported.paths]


def table_of(rows: list[dict[str, Any]]) -> Table:
    """The before/after table."""
    table = Table()
    table.add_column("", no_wrap=True)
    for heading in ("test accuracy", "MMACs", "kB", "OpenVINO ms", "speed-up", "ONNX Runtime ms", "speed-up"):
        table.add_column(heading, justify="right")
    for row in rows:
        cells = [f"{row['test_accuracy']:.2%}", f"{row['macs'] / 1e6:.2f}", f"{row['bytes'] / 1e3:.1f}"]
        for runtime in RUNTIMES:
            own, original = row[f"{runtime}_ms"], rows[0][f"{runtime}_ms"]
            cells += [f"{own:.3f}", f"{original / own:.2f}x"]
        table.add_row(row["name"], *cells)
    return table


if __name__ == "__main__":
    run_script(main)

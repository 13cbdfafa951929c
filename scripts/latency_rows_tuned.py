"""Rows of the latency results that fine-tune: the points of the curves, and the headline."""

from dataclasses import dataclass
from pathlib import Path

from agents.export import ORIGINAL_FILE
from agents.run import load_run
from amc.export.model import write_file
from scripts.benchmark import Benchmark, benchmark
from scripts.latency_rows import (
    HEADLINE_PROCESSES,
    TUNED_EPOCHS,
    LatencyResults,
    Spec,
)
from scripts.latency_rows_search import joint_search, policy_figures, search_figures
from scripts.results_runs import Figures, Unreachable, tuned_figures, tuned_folder

SPREAD_PROCESSES = 2
"""For a point of a curve: enough to see whether its latency repeats."""


def headline_row(options: LatencyResults, spec: Spec) -> Figures:
    """The network of the headline: fine-tuned, exported, scored, and timed in fresh processes."""
    try:
        return exported_figures(options, spec, options.epochs, HEADLINE_PROCESSES)
    except Unreachable as sentence:
        return {"unreachable": str(sentence)}


def curve_row(options: LatencyResults, spec: Spec) -> Figures:
    """The joint search and the uniform policy at one budget, or that network after a short fine-tuning."""
    try:
        if spec.variant == "tuned":
            return exported_figures(options, spec, TUNED_EPOCHS, SPREAD_PROCESSES)
        return untuned(options, spec)
    except Unreachable as sentence:
        return {"unreachable": str(sentence)}


def untuned(options: LatencyResults, spec: Spec) -> Figures:
    """Best policy of the joint search, and the uniform one."""
    with joint_search(options, spec) as run:
        uniform = run.problem.uniform_policy()
        return {
            "joint": policy_figures(run.problem, run.best_policy, spec) | search_figures(run),
            "uniform": policy_figures(run.problem, uniform, spec),
        }


@dataclass(frozen=True)
class Tuned:
    """A fine-tuned network.

    Attributes:
        original, exported: files that the target reads.
        figures: what the fine-tuning wrote about itself.
    """

    original: Path
    exported: Path
    figures: Figures


def fine_tuned(run: Path, epochs: int, suffix: str) -> Tuned:
    """Fine-tune the best network of a run, or take what an earlier call made; an unfinished one goes on."""
    figures, folder = tuned_figures(run, epochs), tuned_folder(run, epochs)
    names = [file["path"] for file in figures["files"] if file["path"].endswith(suffix)]
    # Where anything is quantized, the int8 file comes after the one in floats.
    return Tuned((folder / ORIGINAL_FILE).with_suffix(suffix), folder / names[-1], figures)


def exported_figures(options: LatencyResults, spec: Spec, epochs: int, processes: int) -> Figures:
    """Fine-tune the joint search's best network, score its file in its runtime, and time it."""
    with joint_search(options, spec) as run:
        folder, suffix = run.folder, run.problem.target.file_suffix
        about = search_figures(run) | {"untuned": policy_figures(run.problem, run.best_policy, spec)}
    files = fine_tuned(folder, epochs, suffix)
    run = load_run(folder)
    try:
        write_file(run.network.module, run.network.example, files.original)
        paths = [files.original, files.exported]
        measuring = Benchmark(tuple(paths), spec.target, processes)
        original, exported = benchmark(measuring, run.problem.target, paths, run.task)
        runtime, unit = run.problem.target.runtime_version, run.problem.target.unit
        images = len(run.task.data.split("test"))
    finally:
        run.problem.close()
    assert exported.summary is not None
    return about | {
        "epochs": epochs,
        "latency_ratio": exported.summary.ratio,
        "latency_ratio_cv": exported.summary.ratio_cv,
        "verdict": exported.summary.verdict,
        "test_accuracy_original": original.score,
        "test_accuracy_exported": exported.score,
        "test_accuracy_torch": files.figures["scores"]["fine-tuned"]["test"],
        "reward_accuracy": files.figures["scores"]["fine-tuned"]["reward"],
        "test_images": images,
        "file": exported.to_json() | {"file": files.exported.name},
        "original_file": original.to_json() | {"file": files.original.name},
        "processes": processes,
        "runtime": runtime,
        "unit": unit,
    }

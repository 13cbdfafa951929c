"""Regenerate the figures and the page of the operators, row by row; may be cut at any moment and repeated."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

if not __package__:  # started as a file: Python then looks in scripts/ and not in the folder above it
    sys.path[0] = str(Path(__file__).resolve().parents[1])

import torch

from agents.config import AgentConfig
from agents.report_stages import TUNED_FILE
from agents.run import Run, load_source
from agents.searcher import make_searcher
from amc.decomposition.clustered_conv import cluster_layers, clustered_layers
from amc.decomposition.filter_groups import FilterGroups, group_schedule
from amc.decomposition.operator import AMOUNT, convolution_obstacle
from amc.errors import UserError
from amc.files import read_json, write_atomically
from amc.network import Network, trace
from amc.policy import CompressionPolicy, LayerDecision
from amc.recovery.calibrate import calibrate
from amc.recovery.restate import restate_norms
from amc.targets.meter import LatencyMeter
from envs.problem import build_problem
from scripts import fine_tune
from scripts.cli import run as run_script
from scripts.operator_page import drawing_png, page
from scripts.operator_rows import (
    BUDGETS,
    BY_DEPTH,
    CHOICE,
    CLUSTERS,
    FIXED,
    JOINT,
    PRUNING,
    SCATTERING,
    SECONDS,
    TUNED,
    OperatorResults,
    Spec,
    configuration,
    plan,
    run_folder,
    source,
)
from scripts.operator_scattering import scattering_row
from scripts.results_page import write_page
from scripts.results_runner import Row, Rows, Runner
from scripts.results_runs import Unreachable, read_seconds, recipe, searched, tuned_folder


def main(options: OperatorResults) -> None:
    """Make the missing rows of the operator results and write the page; may be cut anywhere and repeated."""
    runner = Runner[Spec](
        options.out,
        key=lambda spec: spec.name,
        make=lambda spec: MAKERS[spec.part](options, spec),
        about=lambda spec: {"command": f"python -m scripts.operator_results --only '{spec.name}'"},
        summary=lambda rows: summary(options, rows),
        prepare=lambda missing: prepare(options, missing),
    )
    runner.run(runner.chosen(plan(), options.only), options)


def prepare(options: OperatorResults, missing: list[Spec]) -> list[Spec]:
    """The rows whose weights are here, with a sentence about the others; sets the threads.

    Raises:
        UserError: nothing can be made here, or the settings make no sense.
    """
    if min(options.threads, options.evaluations, options.epochs) < 1:
        raise UserError("--threads, --evaluations and --epochs must be at least 1.")
    needing = {spec.network for spec in missing if spec.part != SCATTERING}
    absent = sorted(network for network in needing if not options.weights(network).is_file())
    for network in absent:
        weights = options.weights(network)
        print(f"{network} is skipped: there is no {weights}; pass --{network}.", file=sys.stderr)
    possible = [spec for spec in missing if spec.network not in absent]
    if missing and not possible:
        raise UserError(f"None of the {len(missing)} missing rows can be made without weights.")
    torch.set_num_threads(options.threads)
    return possible


def choice_row(options: OperatorResults, spec: Spec) -> Row:
    """The best policy of a search: accuracies, costs and what it chose for every layer."""
    try:
        with searched(run_folder(options, spec), configuration(options, spec)) as run:
            best = run.log.best()
            assert best is not None
            latency = best.costs.get("latency")
            return {
                "evaluations": len(run.log),
                "reward_accuracy": best.score,
                **network_figures(run, best.policy),
                "latency_share": latency and latency / run.problem.original_costs["latency"],
                "seconds_per_evaluation": round(sum(row.seconds for row in run.log.rows) / len(run.log), 3),
                "seconds": max(read_seconds(run.folder).values(), default=0.0),
            }
    except Unreachable as error:
        return {"unreachable": str(error)}


def fixed_row(options: OperatorResults, spec: Spec) -> Row:
    """One common compression before fine-tuning, and in milliseconds."""
    try:
        with fixed_run(options, spec) as (run, policy):
            found = network_figures(run, policy)
            meter = LatencyMeter(run.network, run.problem.target)
            try:
                timing = meter.timing(policy, run.evaluator.searched(policy))
            finally:
                meter.close()
    except Unreachable as error:
        return {"unreachable": str(error)}
    return {
        **found,
        "target": options.target,
        "original_ms": meter.original,
        "ms": timing.best,
        "ratio": timing.ratio,
        "reliable": timing.reliable,
    }


def tuned_row(options: OperatorResults, spec: Spec) -> Row:
    """The same compression after fine-tuning."""
    try:
        with fixed_run(options, spec) as (run, policy):
            tuned = tuned_policy(run, policy, options.epochs)
    except Unreachable as error:
        return {"unreachable": str(error)}
    return {"epochs": options.epochs, "test_tuned": tuned["scores"]["fine-tuned"]["test"]}


@contextmanager
def fixed_run(options: OperatorResults, spec: Spec) -> Iterator[tuple[Run, CompressionPolicy]]:
    """The run of a fixed compression, one for both of its rows, and its policy."""
    with searched(run_folder(options, replace(spec, part=FIXED)), configuration(options, spec)) as run:
        by_depth = spec.arm == BY_DEPTH
        yield run, grouped_by_depth(run.network, float(spec.setting)) if by_depth else run.best_policy


def grouped_by_depth(network: Network, share: float) -> CompressionPolicy:
    """Filter groups in all layers that have a kernel, their count growing with depth.

    Args:
        network: the original.
        share: of its MACs, which are kept from above.
    """
    sizes = group_schedule(network, share)
    decisions = (
        LayerDecision(layer.name, {AMOUNT: sizes[layer.name]}, FilterGroups.name)
        if layer.name in sizes
        else LayerDecision(layer.name)
        for layer in network.layers
    )
    return CompressionPolicy(network.fingerprint, tuple(decisions))


def tuned_policy(run: Run, policy: CompressionPolicy, epochs: int) -> dict[str, Any]:
    """Figures of a policy's fine-tuning, made now unless an earlier call did; an unfinished one goes on."""
    folder = tuned_folder(run.folder, epochs)
    figures = folder / TUNED_FILE
    if not figures.exists():
        options = recipe(run.folder, folder, epochs, (folder / fine_tune.CHECKPOINT_FILE).is_file())
        options = replace(options, alpha=options.distillation.alpha)
        fine_tune.tune(run, policy, options, options.recipe, options.distillation)
    found = read_json(figures)
    assert isinstance(found, dict)
    return found


def network_figures(run: Run, policy: CompressionPolicy) -> Row:
    """Un-tuned test accuracies and costs of a policy, and its decisions."""
    original = run.problem.original_costs
    costs = run.evaluator.costs_of(policy)
    return {
        "test_original": run.task.score(run.network.copy(), "test"),
        "test_untuned": run.task.score(run.evaluator.compressed(policy), "test"),
        "macs_share": costs["macs"] / original["macs"],
        "size_share": costs["size"] / original["size"],
        "layers": [
            {
                "layer": layer.name,
                "operator": policy[layer.name].operator,
                "amount": policy[layer.name].values.get(AMOUNT),
                "keep": policy[layer.name].values.get("width", layer.out_channels) / layer.out_channels,
                "weight_bits": policy[layer.name].values.get("weight_bits", 32),
            }
            for layer in run.network.layers
        ],
    }


def cluster_row(options: OperatorResults, spec: Spec) -> Row:
    """Un-tuned accuracies of a network whose kernels share one codebook."""
    model, task = load_source(source(options, spec.network))
    network, images = trace(task.traced(model), task.example_input()), task.calibration()
    restate_norms(network.module, images)
    clustered = network.copy()
    names = [
        layer.name
        for layer in network.layers[1:]  # the first layer's kernels read colours, and are few
        if convolution_obstacle(network.module.get_submodule(layer.name)) is None
    ]
    centroids, poses = map(int, spec.setting.split("x"))
    before = [clustered.get_submodule(name).get_parameter("weight").detach() for name in names]
    codebook = cluster_layers(clustered, names, centroids, poses)
    after = [layer.weight.detach() for layer in clustered_layers(clustered).values()]
    error = sum(float((a - b).square().sum()) for a, b in zip(after, before, strict=True))
    found = {
        "test_original": task.score(network.copy(), "test"),
        "kernels": sum(layer.index.numel() for layer in clustered_layers(clustered).values()),
        "index_bits": codebook.index_bits,
        "weight_error": error / sum(float(b.square().sum()) for b in before),
        "test_raw": task.score(clustered, "test"),
    }
    calibrate(clustered, images)
    return {**found, "test_calibrated": task.score(clustered, "test")}


def seconds_row(options: OperatorResults, spec: Spec) -> Row:
    """Mean seconds of an evaluation with operators and of one without, side by side."""
    model, task = load_source(source(options, spec.network))
    arms = {}
    for arm in (PRUNING, JOINT):
        config = configuration(options, Spec(CHOICE, spec.network, spec.setting, arm, "0")).problem
        problem = build_problem(model, task, config)
        settings = AgentConfig(algorithm="random")
        arms[arm] = (problem, make_searcher(problem.walk(), settings, options.evaluations))
    spent = dict.fromkeys(arms, 0.0)
    for _ in range(options.evaluations):
        for arm, (problem, searcher) in arms.items():
            (evaluation,) = problem.evaluator(searcher.ask(1))
            spent[arm] += evaluation.seconds
            searcher.tell([evaluation], [evaluation.score])
    return {
        "budget": BUDGETS[spec.setting],
        "evaluations": options.evaluations,
        "plain": spent[PRUNING] / options.evaluations,
        "with_operators": spent[JOINT] / options.evaluations,
    }


MAKERS = {
    CHOICE: choice_row,
    FIXED: fixed_row,
    TUNED: tuned_row,
    CLUSTERS: cluster_row,
    SCATTERING: scattering_row,
    SECONDS: seconds_row,
}


def summary(options: OperatorResults, rows: Rows) -> dict[str, Any]:
    """Write the page beside the figures; the tables have one object a row, by column names."""
    drawn = options.out.with_name("operators_layers.png")
    png = drawing_png(list(rows.values()))
    if png is not None:
        write_atomically(drawn, png)
    tables, parts = page(rows, drawn.name if png else None)
    options.out.parent.mkdir(parents=True, exist_ok=True)
    write_page(options.out.with_suffix(".md"), parts)
    return {"tables": tables}


if __name__ == "__main__":
    run_script(main)

"""Rows of the latency results that compare ways to keep one budget, and the searches behind all rows."""

from collections.abc import Iterator
from contextlib import contextmanager

from agents.report_data import load_record
from agents.run import Run
from agents.run_config import CONFIG_FILE
from agents.source import load_source, prepare_device
from amc.policy import REMOVED, CompressionPolicy
from amc.quantization.uniform import NOT_QUANTIZED
from amc.targets import get_target
from envs.problem import Problem, build_problem
from envs.problem_config import ProblemConfig
from scripts.latency_rows import (
    LatencyResults,
    Spec,
    run_folder,
    search_config,
    source,
)
from scripts.results_runs import Figures, Unreachable, searched

FLOATS = (NOT_QUANTIZED,)
DEPTH_SHARE = 0.9
"""Of a budget: what the first policy spends on depth, the rest being for the layers that no block holds."""


def joint_row(options: LatencyResults, spec: Spec) -> Figures:
    """One variant of the comparison at one budget."""
    makers = {"int8": int8, "prune-int8": prune_then_int8}
    try:
        return makers.get(spec.variant, searched_variant)(options, spec)
    except Unreachable as sentence:
        return {"unreachable": str(sentence)}


def searched_variant(options: LatencyResults, spec: Spec) -> Figures:
    """Best policy of a search, or the uniform one: prune, joint and uniform."""
    opened = prune_search if spec.variant == "prune" else joint_search
    with opened(options, spec) as run:
        policy = run.problem.uniform_policy() if spec.variant == "uniform" else run.best_policy
        only_floats = 8 not in run.problem.target.fast_bits
        note = {"same_search_as": "prune"} if only_floats and spec.variant in ("joint", "uniform") else {}
        return policy_figures(run.problem, policy, spec) | search_figures(run) | note


def int8(options: LatencyResults, spec: Spec) -> Figures:
    """All channels, every layer in int8; whether that keeps the budget is the budget's luck."""
    with int8_problem(options, spec) as problem:
        return policy_figures(problem, problem.space.policy(problem.space.largest), spec)


def prune_then_int8(options: LatencyResults, spec: Spec) -> Figures:
    """Widths searched in floats, under what int8 is expected to leave of the budget; then int8 everywhere."""
    gain = int8(options, spec)["latency_ratio"]
    fraction = float(spec.budget) / gain
    widths, found = None, {"int8_ratio": gain, "pruning_budget": min(1.0, round(fraction, 4))}
    if fraction < 1.0:
        config = search_config(options, spec, round(fraction, 4), FLOATS)
        # The gain is measured, and an interrupted search goes on under the budget that it was started with.
        with searched(run_folder(options, spec, "prune-for-int8"), config, free=("budget",)) as run:
            found["pruning_budget"] = run.problem.budgets[0].fraction
            widths = run.best_policy
            found |= search_figures(run)
    with int8_problem(options, spec) as problem:
        return policy_figures(problem, in_int8(problem, widths), spec) | found


def in_int8(problem: Problem, widths: CompressionPolicy | None) -> CompressionPolicy:
    """The policy with these widths, or all channels, in the only bits of the problem."""
    table, column = problem.space.largest.copy(), problem.space.column("width")
    if widths is not None:
        table[:, column] = problem.space.table(widths)[:, column]
    return problem.space.policy(table)


@contextmanager
def prune_search(options: LatencyResults, spec: Spec) -> Iterator[Run]:
    """The finished search for widths in floats."""
    config = search_config(options, spec, float(spec.budget), FLOATS)
    with searched(run_folder(options, spec, "prune"), config) as run:
        yield run


@contextmanager
def joint_search(options: LatencyResults, spec: Spec) -> Iterator[Run]:
    """The finished search for widths and bits, and for blocks where the row says so.

    Where int8 brings nothing, bits are no choice.
    """
    with get_target(spec.target) as target:
        pays = 8 in target.fast_bits
    kind = "blocks" if spec.variant == "blocks" else "joint" if pays else "prune"
    folder = run_folder(options, spec, kind)
    begun = (folder / CONFIG_FILE).exists()  # and keeps the depth that it began with
    depth = affordable_depth(options, spec) if kind == "blocks" and not begun else 1.0
    config = search_config(options, spec, float(spec.budget), () if pays else FLOATS, depth)
    with searched(folder, config, free=("reference_depth",)) as run:
        yield run


def affordable_depth(options: LatencyResults, spec: Spec) -> float:
    """About the share of the blocks that keeps the budget with all channels, in the format that pays."""
    fastest = min(int8(options, spec)["latency_ratio"], 1.0)
    return round(min(1.0, DEPTH_SHARE * float(spec.budget) / fastest), 2)


def search_figures(run: Run) -> Figures:
    """What a search took, with which settings, and whether a measured network kept its budget."""
    best = run.log.best()
    assert best is not None
    latency, limits = run.problem.latency, [budget.limit for budget in run.problem.budgets]
    return {
        "evaluations": len(run.log),
        "seed": run.config.agent.seed,
        "searcher": run.algorithm,
        "search_seconds": round(sum(row.seconds for row in run.log.rows), 1),
        "feasible": best.feasible,
        "found_at_evaluation": best.index + 1,
        "predictor_margin": latency.margin(limits[0]) if latency else None,
        "importance": run.config.problem.importance,
        "reconstruct": run.config.problem.reconstruct,
        "test_accuracy_original": load_record(run.folder).original.test_score,
    }


@contextmanager
def int8_problem(options: LatencyResults, spec: Spec) -> Iterator[Problem]:
    """The network with int8 as the only bits, and something that measures its latency."""
    origin = source(options, spec.network)
    device = prepare_device(origin)
    target = get_target(spec.target)
    with target:
        config = ProblemConfig(
            goal="cost",
            minimize="latency",
            target=spec.target,
            width_multiple=1,
            weight_bits=(target.weight_bits_exact,),
            activation_bits=(8,),
        )
        problem = build_problem(*load_source(origin), config, device, target)
        try:
            yield problem
        finally:
            problem.close()


def policy_figures(problem: Problem, policy: CompressionPolicy, spec: Spec) -> Figures:
    """Accuracy of a policy's un-tuned network, and its latency measured beside the original's."""
    assert problem.meter is not None
    evaluator = problem.evaluator
    model = evaluator.compressed(policy)
    scores = {split: problem.task.score(model, split) for split in ("reward", "test")}
    timing = problem.meter.timing(policy, model)
    integers = [
        max(decision.values["weight_bits"], decision.values["activation_bits"]) < NOT_QUANTIZED
        for decision in policy.decisions
        if decision.operator != REMOVED
    ]
    return {
        "reward_accuracy": scores["reward"],
        "test_accuracy": scores["test"],
        "latency_ratio": timing.ratio,
        "latency": timing.best,
        "latency_original": problem.meter.original,
        "layers_left_out": len(policy.removed),
        "unit": problem.target.unit,
        "runtime": problem.target.runtime_version,
        "reliable": timing.reliable,
        "within_budget": timing.ratio <= float(spec.budget),
        "int8_share": sum(integers) / len(integers),
        "macs_fraction": evaluator.costs_of(policy)["macs"] / problem.original_costs["macs"],
        "policy": policy.digest(),
    }

"""Rows of the search results that measure what searches rest on: the proxy, the evaluation, the workers."""

from contextlib import closing
from dataclasses import replace
from typing import Any

from torch import nn

from agents.run_config import SourceConfig
from agents.source import load_source, prepare_device
from amc.files import read_json
from amc.models import build_model, save_weights
from amc.tasks import Task
from envs.problem import build_problem
from envs.problem_config import ProblemConfig
from scripts import benchmark_evaluation, proxy_correlation
from scripts.rank_correlation import correlate
from scripts.results_runs import Figures
from scripts.search_rows import NETWORKS, VARIANTS, SearchResults, Spec, source

REWARD_IMAGES = {"mobilenet_v1": 5000}
"""As many as the authors' code is timed with."""
RANKING_BUDGETS = ("0.7", "0.5", "0.3")
SEEN_POLICIES, SEEN_BUDGET = 24, "0.5"
ORDERS = ("l1", "l2", "bn", "taylor", "obs")
FOLLOWED = {order: {"importance": order, "reference": "uniform"} for order in ORDERS} | {
    "obs, balanced": {"reference": "balanced"},
    "the same, refitted symmetrically": {"reference": "balanced", "reconstruct": "symmetric"},
    "the same, not refitted": {"reference": "balanced", "reconstruct": "none"},
}
"""What decides which channels go, and how many in which layer, to fields of a problem."""


def proxy_row(options: SearchResults, spec: Spec) -> Figures:
    """How well scores without fine-tuning rank policies; interrupted, it goes on with the next policy."""
    out = options.runs / f"{spec.name.replace('/', '-')}.json"
    settings = proxy_correlation.ProxyCorrelation(source=source(options, spec.network), out=out)
    proxy_correlation.main(settings)
    figures: Any = read_json(out)
    kept = ("proxies", "proxy_seconds", "default", "reward_against_test", "mean_score", "policies", "seconds")
    return {
        "rank_correlation": figures["proxy_rank_correlation"],
        "epochs": settings.epochs,
        **{key: figures[key] for key in kept},
    }


def ranking_row(options: SearchResults, spec: Spec) -> Figures:
    """Scores of policies that take no search, by budget, by what they follow, and by split."""
    origin = source(options, spec.network)
    model, task = load_source(origin)
    return {
        "scores": {
            budget: {name: _reference(model, task, budget, settings) for name, settings in FOLLOWED.items()}
            for budget in RANKING_BUDGETS
        },
    }


def _reference(model: nn.Module, task: Task, budget: str, settings: dict[str, Any]) -> dict[str, float]:
    config = replace(ProblemConfig(budget=(f"macs={budget}",)), **settings)
    with closing(build_problem(model, task, config, "cpu")) as problem:
        policy = problem.walk().reference_policy()
        (evaluation,) = problem.evaluator([policy])
        network = problem.evaluator.compressed(policy)
        return {"reward": evaluation.score, "test": task.score(network, "test")}


def seen_row(options: SearchResults, spec: Spec) -> Figures:
    """How the reward split ranks random policies, against the test split, by which nothing is chosen here."""
    origin = source(options, spec.network)
    device = prepare_device(origin)
    config = ProblemConfig(budget=(f"macs={SEEN_BUDGET}",))
    with closing(build_problem(*load_source(origin), config, device)) as problem:
        policies = proxy_correlation.draw(problem, SEEN_POLICIES, 0)
        scores = {
            "reward": [evaluation.score for evaluation in problem.evaluator(policies)],
            "test": [problem.task.score(problem.evaluator.searched(policy), "test") for policy in policies],
        }
        images = len(problem.task.data.reward)
    return {
        "scores": scores,
        **proxy_correlation.plain(correlate(scores["reward"], scores["test"])),
        "reward_images": images,
        "seen": NETWORKS[spec.network].seen,
    }


def evaluation_row(options: SearchResults, spec: Spec) -> Figures:
    """Wall time of one evaluation with one worker a core, and what the workers gain over one."""
    out = options.runs / f"{spec.name.replace('/', '-')}.json"
    problem = ProblemConfig(budget=("macs=0.5",), reward_images=REWARD_IMAGES.get(spec.network, 2000))
    settings = benchmark_evaluation.BenchmarkEvaluation(
        json=out,
        source=_source(options, spec.network),
        problem=replace(problem, **VARIANTS.get(spec.variant, {})),
    )
    out.parent.mkdir(parents=True, exist_ok=True)
    benchmark_evaluation.main(settings)
    found: Any = read_json(out)
    kept = ("workers", "threads", "phases", "in_process", "one_worker", "all_workers", "load")
    images = ("reward_images", "calibration_images")
    return {
        "seconds_per_evaluation": min(found["all_workers"], found["in_process"]),
        "efficiency": found["worker_efficiency"],
        **{key: found[key] for key in (*kept, *images)},
    }


def _source(options: SearchResults, network: str) -> SourceConfig:
    """A network of the table, or one whose speed alone is asked for: with the weights it is born with."""
    if network in NETWORKS:
        return source(options, network)
    weights = options.runs / f"{network}-untrained.safetensors"
    if not weights.exists():
        weights.parent.mkdir(parents=True, exist_ok=True)
        save_weights(build_model(network, small_input=True), weights)
    about = source(options, "resnet56")
    return replace(about, model=network, weights=weights)

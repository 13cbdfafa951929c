"""The settings without which a search's figures are misread, in words."""

from agents.report_data import Record
from agents.run_config import RunConfig
from amc.quantization.registry import UNIFORM
from envs.latency_budget import ENOUGH_POLICIES

SCREENING = ("ddpg", "td3", "sac")
"""Searchers that rank candidates before one of them is evaluated."""


def searcher(config: RunConfig) -> str:
    """Who searches: `ddpg, seed 0, each proposal the best of 256 candidates`."""
    agent = config.agent
    text = f"{agent.algorithm}, seed {agent.seed}"
    if agent.algorithm in SCREENING and agent.candidates > 1:
        text += f", each proposal the best of {agent.candidates:,} candidates"
    if agent.start_from is not None:
        text += f", going on from {agent.start_from}"
    return text


def rounds(config: RunConfig) -> str:
    """How policies are evaluated, where it is not one after the other: `in 4 processes, 4 at once`."""
    search = config.search
    if search.at_once == 1:
        return ""
    processes = f"in {search.workers} processes, " if search.workers > 1 else ""
    return f"{processes}{search.at_once} at once"


def scoring(config: RunConfig) -> str:
    """When a policy is scored: before any training, after a moment of it, or between rounds of it."""
    steps, cooling = config.problem.tune_steps, config.cooling
    said = f"after {steps:,} steps of training and before" if steps else "before"
    if not (cooling.is_on and cooling.rounds > 1 and cooling.round_epochs):
        return f"{said} fine-tuning"
    return (
        f"{said} a last fine-tuning, in a network that is fine-tuned for {epochs_text(cooling.round_epochs)} "
        "between rounds"
    )


def epochs_text(epochs: int) -> str:
    """As `1 epoch` or `2 epochs`."""
    return f"{epochs} epoch{'s' if epochs != 1 else ''}"


def quantizers(config: RunConfig) -> str:
    """How weights and activations are quantized; "" with the uniform codes."""
    names = config.problem.quantizers
    if names.weights == names.activations == UNIFORM:
        return ""
    return f"weights {names.weights}, activations {names.activations}"


def latency_predictor(record: Record) -> str:
    """What predicted the latencies of policies, and how far off it was; "" where nothing did."""
    figures = record.predictor
    if figures is None:
        return ""
    few = f", too few to be sure: fewer than {ENOUGH_POLICIES}" if figures.few else ""
    return (
        f"fitted to {figures.policies} measured random policies{few}; mean error on unseen ones "
        f"{figures.mape:.1%}, margin below the budget {figures.margin:.1%}"
    )


def blocks_left_out(record: Record) -> str:
    """How many residual blocks the best policy leaves out; "" where none could be.

    A run that does not record its blocks tells the number of layers.
    """
    best, blocks = record.best, record.facts.get("blocks")
    if best is None or not record.config.problem.drop_blocks:
        return ""
    if blocks is None:
        return f"{len(best.policy.removed)} layers"
    return f"{len(best.policy.removed & set(blocks))} of {len(blocks)}"

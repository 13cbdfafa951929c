"""Compress a network with an actor that was trained before: seconds, and no search."""

import sys
import time
from dataclasses import dataclass, field
from pathlib import Path

if not __package__:  # started as a file: Python then looks in scripts/ and not in the folder above it
    sys.path[0] = str(Path(__file__).resolve().parents[1])

from agents.actor_file import load_actor_file
from agents.apply import Applied, apply_actor, problem_settings
from agents.export import architecture_from, export_network
from agents.run_config import SourceConfig
from agents.source import load_source, prepare_device
from amc.files import write_json
from envs.problem import build_problem
from scripts.cli import run
from scripts.export_policy import check_free, show
from scripts.progress import outcome_table, print_table

APPLIED_FILE = "applied.json"


@dataclass(frozen=True)
class ApplyAgent:
    """Options of the application."""

    actor: Path
    """Exported actor, actor.onnx, with critic.onnx and actor.json beside it (export_policy.py --actor)."""
    budget: tuple[str, ...]
    """Upper limits such as macs=0.43, of the costs that the actor was trained with and within their range."""
    out: Path = Path("compressed")
    """Folder to write to."""
    force: bool = False
    """Replace what an earlier call has written there."""
    freeze: tuple[str, ...] = ()
    """Layers whose output channels are never pruned, as shell patterns: 'layer1.*'."""
    target: str = "openvino"
    """Runtime that the network is for: openvino, onnxruntime, litert, arm-instructions,
    arm-instructions-a53, or package.module:factory."""
    source: SourceConfig = field(default_factory=SourceConfig)
    """The trained network and its data."""


def main(options: ApplyAgent) -> None:
    """Compress a network with an actor that was trained before: seconds, and no search."""
    started = time.perf_counter()
    check_free(options.out, options.force)
    actor = load_actor_file(options.actor)
    config = problem_settings(actor, options.budget, freeze=options.freeze, target=options.target)
    device = prepare_device(options.source)
    model, task = load_source(options.source)
    problem = build_problem(model, task, config, device)
    try:
        applied = apply_actor(actor, problem)
        print_table(outcome_table(applied.outcomes, task.score_name, problem.target.unit))
        for sentence in certainty(applied, task.score_name):
            print(sentence)
        decided = time.perf_counter() - started
        exported = export_network(
            problem, applied.policy, options.out, architecture_from(options.source, task)
        )
        show(exported)
        total = time.perf_counter() - started
        print(
            f"{total:.1f} s in all: {applied.seconds:.2f} s for the actor's decisions, {decided:.1f} s with "
            "loading and scoring, the rest for the files"
        )
        seconds = {"decisions": applied.seconds, "decided_and_scored": decided, "total": total}
        write_json(options.out / APPLIED_FILE, {**applied.to_json(), "seconds": seconds})
    finally:
        problem.close()


def certainty(applied: Applied, score_name: str) -> list[str]:
    """How sure the critic was, how right, and whether the actor was worth asking."""
    measured = applied.outcomes[2].reward_score
    sentences = []
    if applied.expected is None or applied.usual_error is None:
        sentences.append("The critic was trained for --goal cost, and expects no score.")
    else:
        off = abs(measured - applied.expected)
        sentences.append(
            f"The critic expected {applied.expected:.2%} {score_name} on the reward split; {measured:.2%} "
            f"was measured, {off * 100:.2f} points off. On its own training it is off by "
            f"{applied.usual_error * 100:.2f} points."
        )
    if applied.gain < 0:
        sentences.append(
            f"The {applied.outcomes[1].name} policy scores {-applied.gain * 100:.2f} points more: this actor "
            "does not know such networks well; a search would serve better."
        )
    return sentences


if __name__ == "__main__":
    run(main)

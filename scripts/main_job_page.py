"""The page of the main job's figures."""

import math
from pathlib import Path
from statistics import mean
from typing import Any

from scripts.results_page import markdown_table, write_page

COMMAND = "python -m scripts.main_job --weights resnet20.th --data-root data"


def write_main_job_page(path: Path, figures: dict[str, Any]) -> None:
    """Write the page from whatever figures there are; missing tables are named."""
    parts = ["# The main job, measured"]
    for name, section in (("demo", demo), ("resnet20_macs50", macs50), ("resnet20_latency", latency)):
        if name in figures:
            parts += section(figures[name])
        else:
            parts.append(f"*Not measured yet: {name}.*")
    write_page(path, parts)


def made_by(command: str, figures: dict[str, Any]) -> str:
    """How a table is regenerated, and where this one comes from."""
    where = figures.get("origin", {})
    machine = where.get("machine", {})
    return (
        f"```\n{command}\n```\n\nWritten at commit {where.get('commit')}, {where.get('date')}, "
        f"{machine.get('cpu_model', machine.get('cpu', 'unknown CPU'))}, {machine.get('cores')} cores."
    )


def percent(value: float) -> str:
    """A share as a percentage with two decimals."""
    return f"{value:.2%}"


def demo(figures: dict[str, Any]) -> list[str]:
    """The table of `make demo`."""
    rows = [
        [
            row["name"],
            percent(row["test_accuracy"]),
            f"{row['macs'] / 1e6:.2f}",
            f"{row['bytes'] / 1e3:.1f}",
            f"{row['openvino_ms']:.3f}",
            f"{row['onnxruntime_ms']:.3f}",
        ]
        for row in figures["rows"]
    ]
    headings = ["network", "test accuracy", "MMACs", "kB", "OpenVINO ms", "ONNX Runtime ms"]
    return [
        "## `make demo`",
        f"Scikit-learn's digits at 32 px, {figures['seconds']:.0f} s from a fresh clone to this table.",
        markdown_table(headings, rows),
        made_by('make demo DEMO_ARGS="--json demo.json"', figures),
    ]


def macs50(figures: dict[str, Any]) -> list[str]:
    """Searches under 50 % of the MACs."""
    split, error = figures["reward_split"], figures["standard_error"]
    rows = [
        ["original", percent(split["original"]), percent(figures["original"]), ""],
        ["uniform", percent(split["uniform"]), percent(figures["uniform"]), ""],
    ]
    for name in ("random", "ddpg"):
        for seed, (reward, test) in enumerate(zip(split.get(name, []), figures.get(name, []), strict=True)):
            seconds, threads = figures["evaluation_seconds"][name][seed], figures["threads"][name][seed]
            rows.append(
                [f"{name}, seed {seed}", percent(reward), percent(test), f"{seconds:.0f} ({threads})"]
            )
        if figures.get(name):
            rows.append([f"**{name}, mean**", percent(mean(split[name])), percent(mean(figures[name])), ""])
    return [
        "## ResNet-20, CIFAR-10, 50 % of the MACs, 200 evaluations, no fine-tuning",
        markdown_table(["policy", "reward split", "test split", "evaluation s (threads)"], rows),
        f"Standard error of one accuracy: {error['reward']:.2%} on the reward split, {error['test']:.2%} on "
        "the test split. The weights have seen the images of the reward split in training, so it reads "
        "higher than the test split; it only ranks policies.",
        f"A whole search takes {figures.get('seconds_per_search', math.nan):.0f} s of wall time, start and "
        "test scoring included (the slowest that one call of the runner did whole). Seconds of rows with "
        "different thread counts cannot be compared: such searches shared the machine.",
        *differences(figures),
        made_by(COMMAND + " --part macs50", figures),
    ]


def differences(figures: dict[str, Any]) -> list[str]:
    """DDPG minus random, seed by seed."""
    split = figures["reward_split"]
    pairs = min(len(figures.get("ddpg", [])), len(figures.get("random", [])))
    if not pairs:
        return []
    rows = [
        [
            f"seed {seed}",
            f"{100 * (split['ddpg'][seed] - split['random'][seed]):+.2f}",
            f"{100 * (figures['ddpg'][seed] - figures['random'][seed]):+.2f}",
        ]
        for seed in range(pairs)
    ]
    return [
        "Paired differences, DDPG minus random, in points:",
        markdown_table(["", "reward split", "test split"], rows),
    ]


def latency(figures: dict[str, Any]) -> list[str]:
    """The search for the fastest network."""
    accuracy, milliseconds = figures["test_accuracy"], figures["milliseconds"]
    labels = {"original": "original fp32", "int8": "int8, all channels", "agent": "agent"}
    rows = [
        [
            labels[name],
            percent(accuracy[name]),
            f"{milliseconds[name]:.3f}",
            f"{milliseconds['original'] / milliseconds[name]:.2f}x",
        ]
        for name in labels
    ]
    return [
        f"## ResNet-20, CIFAR-10, fastest within a drop, {figures['evaluations']} evaluations, un-tuned",
        markdown_table(["network", "test accuracy of the file", "ms", "speed-up"], rows),
        f"Measured in the same rounds on {figures['target']}, one thread, batch 1; the agent's network has "
        f"{figures['macs_fraction']:.1%} of the MACs, is {figures['speedup_over_int8']:.2f}x as fast as int8 "
        f"with all channels, and loses {100 * figures['accuracy_drop']:.2f} points. "
        f"The search allowed {figures['max_drop_on_reward_split']} points on the reward split and took "
        f"{figures['evaluation_seconds']:.0f} s of evaluations.",
        made_by(COMMAND + " --part latency", figures),
    ]

"""The commands that belong to a run, derived from its settings and not from what once was typed."""

import shlex
from dataclasses import fields
from pathlib import Path
from typing import Any

from agents.export import EXPORT_FOLDER, ORIGINAL_FILE
from agents.run_config import RunConfig, SourceConfig
from amc.export.model import FLOAT_FILE, INT8_FILE
from amc.plugins import is_import_path
from amc.policy import CompressionPolicy
from amc.quantization.registry import activation_quantizer, weight_quantizer

ONNX_TARGETS = ("openvino", "onnxruntime")
"""Targets that read ONNX; for others the file is scored in the second of them."""
DEPLOYED = (
    "import numpy as np, onnxruntime as ort; net = ort.InferenceSession({file!r}); x = net.get_inputs()[0]; "
    "image = np.zeros([n if isinstance(n, int) else 1 for n in x.shape], np.float32); "
    "print(net.run(None, {{x.name: image}})[0])"
)
"""What a program does with the exported file; the image is one normalised as in training."""


def train_command(config: RunConfig, name: str, runs: Path) -> str | None:
    """The command that starts the same search as `runs/name`; None if it was given Python objects.

    Only settings that differ from their defaults are written out.
    """
    if config.source.weights is None and not is_import_path(config.source.model):
        return None
    words = ["python", "scripts/train_agent.py", "--runs", str(runs), "--name", name]
    default = RunConfig()
    for part in fields(config):
        settings, defaults = getattr(config, part.name), getattr(default, part.name)
        for field in fields(settings):
            value = getattr(settings, field.name)
            if value != getattr(defaults, field.name):
                words += _option(field.name.replace("_", "-"), value)
    return shlex.join(words)


def _option(name: str, value: Any) -> list[str]:
    if isinstance(value, bool):
        return [f"--{name}" if value else f"--no-{name}"]
    return [f"--{name}", *(str(each) for each in (value if isinstance(value, tuple) else (value,)))]


def commands(
    config: RunConfig, folder: Path, policy: CompressionPolicy | None = None
) -> list[tuple[str, str]]:
    """What one may want to do with a run: what for, and the command.

    Args:
        config: the run's settings.
        folder: the run directory, as commands should name it.
        policy: the one that will be exported, which decides on the name of the file to deploy.
    """
    run = shlex.quote(str(folder))
    more = 2 * config.search.evaluations
    again = train_command(config, f"{folder.resolve().name}-again", folder.parent)
    # What a cooled search has divided among its rounds cannot be changed.
    search_on = f"python scripts/train_agent.py --resume {run} --evaluations {more}"
    further = [] if config.cooling.is_on else [("Search on", search_on)]
    repeat = [("Repeat the search in a new directory", again)] if again else []
    return [
        *repeat,
        ("Continue it, if it was interrupted", f"python scripts/train_agent.py --resume {run}"),
        *further,
        ("Fine-tune the best network", f"python scripts/fine_tune.py --run {run}"),
        ("Write the network, the policy and the actor", f"python scripts/export_policy.py --run {run}"),
        *_deployment(config, folder / EXPORT_FOLDER, policy, known_data=again is not None),
        ("Look at all curves", f"tensorboard --logdir {shlex.quote(str(folder.parent))}"),
        ("Write this page again", f"python scripts/report.py {run}"),
    ]


def _deployment(
    config: RunConfig, export: Path, policy: CompressionPolicy | None, known_data: bool
) -> list[tuple[str, str]]:
    """What to do with the exported files: score, time and run them.

    Args:
        known_data: whether a command line can name the images.
    """
    file = export / (INT8_FILE if policy is not None and _has_integers(config, policy) else FLOAT_FILE)
    data = _data_options(config.source) if known_data else []
    wanted = config.problem.target
    runtime = wanted if wanted in ONNX_TARGETS else ONNX_TARGETS[1]
    files = ["--file", str(file), "--reference", str(export / ORIGINAL_FILE)]
    evaluate = ["python", "scripts/evaluate.py", *files, "--target", runtime, *data]
    benchmark = ["python", "scripts/benchmark.py", str(export), "--target", wanted, *data]
    scored = [("Score the exported file in its runtime", shlex.join(evaluate))]
    return [
        *(scored if known_data else []),
        ("Measure it beside the original, in fresh processes", shlex.join(benchmark)),
        ("Deploy it: what a program does with the file", shlex.join(["python", "-c", _program(file)])),
    ]


def _program(file: Path) -> str:
    return DEPLOYED.format(file=str(file))


def _has_integers(config: RunConfig, policy: CompressionPolicy) -> bool:
    """Whether an int8 file will be written: something is quantized, to codes that are integers."""
    names = config.problem.quantizers
    kinds = {
        "weight_bits": weight_quantizer(names.weights),
        "activation_bits": activation_quantizer(names.activations),
    }
    return any(
        kind.integer_codes and any(bits != 32 for bits in policy.values(knob).values())
        for knob, kind in kinds.items()
    )


def _data_options(source: SourceConfig) -> list[str]:
    """The options that name the images; the first always, as it has another default elsewhere."""
    words, default = ["--data", source.data], SourceConfig()
    for name in ("data_root", "side", "task"):
        if getattr(source, name) != getattr(default, name):
            words += _option(name.replace("_", "-"), getattr(source, name))
    return words

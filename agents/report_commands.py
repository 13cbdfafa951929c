"""The commands that belong to a run, derived from its settings and not from what once was typed."""

import shlex
from dataclasses import fields
from pathlib import Path
from typing import Any

from agents.run_config import RunConfig
from amc.plugins import is_import_path


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


def commands(config: RunConfig, folder: Path) -> list[tuple[str, str]]:
    """What one may want to do with a run: what for, and the command.

    Args:
        config: the run's settings.
        folder: the run directory, as commands should name it.
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
        ("Look at all curves", f"tensorboard --logdir {shlex.quote(str(folder.parent))}"),
        ("Write this page again", f"python scripts/report.py {run}"),
    ]

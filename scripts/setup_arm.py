"""Prepare the target `arm-instructions`: LiteRT for ARM in an emulator that counts instructions."""

import sys
import time
from dataclasses import dataclass
from pathlib import Path

if not __package__:  # started as a file: Python then looks in scripts/ and not in the folder above it
    sys.path[0] = str(Path(__file__).resolve().parents[1])

from rich.console import Console

from amc.targets.arm.installation import Installation
from amc.targets.arm.preparation import Preparation, check_host
from amc.targets.arm.target import default_installation
from scripts.cli import console
from scripts.cli import run as run_script


@dataclass(frozen=True)
class SetupArm:
    """Options of the preparation."""

    out: Path | None = None
    """Directory to prepare; arm in AMC's cache directory by default, where the target looks for it."""
    mirror: str = "http://deb.debian.org/debian"
    """Debian mirror to download from; its packages are checked by Debian's signature."""
    dry_run: bool = False
    """Explain every step and do nothing."""


def main(options: SetupArm) -> None:
    """Prepare the target arm-instructions from Debian and PyPI packages, and explain what is done."""
    target = Installation(options.out.resolve()) if options.out else default_installation()
    out = Console(soft_wrap=True, highlight=False)
    if not options.dry_run:
        if target.is_ready():
            out.print(f"Everything is prepared in {target.path}; nothing to do.")
            return
        check_host(target)
    start = time.monotonic()
    preparation = Preparation(target, options.mirror)
    try:
        prepare(preparation, out, dry_run=options.dry_run)
    finally:
        preparation.discard()
    if not options.dry_run:
        out.print(
            f"Prepared in {target.path}: {size_mb(target.path):.0f} MB, {time.monotonic() - start:.0f} s."
        )


def prepare(preparation: Preparation, out: Console, *, dry_run: bool) -> None:
    """Explain the steps and, unless it is a dry run, do them."""
    steps = preparation.steps()
    for number, step in enumerate(steps, start=1):
        out.print(f"[bold]{number}/{len(steps)} {step.title}[/bold]\n    {step.explanation}")
        if not dry_run:
            start = time.monotonic()
            with console().status(step.title):
                step.act()
            out.print(f"    Done in {time.monotonic() - start:.1f} s.")


def size_mb(folder: Path) -> float:
    """Megabytes of the files in a folder, each link left out."""
    return sum(p.stat().st_size for p in folder.rglob("*") if p.is_file() and not p.is_symlink()) / 1e6


if __name__ == "__main__":
    run_script(main)

"""What a target gains from fewer channels and fewer bits: measured, printed, plotted and remembered."""

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

if not __package__:  # started as a file: Python then looks in scripts/ and not in the folder above it
    sys.path[0] = str(Path(__file__).resolve().parents[1])

from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from amc.errors import UserError
from amc.files import write_atomically, write_json
from amc.targets import Profile, Target, describe_machine, get_target
from amc.targets.profiling import FULL_WIDTHS, WIDTHS, calibrate, remember
from scripts.cli import console, run
from scripts.profile_page import caption, curve_table, profile_png, sentences
from scripts.progress import print_table


@dataclass(frozen=True)
class ProfileTarget:
    """Options of the calibration."""

    target: str = "openvino"
    """Runtime: openvino, onnxruntime, litert, arm-instructions, arm-instructions-a53, or
    package.module:factory."""
    out: Path = Path()
    """Existing folder for profile_<target>.json and profile_<target>.png."""
    force: bool = False
    """Replace the files of an earlier calibration."""
    full: bool = False
    """Measure more widths, up to 96 channels, which takes about twice as long."""


def main(options: ProfileTarget) -> None:
    """What a target gains from fewer channels and fewer bits: measured, printed, plotted and remembered."""
    with get_target(options.target) as target:
        files = [options.out / f"profile_{target.name}{suffix}" for suffix in (".json", ".png")]
        check(files, options)
        profile = measure(target, options.full)
        page, drawing = describe(target, profile), profile_png(profile, target)
        show(target, profile)
    write_json(files[0], page)
    write_atomically(files[1], drawing)
    print(*files, sep="\n")


def check(files: list[Path], options: ProfileTarget) -> None:
    """Refuse before any work what could not be written after it.

    Raises:
        UserError: there is no such folder, or a file would be replaced unasked.
    """
    if not options.out.is_dir():
        raise UserError(f"There is no folder {options.out} to write {files[0].name} to.")
    for file in files:
        if file.exists() and not options.force:
            raise UserError(f"{file} exists: pass --force to replace it, or another --out.")


def measure(target: Target, full: bool) -> Profile:
    """Calibrate beside a progress bar; from now on the target's users find this profile."""
    columns = (TextColumn(f"calibrating {target.name}"), BarColumn(), MofNCompleteColumn())
    with Progress(*columns, TimeRemainingColumn(), console=console()) as progress:
        bar = progress.add_task("", total=None)
        profile = calibrate(
            target,
            FULL_WIDTHS if full else WIDTHS,
            lambda done, total: progress.update(bar, completed=done, total=total),
        )
    remember(target, profile)
    return profile


def describe(target: Target, profile: Profile) -> dict[str, Any]:
    """The profile with what it depends on, as JSON types."""
    origin = {"target": target.name, "runtime": target.runtime_version, "machine": describe_machine()}
    return {**origin, "unit": target.unit, "weight_bits_at_8": target.weight_bits_exact, **profile.to_json()}


def show(target: Target, profile: Profile) -> None:
    """Print the table and what they come to."""
    print_table(curve_table(profile, target))
    print(caption(target))
    for sentence in sentences(profile, target):
        print(sentence)


if __name__ == "__main__":
    run(main)

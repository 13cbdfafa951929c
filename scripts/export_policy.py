"""Write what a run found as files: policy, compressed weights, ONNX and the trained actor."""

import sys
from dataclasses import dataclass
from pathlib import Path

if not __package__:  # started as a file: Python then looks in scripts/ and not in the folder above it
    sys.path[0] = str(Path(__file__).resolve().parents[1])

from agents.export import EXPORT_FOLDER, ExportedRun, export_run
from agents.run import load_run
from amc.errors import UserError
from amc.package import file_bytes
from amc.policy import CompressionPolicy
from scripts.cli import run as run_script
from scripts.low_bits import low_bits_note


@dataclass(frozen=True)
class ExportPolicy:
    """Options of the export."""

    run: Path
    """Run directory of a search."""
    policy: Path | None = None
    """Policy file to export; the run's best by default."""
    out: Path | None = None
    """Folder to write to; export in the run directory by default."""
    force: bool = False
    """Replace an earlier export."""


def main(options: ExportPolicy) -> None:
    """Write what a run found as files: policy, compressed weights, ONNX and the trained actor."""
    folder = options.out or options.run / EXPORT_FOLDER
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())) and not options.force:
        raise UserError(f"{folder} is not empty: pass --force to replace what it holds, or another --out.")
    policy = CompressionPolicy.load(options.policy) if options.policy else None
    run = load_run(options.run)
    try:
        show(export_run(run, policy, folder))
    finally:
        run.problem.close()


def show(exported: ExportedRun) -> None:
    """Print every file, and how the ONNX files compare with the network in torch."""
    for file in exported.files:
        for runtime, figures in file.agreement.items():
            print(
                f"{file.path.name} in {runtime}: decides like PyTorch in {figures.same_decisions:.2%} of the "
                f"cases, largest difference {figures.relative_error:.1e} of the largest output "
                f"({file.verdict})"
            )
        if file.unsupported:
            print(f"note: {file.unsupported} is not ours to export, so torch.onnx wrote {file.path.name}.")
    for path in exported.paths:
        print(f"{path} ({path.stat().st_size / 1000:,.1f} kB)")
    header, numbers = file_bytes(exported.weights)
    print(f"{exported.weights.name}: {numbers:,} bytes of numbers, its size, behind a header of {header:,}.")
    note = low_bits_note(exported.policy.values("weight_bits").values())
    if note is not None:
        print(note)


if __name__ == "__main__":
    run_script(main)

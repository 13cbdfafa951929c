"""Write what a run found as files: policy, compressed weights, ONNX and the trained actor."""

import sys
from dataclasses import dataclass
from pathlib import Path

if not __package__:  # started as a file: Python then looks in scripts/ and not in the folder above it
    sys.path[0] = str(Path(__file__).resolve().parents[1])

from torch import nn

from agents.actor_file import ACTOR_FILE, CONTRACT_FILE, CRITIC_FILE
from agents.export import EXPORT_FOLDER, ExportedRun, export_run
from agents.run import Run, load_run
from amc.errors import UserError
from amc.package import file_bytes
from amc.policy import CompressionPolicy
from amc.quantization.kmeans import KmeansWeightQuantizer, huffman_bytes
from amc.quantization.modules import QuantizedConv2d, QuantizedLinear
from scripts.cli import run as run_script
from scripts.low_bits import low_bits_note


@dataclass(frozen=True)
class ExportPolicy:
    """Options of the export."""

    run: Path
    """Run directory of a search."""
    policy: Path | None = None
    """Policy file to export; the run's best by default."""
    budget: tuple[str, ...] = ()
    """Export what the trained actor decides under these budgets, such as macs=0.43, without any search; after
    a training on a range of budgets these may lie anywhere in it."""
    out: Path | None = None
    """Folder to write to; export in the run directory by default."""
    actor: bool = False
    """Write only the trained actor: actor.onnx, its critic and the contract of what they observe, with which
    apply_agent.py compresses other networks."""
    force: bool = False
    """Replace an earlier export."""


def main(options: ExportPolicy) -> None:
    """Write what a run found as files: policy, compressed weights, ONNX and the trained actor."""
    folder = options.out or options.run / EXPORT_FOLDER
    check_free(folder, options.force)
    if sum((bool(options.policy), bool(options.budget), options.actor)) > 1:
        raise UserError("--policy, --budget and --actor each say what to export: give one of them.")
    policy = CompressionPolicy.load(options.policy) if options.policy else None
    # stable-baselines3, which whoever shares `show` needs not have
    from agents.actor import policy_under

    run = load_run(options.run)
    try:
        if options.actor:
            show_actor(run, folder)
            return
        if options.budget:
            policy = policy_under(run, options.budget)
        show(export_run(run, policy, folder))
    finally:
        run.problem.close()


def check_free(folder: Path, force: bool) -> None:
    """Refuse to mix an export with what a folder holds already.

    Raises:
        UserError: the folder is not empty.
    """
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())) and not force:
        raise UserError(f"{folder} is not empty: pass --force to replace what it holds, or another --out.")


def show_actor(run: Run, folder: Path) -> None:
    """Write the actor alone, and print its files.

    Raises:
        UserError: the run's searcher has no actor.
    """
    from agents.actor import export_actor

    path = export_actor(run, folder)
    if path is None:
        raise UserError(f"The searcher {run.algorithm} has no actor that could be exported.")
    for name in (ACTOR_FILE, CRITIC_FILE, CONTRACT_FILE):
        print(f"{folder / name} ({(folder / name).stat().st_size / 1000:,.1f} kB)")


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
    coded = huffman_coded(exported.model)
    if coded is not None:
        plain, shorter = coded
        print(f"Huffman-coded, the {plain:,} bytes of its k-means codes and codebooks would be {shorter:,}.")
    for sentence in exported.notes:
        print(f"note: {sentence}")
    note = low_bits_note(exported.policy.values("weight_bits").values())
    if note is not None:
        print(note)


def huffman_coded(model: nn.Module) -> tuple[int, int] | None:
    """Bytes of all k-means codes with their codebooks, as stored and Huffman-coded; None without any."""
    layers = [part for part in model.modules() if isinstance(part, QuantizedConv2d | QuantizedLinear)]
    coded = [
        layer.quantizer.quantize(layer.weight)
        for layer in layers
        if isinstance(layer.quantizer, KmeansWeightQuantizer)
    ]
    if not coded:
        return None
    return sum(each.bytes for each in coded), sum(huffman_bytes(each) for each in coded)


if __name__ == "__main__":
    run_script(main)

"""Everything that a run leaves for deployment: policy, weights, the network's files and the actor."""

from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from torch import fx

from agents.run import Run
from agents.run_config import SourceConfig
from agents.source import SMALL_SIDE
from amc.errors import UserError
from amc.export.model import CheckedFile, export_model, formats_for, write_file
from amc.files import write_json
from amc.package import MODEL_FILE, Architecture, Package, kept_by, save_package
from amc.policy import CompressionPolicy
from amc.tasks import Task, save_own_files
from envs.problem import Problem

EXPORT_FOLDER, FIGURES_FILE, ORIGINAL_FILE = "export", "export.json", "original.onnx"


@dataclass(frozen=True)
class ExportedRun:
    """The files of an export.

    Attributes:
        folder: where they lie.
        policy: the executed policy.
        model: its network, compressed and calibrated.
        originals: the uncompressed network in floats, for comparison; ONNX first, then what the run's target
            reads if that is another format.
        files: the compressed network's files in the same formats, checked against torch.
        weights: the package (`amc.package`).
        actor: the actor's ONNX file; None for a searcher without one.
        own: what the task adds, such as a search index.
        notes: sentences about files that could not be written here.
    """

    folder: Path
    policy: CompressionPolicy
    model: fx.GraphModule
    originals: list[Path]
    files: list[CheckedFile]
    weights: Path
    actor: Path | None
    own: list[Path] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    @property
    def original(self) -> Path:
        """The uncompressed network as ONNX."""
        return self.originals[0]

    @property
    def paths(self) -> list[Path]:
        """Every file that was written, in a sensible order to read about them."""
        written = [*self.originals, *(file.path for file in self.files), self.weights, *self.own]
        return [*written, self.folder / "policy.json", *([self.actor] if self.actor else [])]

    def to_json(self) -> dict[str, Any]:
        """What the export's figures file holds."""
        return {"policy": self.policy.digest(), "files": [file.to_json() for file in self.files]}


def export_run(run: Run, policy: CompressionPolicy | None = None, folder: Path | None = None) -> ExportedRun:
    """Export a policy of a run: the best one, into `export/` in the run directory, by default.

    Args:
        run: the run.
        policy: another policy of the same network.
        folder: where to write; is made if it does not exist.

    Raises:
        UserError: the run has no policy yet, the policy belongs to another network, or the folder cannot
            be written to.
    """
    from agents.actor import export_actor  # needs stable-baselines3, unlike the files of a network

    chosen, folder = policy or run.best_policy, folder or run.folder / EXPORT_FOLDER
    exported = export_network(run.problem, chosen, folder, architecture_of(run))
    # The actors of a search in rounds know the networks of their rounds, and not the original.
    actor = None if run.config.cooling.is_on else export_actor(run, folder)
    return replace(exported, actor=actor)


def export_network(
    problem: Problem, chosen: CompressionPolicy, folder: Path, architecture: Architecture
) -> ExportedRun:
    """Write the files of one policy's network: package, policy, and what its target and ONNX runtimes read.

    Args:
        problem: what is compressed.
        chosen: the policy.
        folder: where to write; is made if it does not exist.
        architecture: how the original is built.

    Raises:
        UserError: the policy belongs to another network, or the folder cannot be written to.
    """
    network, evaluator, task = problem.network, problem.evaluator, problem.task
    model = evaluator.compressed(chosen).cpu()
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"The folder {folder} cannot be made: {error.strerror}.") from error
    formats = formats_for(problem.target.file_suffix)
    originals = [(folder / ORIGINAL_FILE).with_suffix(suffix) for suffix in formats]
    for path in originals:
        write_file(network.module, network.example, path)
    lost = task.score(network.copy(), "test") - task.score(model, "test")
    files = export_model(
        model,
        folder,
        task.data.normalised("test"),
        calibration=[batch.cpu() for batch in evaluator.calibration],
        drop=lost,
        policy_digest=chosen.digest(),
        formats=formats,
        agree=task.agreement,
    )
    kept = kept_by(evaluator.compressors, network, chosen)
    save_package(folder, Package(model, chosen, kept, architecture), network)
    own, notes = save_own_files(task, model, folder)
    weights = folder / MODEL_FILE
    exported = ExportedRun(folder, chosen, model, originals, files, weights, None, own, notes)
    write_json(folder / FIGURES_FILE, exported.to_json())
    return exported


def architecture_of(run: Run) -> Architecture:
    """How the original of a run is built."""
    return architecture_from(run.config.source, run.task)


def architecture_from(source: SourceConfig, task: Task) -> Architecture:
    """How the network that a configuration names is built for a task's data."""
    data = task.data
    small = data.shape[1] <= SMALL_SIDE
    return Architecture(source.model, data.classes, data.shape, source.width, small)

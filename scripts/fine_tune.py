"""Fine-tune the best network of a run, taught by the original, and export it."""

import sys
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import TypeVar

if not __package__:  # started as a file: Python then looks in scripts/ and not in the folder above it
    sys.path[0] = str(Path(__file__).resolve().parents[1])

from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table
from torch import Tensor, fx, nn

from agents.export import architecture_of
from agents.report_stages import TUNED_FILE, TUNED_FOLDER
from agents.run import Run, load_run
from amc.errors import UserError
from amc.export.check import InRuntime
from amc.export.model import CheckedFile, export_model, formats_for
from amc.files import write_json
from amc.package import MODEL_FILE, Package, kept_by, save_package
from amc.policy import CompressionPolicy
from amc.precision import Precision, arithmetic
from amc.quantization.training_memory import SavedActivations, TrainingMemory, training_memory
from amc.recovery.fine_tune import DEFAULT_RECIPE, REFIT_EVERY, Distillation, fine_tune, settle_statistics
from amc.tasks import Task, save_own_files, score_and_further
from amc.training import Epoch, Recipe
from amc.training_checkpoint import load_checkpoint, save_checkpoint
from scripts.cli import console
from scripts.cli import run as run_script
from scripts.few_labels_tuning import FewLabelsOptions, Place, tune_with_few_labels
from scripts.mimic_tuning import Imitation, Lesson, check_imitation, lesson
from scripts.progress import print_table

CHECKPOINT_FILE = "checkpoint.safetensors"
# What may differ between an interrupted fine-tuning and the one that continues it.
FREE_TO_CHANGE = {"run", "out", "force", "resume", "few"}
# The options of a fine-tuning that a training on few labels has too.
SHARED_WITH_FEW_LABELS = {"out", "seed", "force", "resume", "few", "precision"}
FEW_LABELS_FOLDER = Path("runs/few_labels")
FAILURES = {
    "failed": "computes something else than the network in PyTorch: do not deploy it",
    "reported": "is too far from the original's accuracy for a bound on its agreement",
}


@dataclass(frozen=True)
class FineTune:
    """Options of the fine-tuning."""

    run: Path | None = None
    """Run directory of a search; its best policy is fine-tuned. Not with --labels."""
    out: Path | None = None
    """Folder to write to; fine_tuned in the run directory by default, with --labels runs/few_labels."""
    epochs: int = DEFAULT_RECIPE.epochs
    """Passes over the training images."""
    batch_size: int = DEFAULT_RECIPE.batch_size
    """Images a step."""
    lr: float = DEFAULT_RECIPE.lr
    """Peak learning rate, reached after 15 % of the steps and lowered along a cosine."""
    weight_decay: float = DEFAULT_RECIPE.weight_decay
    """L2 penalty on all weights."""
    temperature: float = Distillation.temperature
    """Softens the outputs of teacher and student before they are compared."""
    alpha: float | None = None
    """Share of the teacher in the loss; the labels have the rest. With 0 there is no teacher. By default 0.9,
    and 0 for a task without logits that could be softened."""
    mimic: Imitation = "none"
    """What a detector imitates of the original besides learning its labels: nothing (none), features on the
    labelled boxes (mimic), or the quantized ones through its own quantized features (quantized)."""
    refit_every: int = REFIT_EVERY
    """Steps after which the scales of quantized weights are fitted anew."""
    float_epochs: int = 0
    """Epochs at the start that quantize nothing, which take about half as long; the others quantize."""
    views: int = 0
    """Augmented versions of the training images, taken in turn, so that the teacher sees each only once; 0
    makes a new one for every epoch."""
    precision: Precision = "auto"
    """Arithmetic of the training: float32, bfloat16, or auto, which is bfloat16 on a CPU with instructions
    for it: up to twice as fast there."""
    saved_activations: SavedActivations = "float"
    """What a step keeps of activations until its backward pass: all (float), or 3 bits and the largest 2 % in
    16 (value-aware; relu-aware needs a little less), which saves memory and takes longer."""
    seed: int = 0
    """Order of images, augmentation."""
    force: bool = False
    """Overwrite what an earlier fine-tuning wrote, and an unfinished one."""
    resume: bool = False
    """Continue from the checkpoint that is written after every epoch."""
    few: FewLabelsOptions = field(default_factory=FewLabelsOptions)

    @property
    def folder(self) -> Path:
        """The folder to write to."""
        if self.out is not None:
            return self.out
        return FEW_LABELS_FOLDER if self.run is None else self.run / TUNED_FOLDER

    @property
    def checkpoint(self) -> Path:
        """What an interrupted fine-tuning leaves."""
        return self.folder / CHECKPOINT_FILE

    def settings(self, policy: CompressionPolicy) -> dict[str, object]:
        """What a continued fine-tuning must share with the interrupted one."""
        chosen = {key: value for key, value in asdict(self).items() if key not in FREE_TO_CHANGE}
        return {**chosen, "policy": policy.digest()}

    @property
    def memory(self) -> TrainingMemory | None:
        """What stores activations in fewer bits, if anything does."""
        return training_memory(self.saved_activations, self.precision)

    @property
    def distillation(self) -> Distillation:
        """How the original teaches."""
        return Distillation(self.temperature, Distillation.alpha if self.alpha is None else self.alpha)

    @property
    def recipe(self) -> Recipe:
        """The part that the training loop wants to know."""
        return Recipe(
            epochs=self.epochs,
            batch_size=self.batch_size,
            lr=self.lr,
            weight_decay=self.weight_decay,
            views=self.views,
            seed=self.seed,
        )


Options = TypeVar("Options", bound=FineTune)


def main(options: FineTune) -> None:
    """Fine-tune the best network of a run, taught by the original; or train a network on few labels."""
    if options.few.labels is not None:
        check_few_labels(options)
        place = Place(options.folder, options.seed, options.force, options.resume)
        tune_with_few_labels(options.few, place, options.precision)
    elif options.run is None:
        raise UserError("Pass --run FOLDER, the run to fine-tune, or --labels N to train on few labels.")
    elif options.few.changed():
        raise UserError(f"{options.few.changed()[0]} belongs to --labels, a training on few labels.")
    else:
        tune_run(options, options.run)


def check_few_labels(options: FineTune) -> None:
    """Refuse what a training on few labels does not know.

    Raises:
        UserError: a run was named, whose policy and teacher have seen labels, or an option has no meaning.
    """
    if options.run is not None:
        raise UserError(
            "The policy of a run has been judged with more labels than --labels gives: pass --model and "
            "--width in the place of --run."
        )
    names = (each.name for each in fields(FineTune) if each.name not in SHARED_WITH_FEW_LABELS)
    given = [name for name in names if getattr(options, name) != getattr(FineTune(), name)]
    if given:
        raise UserError(f"--{given[0].replace('_', '-')} has no meaning with --labels.")


def tune_run(options: FineTune, folder: Path) -> None:
    """Fine-tune the best network of a run."""
    # What makes no sense is refused before the data are read.
    recipe, _, _ = options.recipe, options.distillation, options.memory
    check_output(options)
    run = load_run(folder)
    try:
        check_imitation(run.task, options.mimic)
        options = decided(options, run)
        tune(run, run.best_policy, options, recipe, options.distillation)
    except KeyboardInterrupt:
        kept = options.checkpoint.exists()
        raise KeyboardInterrupt("; repeat the command with --resume to go on" if kept else "") from None
    finally:
        run.problem.close()


def decided(options: Options, run: Run) -> Options:
    """The options with what they leave to the task and to the machine: the teacher's share, the arithmetic.

    A checkpoint says what "auto" was, which another machine may take for something else.
    """
    rounds = options.memory is None and run.task.distillable
    precision = arithmetic(options.precision if rounds else "float32", run.evaluator.device)
    return replace(options, alpha=teachers_share(run.task, options), precision=precision)


def teachers_share(task: Task, options: FineTune) -> float:
    """The share of the teacher that was asked for, or what the task allows.

    Raises:
        UserError: a share was asked for, and the task's outputs cannot be softened.
    """
    if task.distillable:
        return options.distillation.alpha
    if options.alpha:
        raise UserError(
            f"Only a classifier's logits [N, classes] can be distilled: use --alpha 0 for {task.name}."
        )
    if options.alpha is None and options.mimic == "none":
        print(f"note: {task.name} has no logits that a teacher could soften, so the labels alone teach.")
    return 0.0


def check_output(options: FineTune) -> None:
    """Refuse before any work what would replace something, or has nothing to go on from."""
    package = options.folder / MODEL_FILE
    if package.exists() and not options.force:
        raise UserError(f"{package} exists already: pass --force to overwrite it, or another --out.")
    if options.checkpoint.exists() and not (options.force or options.resume):
        raise UserError(
            f"{options.checkpoint} is an unfinished fine-tuning: pass --resume, or --force to restart."
        )
    if options.resume and not options.checkpoint.is_file():
        raise UserError(f"There is no {options.checkpoint} to resume from.")


def tune(
    run: Run, policy: CompressionPolicy, options: FineTune, recipe: Recipe, distillation: Distillation
) -> None:
    """Compress, train, save, export and report."""
    device = run.evaluator.device
    teacher, model = run.network.copy().to(device), run.evaluator.compressed(policy)
    scores = {"original": score(run, teacher), "compressed": score(run, model)}
    settings, taught = options.settings(policy), lesson(options.mimic, model, teacher, run.task, options.seed)
    start, momentum = (
        load_checkpoint(options.checkpoint, taught.learner, settings) if options.resume else (0, {})
    )
    try:
        options.folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"The folder {options.folder} cannot be made: {error.strerror}.") from error
    train(run, taught, teacher, options, recipe, distillation, settings, start, momentum)
    settle_statistics(model, run.task, run.evaluator.calibration)
    scores["fine-tuned"], matching = score(run, model), taught.matching(run.task)
    finish(run, policy, model.cpu(), options, scores, matching)


def score(run: Run, model: nn.Module) -> dict[str, float]:
    """Scores on the split that searches use and on the test split, there with what else the task measures."""
    test, further = score_and_further(run.task, model, "test")
    more = {f"test {name}": value for name, value in further.items()}
    return {"reward": run.task.score(model, "reward"), "test": test, **more}


def train(
    run: Run,
    taught: Lesson,
    teacher: nn.Module,
    options: FineTune,
    recipe: Recipe,
    distillation: Distillation,
    settings: dict[str, object],
    start: int,
    momentum: dict[str, Tensor],
) -> None:
    """Run the loop under a progress bar and keep a checkpoint after every epoch."""
    memory = options.memory
    columns = (TextColumn("{task.description}"), BarColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console()) as progress:
        bar = progress.add_task(f"epoch {start + 1}/{recipe.epochs}")

        def on_step(done: int, total: int) -> None:
            progress.update(bar, completed=done, total=total)

        def on_epoch(epoch: Epoch) -> None:
            save_checkpoint(options.checkpoint, taught.learner, epoch, settings)
            text = f"epoch {epoch.number}/{recipe.epochs}, loss {epoch.loss:.3f}, {epoch.seconds:.1f} s"
            progress.update(bar, description=text)

        fine_tune(
            taught.learner,
            teacher,
            run.task,
            recipe,
            distillation,
            task_loss=taught.loss,
            refit_every=options.refit_every,
            float_epochs=options.float_epochs,
            calibration=run.evaluator.calibration,
            precision=options.precision,
            memory=memory,
            start_epoch=start,
            momentum=momentum,
            on_step=on_step,
            on_epoch=on_epoch,
        )
    if memory is not None and memory.bytes:
        print(memory)


def finish(
    run: Run,
    policy: CompressionPolicy,
    model: fx.GraphModule,
    options: FineTune,
    scores: dict[str, dict[str, float]],
    matching: float | None = None,
) -> None:
    """Write package, exported files and figures, and print them; the checkpoint goes last."""
    kept = kept_by(run.evaluator.compressors, run.network, policy)
    save_package(options.folder, Package(model, policy, kept, architecture_of(run)), run.network)
    files = export_model(
        model,
        options.folder,
        run.task.data.normalised("test"),
        calibration=[batch.cpu() for batch in run.evaluator.calibration],
        drop=scores["original"]["test"] - scores["fine-tuned"]["test"],
        policy_digest=policy.digest(),
        formats=formats_for(run.problem.target.file_suffix),
        agree=run.task.agreement,
    )
    own, notes = save_own_files(run.task, model, options.folder)
    figures = {
        "settings": options.settings(policy),
        "score": run.task.score_name,
        "scores": scores,
        "costs": run.evaluator.costs_of(policy),
        "files": [{**file.to_json(), **file_score(run, file)} for file in files],
        **({} if matching is None else {"matching": matching}),
    }
    write_json(options.folder / TUNED_FILE, figures)
    options.checkpoint.unlink(missing_ok=True)
    report(run, options.folder, scores, files)
    for text in (*(f"{path} ({path.stat().st_size / 1000:,.1f} kB)" for path in own), *notes):
        print(text)
    if matching is not None:
        print(f"{matching:.2%} of the quantized features on the test split's boxes are the original's")


def file_score(run: Run, file: CheckedFile) -> dict[str, object]:
    """What an exported file scores on the test split, and in which runtime."""
    wanted = run.problem.target.name
    runtime = wanted if wanted in file.agreement else next(iter(file.agreement))
    return {"runtime": runtime, "test_score": run.task.score(InRuntime(file.path, runtime), "test")}


def report(run: Run, folder: Path, scores: dict[str, dict[str, float]], files: list[CheckedFile]) -> None:
    """Print the scores, and every exported file with what the check of it said."""
    table, known = Table(""), {"reward": "reward-split ", "test": "test "}
    for kind in next(iter(scores.values())):
        table.add_column(known[kind] + run.task.score_name if kind in known else kind, justify="right")
    for name, found in scores.items():
        table.add_row(name, *(f"{value:.2%}" for value in found.values()))
    print_table(table)
    for file in files:
        shares = ((name, figures.same_decisions) for name, figures in file.agreement.items())
        agreement = ", ".join(f"{share:.2%} in {name}" for name, share in shares)
        print(f"{file.path} ({file.size / 1000:,.1f} kB): decides like PyTorch in {agreement}")
        if file.verdict in FAILURES:
            print(f"note: {file.path.name} {FAILURES[file.verdict]}.")
        if file.unsupported:
            print(f"note: {file.unsupported} is not ours to export, so torch.onnx wrote {file.path.name}.")
    print(f"weights, policy and figures in {folder}")


if __name__ == "__main__":
    run_script(main)

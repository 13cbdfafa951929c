"""Prune single weights in stages of falling density, fine-tune after each one, and export the result.

The schedule of AMC (He et al., ECCV 2018): the whole network goes to 50, 35, 25 and 20 % of its weights, and
is tuned at each of them. The densities of the layers keep the proportions that a search under a budget on
`nonzeros` found, and the last stage is the search's policy itself.
"""

import sys
from dataclasses import dataclass, field, fields, replace
from itertools import pairwise
from pathlib import Path
from typing import Any

if not __package__:  # started as a file: Python then looks in scripts/ and not in the folder above it
    sys.path[0] = str(Path(__file__).resolve().parents[1])

from torch import Tensor, fx

from agents.run import Run, load_run
from amc.errors import UserError
from amc.files import read_json, write_json
from amc.policy import CompressionPolicy
from amc.pruning.fine_grained import FULL_DENSITY, prune_weights
from amc.recovery.fine_tune import settle_statistics
from amc.training_checkpoint import load_checkpoint
from scripts.cli import run as run_script
from scripts.fine_tune import FineTune, check_output, decided, finish, score, train
from scripts.mimic_tuning import check_imitation, lesson

BISECTIONS = 40
SCORES_FILE = "scores_of_stages.json"
"""What the stages before an interruption have scored, beside their checkpoints."""


@dataclass(frozen=True)
class PruneIteratively(FineTune):
    """Options; --epochs are those of each stage."""

    run: Path = field()
    """Run directory of a search; its best policy is pruned."""
    stages: tuple[int, ...] = (50, 35, 25)
    """Percent of all weights that are left at each stage, falling; the policy of the run is the last one."""

    def __post_init__(self) -> None:
        """Refuse stages that do not fall.

        Raises:
            UserError: they do not.
        """
        if any(after >= before for before, after in pairwise((FULL_DENSITY, *self.stages, 0))):
            raise UserError(f"--stages must fall from below 100 to above 0, unlike {self.stages}.")

    @property
    def folder(self) -> Path:
        """The folder to write to."""
        return self.out or self.run / "pruned_iteratively"


@dataclass(frozen=True)
class Stage(PruneIteratively):
    """One stage's options, with a checkpoint of its own.

    Attributes:
        density: percent of all weights that are left.
    """

    density: int = FULL_DENSITY

    @property
    def checkpoint(self) -> Path:
        """What the stage leaves, finished or not."""
        return self.folder / f"stage_{self.density}.safetensors"

    def settings(self, policy: CompressionPolicy) -> dict[str, object]:
        """What a continued stage must share with the interrupted one, as JSON gives it back."""
        return {**super().settings(policy), "stages": list(self.stages)}


def main(options: PruneIteratively) -> None:
    """Prune single weights in stages of falling density, fine-tune after each one, and export the result."""
    run = load_run(options.run)
    try:
        check_imitation(run.task, options.mimic)
        options = decided(options, run)
        policy = run.best_policy
        stages = stages_of(options, run, policy)
        check_stages(stages, options)
        prune(run, policy, stages, options)
    except KeyboardInterrupt:
        kept = any(options.folder.glob("stage_*.safetensors"))
        raise KeyboardInterrupt("; repeat the command with --resume to go on" if kept else "") from None
    finally:
        run.problem.close()


def stages_of(options: PruneIteratively, run: Run, policy: CompressionPolicy) -> list[Stage]:
    """The stages in order; the last one is the policy's own density.

    Raises:
        UserError: the policy has no densities, or a stage is not above the last one.
    """
    if not policy.values("density"):
        raise UserError("The policy has no densities: search under a budget such as nonzeros=0.2 first.")
    last = round(overall_density(run, policy))
    if options.stages and options.stages[-1] <= last:
        raise UserError(f"The policy leaves {last} % of the weights, so --stages must end above that.")
    given: dict[str, Any] = {field.name: getattr(options, field.name) for field in fields(options)}
    return [Stage(**given, density=density) for density in (*options.stages, last)]


def overall_density(run: Run, policy: CompressionPolicy) -> float:
    """Percent of the original's weights that a policy leaves."""
    return FULL_DENSITY * run.evaluator.costs_of(policy)["nonzeros"] / run.problem.original_costs["nonzeros"]


def check_stages(stages: list[Stage], options: PruneIteratively) -> None:
    """Refuse before any work what would replace something, or has nothing to go on from."""
    begun = [stage for stage in stages if stage.checkpoint.exists()]
    check_output(begun[-1] if begun else stages[0])
    if options.force and not options.resume:
        (options.folder / SCORES_FILE).unlink(missing_ok=True)
        for stage in begun:
            stage.checkpoint.unlink()


def at_density(run: Run, policy: CompressionPolicy, density: float) -> CompressionPolicy:
    """The policy with all densities raised by one factor, each to 100 % at most, for `density` overall."""

    def scaled(factor: float) -> CompressionPolicy:
        return CompressionPolicy(
            policy.network,
            tuple(
                replace(each, values={**each.values, "density": min(FULL_DENSITY, int(factor * before))})
                if (before := each.values.get("density"))
                else each
                for each in policy.decisions
            ),
        )

    low, high = 1.0, float(FULL_DENSITY)
    for _ in range(BISECTIONS):
        middle = (low + high) / 2
        low, high = (middle, high) if overall_density(run, scaled(middle)) <= density else (low, middle)
    return scaled(low)


def prune(run: Run, policy: CompressionPolicy, stages: list[Stage], options: PruneIteratively) -> None:
    """Go through the stages from wherever they were left, then save, export and report."""
    options.folder.mkdir(parents=True, exist_ok=True)
    teacher = run.network.copy().to(run.evaluator.device)
    policies = [*(at_density(run, policy, stage.density) for stage in stages[:-1]), policy]
    model = run.evaluator.compressed(policies[0])
    taught = lesson(options.mimic, model, teacher, run.task, options.seed)
    scores = {"original": score(run, teacher), **read_scores(options.folder)}
    begun = max((i for i, stage in enumerate(stages) if stage.checkpoint.exists()), default=0)
    for stage, wanted in list(zip(stages, policies, strict=True))[begun:]:
        start, momentum = 0, dict[str, Tensor]()
        settings = stage.settings(policy)
        if stage.checkpoint.exists():
            start, momentum = load_checkpoint(stage.checkpoint, taught.learner, settings)
        prune_weights(model, wanted.values("density"))
        print(f"{overall_density(run, wanted):.1f} % of the weights:", file=sys.stderr)
        train(run, taught, teacher, stage, stage.recipe, stage.distillation, settings, start, momentum)
        scores[f"{stage.density} % tuned"] = score(run, model)
        write_json(options.folder / SCORES_FILE, scores)
    finish_stages(run, policy, model, stages, scores)


def read_scores(folder: Path) -> dict[str, dict[str, float]]:
    """What an interrupted call has scored; empty where nothing was interrupted."""
    path = folder / SCORES_FILE
    stored: Any = read_json(path) if path.exists() else {}
    return dict(stored)


def finish_stages(
    run: Run,
    policy: CompressionPolicy,
    model: fx.GraphModule,
    stages: list[Stage],
    scores: dict[str, dict[str, float]],
) -> None:
    """Settle the statistics, write everything, and only then forget the stages."""
    settle_statistics(model, run.task, run.evaluator.calibration)
    scores["fine-tuned"] = score(run, model)
    finish(run, policy, model.cpu(), stages[-1], scores)
    print("note: no CPU target here runs the network any faster for its zeros.")
    for stage in stages:
        stage.checkpoint.unlink(missing_ok=True)
    (stages[-1].folder / SCORES_FILE).unlink(missing_ok=True)


if __name__ == "__main__":
    run_script(main)

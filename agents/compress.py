"""`compress`: from a trained model to a compressed one in one call."""

import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from torch import fx, nn

from agents.config import AgentConfig, SearchConfig
from agents.final_latency import measure_outcomes
from agents.run import Outcome, Run, start_run
from agents.run_config import RunConfig, SourceConfig
from agents.search import POLICY_FILE, Callback, Ending
from amc.data import ImageData
from amc.policy import CompressionPolicy
from amc.tasks import ClassificationTask
from amc.tasks.base import Task
from envs.problem import ProblemConfig


@dataclass(frozen=True)
class Compressed:
    """What `compress` gives back.

    Attributes:
        policy: the best policy.
        model: its network: compressed, calibrated, in evaluation mode.
        outcomes: original, uniform and best, with their scores and costs.
        ending: why the search ended.
        run: the run, for everything else.
        note: what a person should read about the outcomes; may be "".
    """

    policy: CompressionPolicy
    model: fx.GraphModule
    outcomes: list[Outcome]
    ending: Ending
    run: Run
    note: str = ""


def compress(
    model: nn.Module,
    data: ImageData | Task,
    budget: str | Sequence[str] = "macs=0.5",
    target: str = "openvino",
    *,
    problem: ProblemConfig | None = None,
    agent: AgentConfig | None = None,
    search: SearchConfig | None = None,
    folder: Path | None = None,
    callbacks: Sequence[Callback] = (),
) -> Compressed:
    """Search for the best policy of a trained model and apply it.

    Args:
        model: the trained network; not changed.
        data: images for classification, or any task.
        budget: one budget or several, such as "macs=0.5"; ignored where `problem` is given.
        target: the runtime; ignored where `problem` is given.
        problem, agent, search: all settings, where the defaults do not do.
        folder: run directory; a temporary one by default.
        callbacks: called with each new row of the evaluation log.

    Raises:
        UserError: the model, the data or a setting does not fit.
        KeyboardInterrupt: Ctrl-C; the best policy so far and everything to resume are in the run directory.
    """
    budgets = (budget,) if isinstance(budget, str) else tuple(budget)
    config = RunConfig(
        SourceConfig(model=type(model).__name__),
        problem or ProblemConfig(budget=budgets, target=target),
        agent or AgentConfig(),
        search or SearchConfig(),
    )
    task = ClassificationTask(data) if isinstance(data, ImageData) else data
    folder = folder or Path(tempfile.mkdtemp(prefix="amc-run-"))
    run = start_run(folder, config, model, task)
    try:
        return finish(run, callbacks)
    finally:
        run.problem.target.close()  # its process; it starts another one if the run is used again


def finish(run: Run, callbacks: Sequence[Callback] = ()) -> Compressed:
    """Search to the end of a run's budget, apply the best policy and time what the search led to.

    Raises:
        UserError: the run's directory and its configuration do not fit, or are in use.
        KeyboardInterrupt: Ctrl-C, with a text that says what is saved and how to go on.
    """
    result = run.search(callbacks)
    if result.ending == "interrupted":
        saved = f"the best policy so far is in {run.folder / POLICY_FILE}, " if result.best else ""
        raise KeyboardInterrupt(f"; {saved}continue with --resume {run.folder}")
    policy = run.best_policy
    outcomes, note = measure_outcomes(run, run.outcomes())
    return Compressed(policy, run.evaluator.compressed(policy), outcomes, result.ending, run, note)

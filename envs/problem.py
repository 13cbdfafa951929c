"""`Problem`: one network, what is wanted of it, and how its policies are judged.

The one place where networks, knobs, costs, targets and rewards meet; the environment and the searchers see
only a walk, `evaluate` and a reward.
"""

import copy
import inspect
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

import torch
from torch import nn

from amc.costs.budget import Budget, check_reachable, parse_budget
from amc.costs.latency.predictor import Sample
from amc.costs.latency.sampling import Progress
from amc.costs.symbolic import Cost, original_table, symbolic_costs
from amc.errors import UserError
from amc.evaluate import Evaluator
from amc.network import Network, trace, weights_digest
from amc.policy import CompressionPolicy
from amc.recovery.restate import restate_norms
from amc.scattering import expansion_notes
from amc.space import Space
from amc.targets import Target, get_target
from amc.targets.meter import LatencyMeter
from amc.tasks.base import Task
from envs.budget_range import case_name
from envs.case_walk import CaseWalk
from envs.choices import make_choices, make_evaluator
from envs.latency_budget import Confirmation, LatencyBudget, PredictorFigures, check_unit, make_latency_budget
from envs.own_choices import code_costs
from envs.problem_config import ProblemConfig, is_latency
from envs.reward import LatencyLimit, Reward, goal_reward, least_score, reward_notes
from envs.walk import Walk


@dataclass(frozen=True)
class Baseline:
    """The uncompressed network's figures, on which rewards depend: measured once a run, then kept.

    Attributes:
        score: on the reward split, in [0, 1].
        costs: cost name to absolute value; latency in the target's unit where it was measured.
        samples: the random policies that the latency predictor was fitted to.
    """

    score: float
    costs: dict[str, float] = field(default_factory=dict)
    samples: tuple[Sample, ...] = ()


@dataclass(eq=False)
class Problem:
    """Everything about one compression problem.

    Attributes:
        config: what is wanted.
        task: data, loss and score; its reward split is cut to `reward_images`.
        network, space: the traced network, its batch norms in terms of the calibration images, and its legal
            policies.
        uniform_space: the same policies, the uniform one being their reference.
        target: the runtime.
        costs: what can be bounded step by step; `original_costs` holds the uncompressed network's.
        budgets: what every policy keeps; of a range of budgets the loosest.
        evaluator: scores policies.
        meter: measures latencies where they matter, or None.
        latency: predicts and measures latencies where a budget bounds them, or None.
        original_score: the uncompressed network on the reward split.
        weights: a short name of the weights and statistics that it came with.
        notes: sentences that a person should read before the search.
    """

    config: ProblemConfig
    task: Task
    network: Network
    space: Space
    uniform_space: Space
    target: Target
    costs: dict[str, Cost]
    original_costs: dict[str, float]
    budgets: tuple[Budget, ...]
    evaluator: Evaluator
    original_score: float
    weights: str
    meter: LatencyMeter | None = None
    latency: LatencyBudget | None = None
    notes: tuple[str, ...] = ()

    @property
    def baseline(self) -> Baseline:
        """What a resumed run needs to know of the uncompressed network."""
        samples = self.latency.samples if self.latency else ()
        return Baseline(self.original_score, dict(self.original_costs), tuple(samples))

    @property
    def predictor_figures(self) -> PredictorFigures | None:
        """How well latencies near the budget are predicted; None where no budget bounds them."""
        limits = [budget.limit for budget in self.budgets if budget.cost.name == "latency"]
        return self.latency.figures(min(limits)) if self.latency and limits else None

    @property
    def live(self) -> frozenset[str]:
        """Names of the knobs that an active cost depends on."""
        return self._live_under(self.budgets)

    def walk(self, budgets: Sequence[str] | None = None) -> Walk:
        """A fresh decision process, under the problem's budgets or under others.

        Other budgets leave the problem's knobs alive, so that the action stays what it was, and may bring
        others to life, without which they could be out of reach.

        Raises:
            UserError: a budget cannot be read or reached.
        """
        chosen = self.budgets if budgets is None else self.parse_budgets(budgets)
        progress = chosen[0].cost if chosen else self.costs["macs"]
        live = self.live | self._live_under(chosen)
        keep, observation = self.config.reference_keep, self.config.observation
        return Walk(self.space, chosen, live, progress, keep, observation=observation)

    @property
    def reference_name(self) -> str:
        """What the reference policy is called: "uniform", or "balanced" where widths follow the errors."""
        return "balanced" if self.config.balanced and "width" in self.live else "uniform"

    def uniform_policy(self, budgets: Sequence[str] | None = None) -> CompressionPolicy:
        """The policy with one keep ratio for all layers, under the problem's budgets or under others."""
        walk = self.walk(budgets)
        keep = self.config.reference_keep
        return Walk(self.uniform_space, walk.budgets, self.live, walk.progress, keep).reference_policy()

    @property
    def cases(self) -> dict[str, tuple[str, ...]]:
        """The levels of a range of budgets by name; empty where there is none."""
        levels = self.config.budget_levels if self.config.varies else ()
        return {case_name(level): level for level in levels}

    def training_walk(self, seed: int) -> Walk | CaseWalk:
        """What an agent is trained on: the walk under the problem's budgets, or at all of their levels."""
        walks = {name: self.walk(level) for name, level in self.cases.items()}
        return CaseWalk(walks, seed) if walks else self.walk()

    def parse_budgets(self, texts: Sequence[str]) -> tuple[Budget, ...]:
        """Read budgets and make sure that they can be kept.

        Raises:
            UserError: a budget cannot be read or reached.
        """
        if self.latency is None and any(is_latency(text) for text in texts):
            raise UserError(
                "Latency is measured, and what bounds it step by step is fitted when the problem itself has "
                "a latency budget: give it one, such as latency=0.5."
            )
        check_unit(texts, self.target)
        return read_budgets(texts, self.costs, self.original_costs, self.space)

    def make_reward(self, budgets: Sequence[str] | None = None) -> Reward:
        """The reward of the configured goal, under the problem's budgets or under others.

        Raises:
            UserError: a budget cannot be read or reached.
        """
        reward = goal_reward(self.config, self.original_score, self.original_costs)
        confirmation = self.confirmation(budgets)
        return LatencyLimit(reward, confirmation.limit) if confirmation else reward

    def confirmation(self, budgets: Sequence[str] | None = None) -> Confirmation | None:
        """What measures would-be bests under a latency budget; None where there is none.

        Raises:
            UserError: a budget cannot be read or reached.
        """
        chosen = self.budgets if budgets is None else self.parse_budgets(budgets)
        limits = [budget.limit for budget in chosen if budget.cost.name == "latency"]
        if self.latency is None or not limits:
            return None
        return Confirmation(self.latency, self.latency.kept_below(min(limits)))

    @property
    def least_score(self) -> float:
        """The lowest score that a best policy may have; without a drop to keep to there is none."""
        if self.config.goal != "cost":
            return -math.inf
        return least_score(self.original_score, self.config.max_drop / 100)

    def close(self) -> None:
        """Stop the measuring process."""
        if self.meter is not None:
            self.meter.close()
        self.target.close()

    def _live_under(self, budgets: Sequence[Budget]) -> frozenset[str]:
        live: frozenset[str] = frozenset[str]().union(*(budget.cost.knobs for budget in budgets))
        known = frozenset(knob.name for knob in self.space.knobs)
        if self.config.goal == "cost":
            live |= known if self.config.minimize == "latency" else self.costs[self.config.minimize].knobs
        return live & known


def build_problem(
    model: nn.Module,
    task: Task,
    config: ProblemConfig,
    device: str = "cpu",
    target: Target | None = None,
    baseline: Baseline | None = None,
    progress: Progress = lambda done, total: None,
) -> Problem:
    """Trace a model and set up everything that a search needs.

    Args:
        model: the trained network; not changed.
        task: data, loss and score; not changed.
        config: what is wanted.
        device: where networks are scored; latency is always measured on the CPU target.
        target: the runtime, where it exists already; the configured one by default.
        baseline: the uncompressed network's figures, where they have been measured already.
        progress: hears of the target's calibration and of random policies measured for a latency budget.

    Raises:
        UserError: anything about the model, the data or the configuration does not fit.
    """
    target = target or get_target(config.target)
    target.on_calibration = progress
    check_unit(config.loosest, target)
    task = _with_reward_images(task, config.reward_images)
    network, weights = _traced(model, task, config)
    choices, notes = make_choices(network, task, config, target)
    notes += (*reward_notes(config), *expansion_notes(network.module))
    space = choices.space
    costs, original = _costs(space, config)
    # What does not wait for a measurement is refused before the first one.
    for level in config.budget_levels:
        read_budgets([text for text in level if not is_latency(text)], costs, original, space)
    choices, evaluator = make_evaluator(choices, task, config, dict(costs), device)
    meter, latency = _latency(evaluator, config, target, baseline, progress)
    if meter is not None:
        original["latency"] = meter.original
        notes += _exporter_notes(meter)
    costs |= {} if latency is None else {"latency": latency.cost}
    budgets = [read_budgets(level, costs, original, space) for level in config.budget_levels][-1]
    if latency is not None:
        notes += (latency.note(min(budget.limit for budget in budgets if budget.cost is latency.cost)),)
    return Problem(
        config,
        task,
        network,
        choices.space,
        space,
        target,
        costs,
        original,
        budgets,
        evaluator,
        baseline.score if baseline else task.score(network.copy().to(device), "reward"),
        weights,
        meter=meter,
        latency=latency,
        notes=notes,
    )


def _traced(model: nn.Module, task: Task, config: ProblemConfig) -> tuple[Network, str]:
    """The network, its norms in terms of the calibration images, and a digest of the weights it came with."""
    _check_task(task)
    network = trace(task.traced(model), task.example_input(), config.freeze)
    weights = weights_digest(network.module)
    restate_norms(network.module, task.calibration(config.calibration_images))
    return network, weights


def _check_task(task: Task) -> None:
    """Refuse a task that a fine-tuning would only fail on after the search.

    Raises:
        UserError: its `calibration` cannot be asked for augmented images.
    """
    parameters = inspect.signature(task.calibration).parameters.values()
    if not any(each.name == "augment" or each.kind is each.VAR_KEYWORD for each in parameters):
        raise UserError(
            f"calibration() of {type(task).__name__} lacks the argument augment: it gives images as they are "
            "in use, and with augment=True as they are in training."
        )


def _costs(space: Space, config: ProblemConfig) -> tuple[dict[str, Cost], dict[str, float]]:
    """What is counted without a measurement, and the uncompressed network's figures."""
    costs: dict[str, Cost] = dict(symbolic_costs(space, config.quantizers))
    costs |= code_costs(space, costs, config)
    table = original_table(space.network, space)
    return costs, {name: cost.of(table) for name, cost in costs.items()}


def _latency(
    evaluator: Evaluator, config: ProblemConfig, target: Target, baseline: Baseline | None, progress: Progress
) -> tuple[LatencyMeter | None, LatencyBudget | None]:
    """What measures latencies where they matter, and what predicts them under a latency budget."""
    if "latency" not in config.active_costs:
        return None, None
    known = baseline.costs["latency"] if baseline else None
    meter = LatencyMeter(evaluator.network, target, original=known)
    if not any(is_latency(text) for text in config.loosest):
        evaluator.latency = meter
        return meter, None
    return meter, make_latency_budget(evaluator, meter, baseline.samples if baseline else (), progress)


def read_budgets(
    texts: Sequence[str], costs: Mapping[str, Cost], original: Mapping[str, float], space: Space
) -> tuple[Budget, ...]:
    """Parse budgets and refuse those that cannot be reached.

    Raises:
        UserError: a budget cannot be read or reached.
    """
    budgets = tuple(parse_budget(text, costs, original) for text in texts)
    check_reachable(budgets, space)
    return budgets


def _exporter_notes(meter: LatencyMeter) -> tuple[str, ...]:
    if meter.exported.exporter == "amc":
        return ()
    return (
        f"Our exporter lacks {meter.exported.unsupported}, so torch's writes the files and ONNX Runtime's "
        "own tool quantizes them, to 8 bits throughout.",
    )


def _with_reward_images(task: Task, count: int) -> Task:
    data = task.data
    if len(data.reward) <= count:
        return task
    cut = copy.copy(task)  # the caller's own task keeps all of its images
    cut.data = replace(data, reward=data.reward.take(torch.arange(count)), _normalised={})
    return cut

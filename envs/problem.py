"""`Problem`: one network, what is wanted of it, and how its policies are judged.

The one place where networks, knobs, costs, targets and rewards meet; the environment and the searchers see
only a walk, `evaluate` and a reward.
"""

import copy
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import torch
from torch import nn

from amc.compress import ChannelPruning, Compressor, UniformActivations, UniformWeights
from amc.costs.budget import Budget, check_reachable
from amc.costs.symbolic import SymbolicCost, original_table, symbolic_costs
from amc.evaluate import Evaluator
from amc.knobs import BitsKnob, WidthKnob
from amc.network import Network, trace
from amc.pruning.importance import rank_channels
from amc.pruning.reconstruction import input_moments
from amc.quantization.uniform import NOT_QUANTIZED
from amc.space import Space
from amc.targets import Target, get_target
from amc.targets.meter import LatencyMeter
from amc.tasks.base import Task
from envs.problem_config import ProblemConfig, read_budget
from envs.reward import CostReward, PaperReward, ScoreReward
from envs.walk import Walk

TAYLOR_BATCHES, TAYLOR_BATCH_SIZE = 8, 128


@dataclass(frozen=True)
class Baseline:
    """The uncompressed network's figures, on which rewards depend: measured once a run, then kept.

    Attributes:
        score: on the reward split, in [0, 1].
        costs: cost name to absolute value; latency in milliseconds where it was measured.
    """

    score: float
    costs: dict[str, float] = field(default_factory=dict)


@dataclass(eq=False)
class Problem:
    """Everything about one compression problem.

    Attributes:
        config: what is wanted.
        task: data, loss and score; its reward split is cut to `reward_images`.
        network, space: the traced network and its legal policies.
        target: the runtime.
        costs: closed-form costs; `original_costs` holds the uncompressed network's.
        budgets: what every policy keeps.
        evaluator: scores policies.
        original_score: the uncompressed network on the reward split.
        notes: sentences that a person should read before the search.
    """

    config: ProblemConfig
    task: Task
    network: Network
    space: Space
    target: Target
    costs: dict[str, SymbolicCost]
    original_costs: dict[str, float]
    budgets: tuple[Budget, ...]
    evaluator: Evaluator
    original_score: float
    notes: tuple[str, ...] = ()

    @property
    def baseline(self) -> Baseline:
        """What a resumed run needs to know of the uncompressed network."""
        return Baseline(self.original_score, dict(self.original_costs))

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
        return Walk(self.space, chosen, live, progress, self.config.reference_keep)

    def parse_budgets(self, texts: Sequence[str]) -> tuple[Budget, ...]:
        """Read budgets and make sure that they can be kept.

        Raises:
            UserError: a budget cannot be read or reached.
        """
        return read_budgets(texts, self.costs, self.original_costs, self.space)

    def make_reward(self) -> ScoreReward | CostReward | PaperReward:
        """The reward of the configured goal."""
        if self.config.goal == "accuracy":
            return ScoreReward()
        if self.config.reward == "paper":
            return PaperReward(self.config.minimize)
        original = self.original_costs[self.config.minimize]
        return CostReward(self.config.minimize, original, self.original_score, self.config.max_drop / 100)

    def close(self) -> None:
        """Stop the measuring process."""
        if isinstance(self.evaluator.latency, LatencyMeter):
            self.evaluator.latency.close()
        self.target.close()

    def _live_under(self, budgets: Sequence[Budget]) -> frozenset[str]:
        live = frozenset[str]().union(*(budget.cost.knobs for budget in budgets))
        if self.config.goal == "accuracy":
            return live
        if self.config.minimize == "latency":
            return frozenset(knob.name for knob in self.space.knobs)
        return live | self.costs[self.config.minimize].knobs


def build_problem(
    model: nn.Module,
    task: Task,
    config: ProblemConfig,
    device: str = "cpu",
    target: Target | None = None,
    baseline: Baseline | None = None,
) -> Problem:
    """Trace a model and set up everything that a search needs.

    Args:
        model: the trained network; not changed.
        task: data, loss and score; not changed.
        config: what is wanted.
        device: where networks are scored; latency is always measured on the CPU target.
        target: the runtime, where it exists already; the configured one by default.
        baseline: the uncompressed network's figures, where they have been measured already.

    Raises:
        UserError: anything about the model, the data or the configuration does not fit.
    """
    target = target or get_target(config.target)
    task = _with_reward_images(task, config.reward_images)
    network = trace(task.traced(model), task.example_input(), config.freeze)
    knobs, notes = _knobs(config, network, target)
    space = Space(network, knobs)
    costs = symbolic_costs(space)
    table = original_table(network, space)
    original = {name: cost.of(table) for name, cost in costs.items()}
    budgets = read_budgets(config.budgets, costs, original, space)
    calibration = task.calibration(config.calibration_images)
    moments = input_moments(network, calibration) if config.reconstruct else None
    compressors: list[Compressor] = [
        ChannelPruning(_ranking(network, task, config), knobs[0], moments),
        UniformWeights(knobs[1]),
        UniformActivations(knobs[2]),
    ]
    evaluator = Evaluator(network, space, task, compressors, costs, calibration, None, device)
    if "latency" in config.active_costs:
        meter = LatencyMeter(network, target, original=baseline.costs["latency"] if baseline else None)
        evaluator.latency = meter
        original["latency"] = meter.original
        notes += _exporter_notes(meter)
    score = baseline.score if baseline else task.score(network.copy().to(device), "reward")
    return Problem(config, task, network, space, target, costs, original, budgets, evaluator, score, notes)


def read_budgets(
    texts: Sequence[str], costs: dict[str, SymbolicCost], original: dict[str, float], space: Space
) -> tuple[Budget, ...]:
    """Parse budgets and refuse those that cannot be reached.

    Raises:
        UserError: a budget cannot be read or reached.
    """
    budgets = tuple(read_budget(text, costs, original) for text in texts)
    check_reachable(budgets, space)
    return budgets


def choose_bits(
    config: ProblemConfig, target: Target
) -> tuple[tuple[int, ...], tuple[int, ...], tuple[str, ...]]:
    """Legal bits for weights and activations, and what a person should know about them.

    Bits that nothing depends on stay out: under MACs or parameters alone the network stays in floating
    point; under size the weights have 2 bits up; under bit-operations activations too; under latency there
    is a choice between the target's fast bits and none.
    """
    active = set(config.active_costs)
    fractional = bool(active & {"size", "bops"})
    quantizes = fractional or "latency" in active or any(bits < NOT_QUANTIZED for bits in config.weight_bits)
    # Asking makes the target run a small network, unless it remembers: only where weights are quantized.
    exact = target.weight_bits_exact if quantizes else 8
    weights: tuple[int, ...] = (NOT_QUANTIZED,)
    activations: tuple[int, ...] = (NOT_QUANTIZED,)
    if "latency" in active:
        weights, activations = (exact, NOT_QUANTIZED), (8, NOT_QUANTIZED)
    if fractional:
        weights = tuple(range(2, exact + 1))
        activations = tuple(range(2, 9)) if "bops" in active else (8,)
    return (
        config.weight_bits or weights,
        config.activation_bits or activations,
        _overflow_notes(config, target, exact),
    )


def _overflow_notes(config: ProblemConfig, target: Target, exact: int) -> tuple[str, ...]:
    if exact == 8:
        return ()
    cause = f"{target.name} on this CPU adds pairs of 8-bit products in 16 bits, which overflow"
    if 8 in config.weight_bits:
        return (f"{cause}; with 8-bit weights the exported network may say something else here.",)
    return () if config.weight_bits else (f"{cause}; weights therefore have at most {exact} bits here.",)


def _exporter_notes(meter: LatencyMeter) -> tuple[str, ...]:
    if meter.exported.exporter == "amc":
        return ()
    return (
        f"Our exporter lacks {meter.exported.unsupported}, so torch's writes the files and ONNX Runtime's "
        "own tool quantizes them, to 8 bits throughout.",
    )


def _knobs(
    config: ProblemConfig, network: Network, target: Target
) -> tuple[tuple[WidthKnob, BitsKnob, BitsKnob], tuple[str, ...]]:
    weight_bits, activation_bits, notes = choose_bits(config, target)
    latency = "latency" in config.active_costs
    multiple = config.width_multiple or (target.width_multiple if latency else 1)
    knobs = (
        WidthKnob(multiple, config.min_channels, config.min_keep),
        BitsKnob("weight_bits", network, weight_bits, min(weight_bits) if latency else None),
        BitsKnob("activation_bits", network, activation_bits, min(activation_bits) if latency else None),
    )
    return knobs, notes


def _ranking(network: Network, task: Task, config: ProblemConfig) -> dict[str, torch.Tensor]:
    if config.importance != "taylor":
        return rank_channels(network, config.importance)
    generator = torch.Generator().manual_seed(0)
    batches = task.data.batches("train", TAYLOR_BATCH_SIZE, generator)
    chosen = [batch for batch, _ in zip(batches, range(TAYLOR_BATCHES), strict=False)]
    return rank_channels(network, "taylor", chosen, task.loss)


def _with_reward_images(task: Task, count: int) -> Task:
    data = task.data
    if len(data.reward) <= count:
        return task
    cut = copy.copy(task)  # the caller's own task keeps all of its images
    cut.data = replace(data, reward=data.reward.take(torch.arange(count)), _normalised={})
    return cut

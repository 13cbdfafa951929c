"""`Problem`: one network, what is wanted of it, and how its policies are judged.

The one place where networks, knobs, costs, targets and rewards meet; the environment and the searchers see
only a walk, `evaluate` and a reward.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import nn

from amc.compress import ChannelPruning, Compressor, UniformActivations, UniformWeights
from amc.costs.budget import Budget, check_reachable, parse_budget
from amc.costs.symbolic import ALIASES, SymbolicCost, original_table, symbolic_costs
from amc.errors import UserError
from amc.evaluate import Evaluator
from amc.knobs import BitsKnob, WidthKnob
from amc.network import Network, trace
from amc.pruning.importance import rank_channels
from amc.quantization.uniform import NOT_QUANTIZED
from amc.space import Space
from amc.targets import Target, get_target
from amc.targets.meter import LatencyMeter
from amc.tasks.base import Task
from envs.reward import CostReward, PaperReward, ScoreReward
from envs.walk import Walk

DEFAULT_BUDGET = "macs=0.5"
TAYLOR_BATCHES, TAYLOR_BATCH_SIZE = 8, 128


@dataclass(frozen=True)
class ProblemConfig:
    """What is wanted of the compressed network."""

    goal: Literal["accuracy", "cost"] = "accuracy"
    """accuracy: the best score within the budgets; cost: the smallest cost within --max-drop."""
    budget: tuple[str, ...] = ()
    """Upper limits such as macs=0.5 (of the original's), size=100KB or bops=0.02; several may hold at once.
    Costs: macs (or flops), params, size, bops. With --goal accuracy and no budget: macs=0.5."""
    minimize: Literal["latency", "macs", "params", "size", "bops"] = "latency"
    """The cost that --goal cost makes small; latency is measured for every policy on --target."""
    max_drop: float = 1.0
    """Largest loss of score, in points, that --goal cost accepts before fine-tuning."""
    reward: Literal["default", "paper"] = "default"
    """The reward of --goal cost: default, or the paper's -error x log(cost)."""
    target: str = "openvino"
    """Runtime that the network is for: openvino, onnxruntime, or package.module:factory."""
    width_multiple: int | None = None
    """Channel counts are multiples of this; the target's where latency counts, otherwise 1."""
    min_channels: int = 1
    """No layer keeps fewer output channels than this."""
    min_keep: float = 0.1
    """No layer keeps a smaller share of its output channels than this."""
    freeze: tuple[str, ...] = ()
    """Layers whose output channels are never pruned, as shell patterns: 'layer1.*'."""
    importance: Literal["l1", "l2", "bn", "taylor"] = "l2"
    """Which channels go first: those of small weights (l1, l2), batch-norm scale (bn), or effect (taylor)."""
    weight_bits: tuple[int, ...] = ()
    """Bits to choose from for weights, 2 to 8, or 32 for none; by default what the goal depends on."""
    activation_bits: tuple[int, ...] = ()
    """Bits to choose from for activations, 2 to 8, or 32 for none."""
    reward_images: int = 2000
    """Images of the reward split that score each policy."""
    calibration_images: int = 1000
    """Unlabeled training images for batch-norm statistics and activation ranges."""

    def __post_init__(self) -> None:
        """Check what does not need the network.

        Raises:
            UserError: a value makes no sense.
        """
        if self.max_drop < 0:
            raise UserError(f"--max-drop is a loss in points and cannot be {self.max_drop}.")
        if min(self.reward_images, self.calibration_images) < 1:
            raise UserError("--reward-images and --calibration-images must be at least 1.")
        if self.reward == "paper" and self.goal != "cost":
            raise UserError("--reward paper weighs error against cost; it needs --goal cost.")

    @property
    def budgets(self) -> tuple[str, ...]:
        """The budgets in force."""
        return self.budget or ((DEFAULT_BUDGET,) if self.goal == "accuracy" else ())

    @property
    def active_costs(self) -> tuple[str, ...]:
        """Names of the costs that matter: budgeted or minimised."""
        budgeted = tuple(text.split("=")[0].strip().lower() for text in self.budgets)
        return (*budgeted, self.minimize) if self.goal == "cost" else budgeted


@dataclass(eq=False)
class Problem:
    """Everything about one compression problem.

    Attributes:
        config: what is wanted.
        task: data, loss and score; its reward split is cut to `reward_images`.
        network, space: the traced network and its legal policies.
        target: the runtime, already checked.
        costs: closed-form costs; `original_costs` holds the uncompressed network's.
        budgets: what every policy keeps.
        live: knobs that an active cost depends on.
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
    live: frozenset[str]
    evaluator: Evaluator
    original_score: float
    notes: tuple[str, ...] = ()

    def walk(self, budgets: Sequence[str] | None = None) -> Walk:
        """A fresh decision process, under the problem's budgets or under others.

        Raises:
            UserError: a budget cannot be read or reached.
        """
        chosen = self.budgets if budgets is None else self.parse_budgets(budgets)
        progress = chosen[0].cost if chosen else self.costs["macs"]
        return Walk(self.space, chosen, self.live, progress)

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


def build_problem(model: nn.Module, task: Task, config: ProblemConfig, device: str = "cpu") -> Problem:
    """Trace a model and set up everything that a search needs.

    Args:
        model: the trained network; not changed.
        task: data, loss and score.
        config: what is wanted.
        device: where networks are scored; latency is always measured on the CPU target.

    Raises:
        UserError: anything about the model, the data or the configuration does not fit.
    """
    target = get_target(config.target)
    task = _with_reward_images(task, config.reward_images)
    network = trace(task.traced(model), task.example_input(), config.freeze)
    weight_bits, activation_bits, notes = choose_bits(config, target)
    knobs = _knobs(config, network, target, weight_bits, activation_bits)
    space = Space(network, knobs)
    costs = symbolic_costs(space)
    table = original_table(network, space)
    original = {name: cost.of(table) for name, cost in costs.items()}
    budgets = read_budgets(config.budgets, costs, original, space)
    compressors: list[Compressor] = [
        ChannelPruning(_ranking(network, task, config), knobs[0]),
        UniformWeights(knobs[1]),
        UniformActivations(knobs[2]),
    ]
    calibration = task.calibration(config.calibration_images)
    evaluator = Evaluator(network, space, task, compressors, costs, calibration, None, device)
    if "latency" in config.active_costs:
        meter = LatencyMeter(network, target)
        evaluator.latency = meter
        original["latency"] = meter.original_ms
    score = task.score(network.copy().to(device), "reward")
    live = _live_knobs(config, costs)
    return Problem(
        config, task, network, space, target, costs, original, budgets, live, evaluator, score, notes
    )


def read_budgets(
    texts: Sequence[str], costs: dict[str, SymbolicCost], original: dict[str, float], space: Space
) -> tuple[Budget, ...]:
    """Parse budgets and refuse those that cannot be reached.

    Raises:
        UserError: a budget cannot be read or reached.
    """
    for text in texts:
        if text.strip().lower().startswith("latency"):
            raise UserError(
                "Latency is measured, not computed, so it cannot bound a policy step by step; use "
                "--goal cost --minimize latency, which makes it as small as --max-drop allows."
            )
    budgets = tuple(parse_budget(text, costs, original) for text in texts)
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
    exact = target.weight_bits_exact
    notes: tuple[str, ...] = ()
    if exact < 8:
        notes = (
            f"{target.name} on this CPU adds pairs of 8-bit products in 16 bits, which overflow; weights "
            f"therefore have at most {exact} bits here.",
        )
    active = set(config.active_costs)
    fractional = tuple(range(2, exact + 1))
    weights: tuple[int, ...] = (NOT_QUANTIZED,)
    activations: tuple[int, ...] = (NOT_QUANTIZED,)
    if "latency" in active:
        weights, activations = (exact, NOT_QUANTIZED), (8, NOT_QUANTIZED)
    if active & {"size", "bops"}:
        weights = fractional
        activations = tuple(range(2, 9)) if "bops" in active else (8,)
    return config.weight_bits or weights, config.activation_bits or activations, notes


def _knobs(
    config: ProblemConfig,
    network: Network,
    target: Target,
    weight_bits: Sequence[int],
    activation_bits: Sequence[int],
) -> tuple[WidthKnob, BitsKnob, BitsKnob]:
    latency = "latency" in config.active_costs
    multiple = config.width_multiple or (target.width_multiple if latency else 1)
    return (
        WidthKnob(multiple, config.min_channels, config.min_keep),
        BitsKnob("weight_bits", network, weight_bits, min(weight_bits) if latency else None),
        BitsKnob("activation_bits", network, activation_bits, min(activation_bits) if latency else None),
    )


def _live_knobs(config: ProblemConfig, costs: dict[str, SymbolicCost]) -> frozenset[str]:
    every = frozenset({"width", "weight_bits", "activation_bits"})
    names = [ALIASES.get(name, name) for name in config.active_costs]
    return frozenset().union(*(every if name == "latency" else costs[name].knobs for name in names))


def _ranking(network: Network, task: Task, config: ProblemConfig) -> dict[str, torch.Tensor]:
    if config.importance != "taylor":
        return rank_channels(network, config.importance)
    generator = torch.Generator().manual_seed(0)
    batches = task.data.batches("train", TAYLOR_BATCH_SIZE, generator)
    chosen = [batch for batch, _ in zip(batches, range(TAYLOR_BATCHES), strict=False)]
    return rank_channels(network, "taylor", chosen, task.loss)


def _with_reward_images(task: Task, count: int) -> Task:
    data = task.data
    if len(data.reward) > count:
        part = data.reward.take(torch.arange(count))
        task.data = replace(data, reward=part, _normalised={})
    return task

"""`ProblemConfig`: what is wanted of the compressed network, in the words of the command line."""

from dataclasses import dataclass
from typing import Any, Literal

from amc.costs.budget import parse_budget
from amc.costs.symbolic import ALIASES, KNOBS_OF
from amc.decomposition.registry import get_operator
from amc.errors import UserError
from amc.knobs import BITS, WidthKnob
from amc.precision import Precision
from amc.quantization.registry import QuantizerNames, activation_quantizer, weight_quantizer
from envs.budget_range import is_range, spread

DEFAULT_BUDGET = "macs=0.5"

Reference = Literal["auto", "balanced", "uniform"]
Reconstruct = Literal["none", "symmetric", "asymmetric"]


@dataclass(frozen=True)
class ProblemConfig:
    """What is wanted of the compressed network."""

    goal: Literal["accuracy", "cost"] = "accuracy"
    """accuracy: the best score within the budgets; cost: the smallest cost within --max-drop."""
    budget: tuple[str, ...] = ()
    """Upper limits such as macs=0.5 (of the original's), size=100KB or bops=0.02; several may hold at once.
    Costs: macs (or flops), params, size, bops, latency on --target (latency=0.25 or latency=1.5ms), and
    nonzeros (weights that are not zero: single weights go, which makes nothing faster); for --task retrieval
    code=24 (bits of a code) and storage=100KB (network and --database). With --goal accuracy and no budget:
    macs=0.5. A range such as macs=0.2..0.8 trains one agent for all budgets in it, at --levels of them in
    turn."""
    levels: int = 13
    """Budgets that a range is spread over, both ends included; each has a reference policy and a best one."""
    minimize: Literal["latency", "macs", "params", "size", "bops"] = "latency"
    """The cost that --goal cost makes small; latency is measured for every policy on --target."""
    max_drop: float = 1.0
    """Largest loss of score on the reward split, in points, that --goal cost accepts before fine-tuning: the
    best policy is the smallest within it, or the most accurate of all if none is."""
    reference_keep: float = 0.9
    """Fraction of the reference policy, around which the search starts, where no budget bounds the widths."""
    reward: Literal["default", "paper", "share"] = "default"
    """The reward: default; with --goal cost also the paper's -error x log(cost); with --goal accuracy also
    the share that is won back of what the reference policy loses, as a range of budgets and several networks
    have it."""
    target: str = "openvino"
    """Runtime that the network is for: openvino, onnxruntime, litert, arm-instructions (an emulated
    Cortex-A76), arm-instructions-a53, or package.module:factory."""
    width_multiple: int | None = None
    """Channel counts are multiples of this; the target's where latency counts, otherwise 1."""
    min_channels: int = 1
    """No layer keeps fewer output channels than this."""
    min_keep: float = 0.1
    """No layer keeps a smaller share of its output channels than this."""
    min_widths: tuple[str, ...] = ()
    """Layers that keep at least so many output channels, whatever their share: conv1=8."""
    drop_blocks: bool = False
    """Let whole residual blocks be left out: a runtime pays for every layer, however thin it is."""
    reference_depth: float = 1.0
    """Share of the residual blocks that the reference policy keeps, those that change their input most."""
    operators: tuple[str, ...] = ()
    """What may replace a layer, as the agent chooses: filter-groups, clustered-kernels (under size only),
    channel-svd, spatial-svd, additive-codes (of large linear layers, under size only), or your own as
    package.module:Class; none by default."""
    freeze: tuple[str, ...] = ()
    """Layers whose output channels are never pruned, as shell patterns: 'layer1.*'."""
    importance: Literal["obs", "l1", "l2", "bn", "taylor"] = "obs"
    """Which channels go first: those that the layers behind can make up for (obs, the Optimal Brain Surgeon
    on unlabeled images), or those of small weights (l1, l2), batch-norm scale (bn), or effect (taylor)."""
    reference: Reference = "auto"
    """Where searches start and rewards count from: at about the same predicted error in all layers, with bits
    where they buy most (balanced, which needs --importance obs and no --operators), or at one keep ratio and
    the same bits for all (uniform); by default at whichever scores better."""
    reconstruct: Reconstruct = "asymmetric"
    """Refit the kept weights of every layer that loses inputs, by least squares on unlabeled images: to its
    inputs in the original network (symmetric), or to those that the compressed network gives it (asymmetric,
    the default, which takes longer for every policy and loses far less: layers also make up for others in
    front that are replaced, or whose weights are quantized)."""
    observation: Literal["positions", "summary"] = "positions"
    """What the agent sees of its decisions: those of every layer of this network (positions), or a summary of
    the same size for all networks (summary), with which an agent can go on to other networks."""
    weight_bits: tuple[int, ...] = ()
    """Bits to choose from for weights, 2 to 8, or 32 for none; by default what the goal depends on."""
    activation_bits: tuple[int, ...] = ()
    """Bits to choose from for activations, 2 to 8, or 32 for none; by default what the goal depends on."""
    weight_quantizer: str = "uniform"
    """How weights are quantized: uniform, max-abs, label-free, label-free-power, lq, value-aware, kmeans;
    value-aware:0.01 keeps 1 % of the values in 16 bits instead of 2 %."""
    activation_quantizer: str = "uniform"
    """How activations are quantized: uniform, label-free, lq or value-aware (value-aware:0.01, as above)."""
    full_precision: Literal["default", "ends", "none"] = "default"
    """Layers that are never quantized: ends are the first layer and the last linear one, as the paper of lq
    has it; the default is ends with lq and none otherwise."""
    database: int = 0
    """Images whose codes a budget on storage counts besides the network (--task retrieval)."""
    tune_steps: int = 0
    """SGD steps of 64 images, taught by the original, before each policy is scored: where all un-tuned
    networks are near chance, a few dozen tell which ones learn."""
    precision: Precision = "auto"
    """Arithmetic in which classifiers without quantized activations are scored: float32, bfloat16, or auto,
    which is bfloat16 on a CPU with instructions for it, nearly twice as fast. Final scores are in float32."""
    reward_images: int = 2000
    """Images of the reward split that score each policy."""
    calibration_images: int = 1000
    """Unlabeled training images for activation ranges, and for batch-norm statistics where refitting the
    layers has not settled them."""
    final_images: int = 2000
    """Unlabeled training images of 32 x 32 pixels, or fewer larger ones, that the asymmetric reconstruction
    of a network takes that is scored on the test split, fine-tuned or exported; scored for the search, each
    is refitted to 600. 0 keeps the search's."""

    def __post_init__(self) -> None:
        """Check what needs neither network nor data.

        Raises:
            UserError: a value makes no sense.
        """
        if not self.max_drop >= 0:
            raise UserError(f"--max-drop is a loss in points and cannot be {self.max_drop}.")
        if not 0 <= self.reference_depth <= 1:
            raise UserError(f"--reference-depth is a share from 0 to 1, not {self.reference_depth}.")
        if self.reference_depth < 1 and not self.drop_blocks:
            raise UserError("--reference-depth leaves residual blocks out, which needs --drop-blocks.")
        if self.reference == "balanced" and not self._predicts_errors:
            raise UserError(
                "--reference balanced needs the errors that --importance obs predicts, and no --operators."
            )
        if not 0 < self.reference_keep <= 1:
            raise UserError(f"--reference-keep is a share above 0 and at most 1, not {self.reference_keep}.")
        if self.observation not in ("positions", "summary"):
            raise UserError(f"--observation is positions or summary, not {self.observation}.")
        if self.reconstruct not in ("none", "symmetric", "asymmetric"):
            raise UserError(f"--reconstruct is none, symmetric or asymmetric, not {self.reconstruct}.")
        if (self.database > 0) != ("storage" in self.active_costs) or self.database < 0:
            raise UserError(
                "--database says how many codes a budget such as storage=100KB counts: give both."
            )
        _check_operators(self.operators)
        if self.tune_steps < 0:
            raise UserError(f"--tune-steps must be 0 or more, not {self.tune_steps}.")
        if min(self.reward_images, self.calibration_images) < 1:
            raise UserError("--reward-images and --calibration-images must be at least 1.")
        if self.final_images < 0:
            raise UserError(f"--final-images must be 0 or more, not {self.final_images}.")
        _check_reward(self)
        _check_quantizers(self)
        _check_bits("--weight-bits", self.weight_bits)
        _check_bits("--activation-bits", self.activation_bits)
        WidthKnob(1 if self.width_multiple is None else self.width_multiple, self.min_channels, self.min_keep)
        _ = self.least_widths
        _check_budgets(self)

    @property
    def balanced(self) -> bool:
        """Whether the reference policy spreads the error over the layers, and not channels and bits."""
        return self.reference != "uniform" and self._predicts_errors

    @property
    def _predicts_errors(self) -> bool:
        return self.importance == "obs" and not self.operators

    @property
    def least_widths(self) -> dict[str, int]:
        """Layer to the channels that `min_widths` has it keep.

        Raises:
            UserError: a text is no layer and number.
        """
        found = {}
        for text in self.min_widths:
            layer, _, number = text.rpartition("=")
            if not (layer and number.isdecimal()):
                raise UserError(f"--min-widths takes LAYER=CHANNELS, as in conv1=8, and not {text}.")
            found[layer] = int(number)
        return found

    @property
    def quantizers(self) -> QuantizerNames:
        """The names of both quantizers."""
        return QuantizerNames(self.weight_quantizer, self.activation_quantizer)

    @property
    def ends_stay_float(self) -> bool:
        """Whether the first layer and the last linear one are never quantized."""
        paper = "lq" in (self.weight_quantizer, self.activation_quantizer)
        return self.full_precision == "ends" or (self.full_precision == "default" and paper)

    @property
    def budgets(self) -> tuple[str, ...]:
        """What is asked for; may hold ranges."""
        return self.budget or ((DEFAULT_BUDGET,) if self.goal == "accuracy" else ())

    @property
    def budget_levels(self) -> tuple[tuple[str, ...], ...]:
        """The budgets of every level, the tightest first; one level where no budget is a range.

        Raises:
            UserError: a range cannot be read.
        """
        return spread(self.budgets, self.levels)

    @property
    def loosest(self) -> tuple[str, ...]:
        """The budgets in force, of a range the loosest."""
        return self.budget_levels[-1]

    @property
    def varies(self) -> bool:
        """Whether a budget is a range."""
        return any(is_range(text) for text in self.budgets)

    @property
    def shares(self) -> bool:
        """Whether rewards are shares of what the reference policy loses."""
        return self.varies or self.reward == "share"

    @property
    def fractional(self) -> bool:
        """Whether every single bit counts."""
        return bool({"size", "bops", "storage"} & set(self.active_costs))

    @property
    def active_costs(self) -> tuple[str, ...]:
        """Names of the costs that matter: budgeted or minimised; aliases resolved."""
        names = [text.split("=")[0].strip().lower() for text in self.budgets]
        budgeted = tuple(ALIASES.get(name, name) for name in names)
        return (*budgeted, self.minimize) if self.goal == "cost" else budgeted


def _check_reward(config: ProblemConfig) -> None:
    paper = "default" if config.reward == "share" else config.reward
    for option, value in (("--reward paper", paper), (f"--minimize {config.minimize}", config.minimize)):
        if config.goal != "cost" and value not in ("default", "latency"):
            raise UserError(f"{option} says how a cost is made small; it needs --goal cost.")
    if config.goal == "cost" and config.reward == "share":
        raise UserError("--reward share is about the score, and needs --goal accuracy.")


def _check_budgets(config: ProblemConfig) -> None:
    """Only the texts: what a fraction stands for is known with the network."""
    names = (*KNOBS_OF, "code", "storage", "latency")
    nothing: dict[str, Any] = dict.fromkeys(names)
    for text in dict.fromkeys(text for level in config.budget_levels for text in level):
        parse_budget(text, nothing, dict.fromkeys(names, 1.0))
    if config.varies and config.goal != "accuracy":
        raise UserError("A range of budgets looks for the best score at each: it needs --goal accuracy.")


def _check_operators(names: tuple[str, ...]) -> None:
    if len({*names}) < len(names):
        raise UserError(f"--operators names one twice: {', '.join(names)}.")
    for name in names:
        get_operator(name)


def _check_quantizers(config: ProblemConfig) -> None:
    kinds = {
        "--weight-quantizer": weight_quantizer(config.weight_quantizer),
        "--activation-quantizer": activation_quantizer(config.activation_quantizer),
    }
    for option, kind in kinds.items():
        if "latency" in config.active_costs and not kind.integer_codes:
            raise UserError(
                f"{option} {kind.name} gives values that no runtime computes with in integers, so its "
                "latency is that of floats: search under size or bops, or with uniform codes."
            )
    if "nonzeros" in config.active_costs and not weight_quantizer(config.weight_quantizer).keeps_zeros:
        raise UserError(
            f"--weight-quantizer {config.weight_quantizer} has no code for zero, so weights that were pruned "
            "would come back: search under nonzeros with uniform, label-free, value-aware or kmeans codes."
        )


def _check_bits(option: str, bits: tuple[int, ...]) -> None:
    unknown = sorted(set(bits) - set(BITS))
    if unknown:
        raise UserError(f"{option} must be 2 to 8, or 32 for not quantized, not {unknown[0]}.")


def is_latency(text: str) -> bool:
    """Whether a budget bounds the latency."""
    return text.split("=")[0].strip().lower() == "latency"

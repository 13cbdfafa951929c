"""The rows of the quantization results: which there are, their order, and the options that all share."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from agents.config import AgentConfig, SearchConfig
from agents.run_config import RunConfig, SourceConfig
from amc.costs.symbolic import symbolic_costs
from amc.knobs import BITS, BitsKnob, WidthKnob
from amc.network import Network
from amc.quantization.registry import WEIGHT_QUANTIZERS, QuantizerNames
from amc.space import Space
from envs.problem_config import ProblemConfig
from scripts.results_runner import RowOptions

CHOICES = tuple(range(2, 9))
NETWORKS = {"resnet20": "resnet20.th", "resnet56": "resnet56.th"}
MIXED_BUDGETS = ("size3", "size4")
OTHER_BUDGETS = ("bops4", "joint4")
"""Bit-operations of 4-bit weights and activations; bytes of 4-bit weights, spent on bits and on channels."""
MIXED_QUANTIZERS = ("uniform", "label-free", "kmeans")
SEARCHERS = ("uniform", "balanced", "greedy", "random", "ddpg")
CHOICE_BITS = ("2.25", "2.5", "3", "4")
DRAWN = ("random", "ddpg")
MORE_SEEDS = ("1", "2")
UNTRAINED_BITS = ("4", "3", "2")
ACTIVATION_BITS = ("8", "4", "3")
ACTIVATION_QUANTIZERS = ("uniform", "label-free", "value-aware")
OTHER_SHARES = ("value-aware:0", "value-aware:0.01", "value-aware:0.03")
"""Beside the 2 % of large values that value-aware has by default."""
SHARE_BITS = ("4", "3")
ALONE, PAIRED = "compressed alone", "paired with the original"
"""Whose statistics re-normalization looks at."""
AWARE_BITS = ("3", "2")
AWARE_EPOCHS, MIXED_EPOCHS = 15, 5
EVALUATIONS = 100


@dataclass(frozen=True)
class QuantizationResults(RowOptions):
    """Options; rows that the output already has are made again only with --again."""

    only: str = "*"
    """Make the rows whose names match this shell pattern, as in 'mixed/resnet20/size3/*'."""
    out: Path = Path("docs/results/quantization.json")
    """Figures file; every finished row is written at once. Several calls may write to it side by side."""
    runs: Path = Path("runs/quantization")
    """Where the run directories go; interrupted searches and fine-tunings continue."""
    data_root: Path = Path("data")
    """Folder that holds cifar-10-batches-py."""
    weights_20: Path = Path("resnet20.th")
    """The common ResNet-20 weights for CIFAR-10 (91.73 % on the test set)."""
    weights_56: Path = Path("resnet56.th")
    """The common ResNet-56 weights for CIFAR-10 (93.39 % on the test set)."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """Where networks are scored and trained."""
    threads: int = 1
    """CPU threads for scoring and training."""
    evaluations: int = EVALUATIONS
    """Evaluations of each search; greedy may end earlier."""

    def weights(self, network: str) -> Path:
        """The weight file of a network."""
        return self.weights_56 if network == "resnet56" else self.weights_20


@dataclass(frozen=True)
class Spec:
    """One row; fields that mean nothing for its part are empty.

    Attributes:
        part: "error", "memory", "untrained", "paired", "activations", "choice", "aware", "mixed" or "tuned".
        network, quantizer, searcher: by name; the quantizer is that of weights, for "aware" also of inputs,
            for "activations" of inputs alone.
        budget: "size3": the bytes of the uniform quantizer with 3 bits everywhere; bits, for other parts,
            for "choice" those that the bytes come from.
        seed: of the search.
    """

    part: str
    network: str = "resnet20"
    budget: str = ""
    quantizer: str = ""
    searcher: str = ""
    seed: str = ""

    @property
    def name(self) -> str:
        """The row's id."""
        return "/".join(field for field in vars(self).values() if field)

    def to_json(self) -> dict[str, Any]:
        """The fields that mean something."""
        return {name: value for name, value in vars(self).items() if value}


def plan() -> list[Spec]:
    """Every row; the cheap ones and those that the goals are about come first."""
    return [
        *(Spec("error", network) for network in NETWORKS),
        Spec("memory"),
        *(Spec("untrained", "resnet20", bits, name) for bits in UNTRAINED_BITS for name in WEIGHT_QUANTIZERS),
        *(Spec("paired", "resnet20", bits, "uniform") for bits in UNTRAINED_BITS),
        *(
            Spec("activations", "resnet20", bits, name)
            for bits in ACTIVATION_BITS
            for name in ACTIVATION_QUANTIZERS
        ),
        *(
            Spec(part, "resnet20", bits, name)
            for part in ("untrained", "activations")
            for bits in SHARE_BITS
            for name in OTHER_SHARES
        ),
        *(Spec("choice", network, bits) for network in NETWORKS for bits in CHOICE_BITS),
        *mixed("resnet20", MIXED_BUDGETS, MIXED_QUANTIZERS),
        *(
            Spec("tuned", "resnet20", budget, "uniform", who, "0")
            for budget in MIXED_BUDGETS
            for who in SEARCHERS
        ),
        *(Spec("aware", "resnet20", bits, name) for bits in AWARE_BITS for name in ("lq", "uniform")),
        *mixed("resnet56", MIXED_BUDGETS, ("label-free",)),
        *mixed("resnet20", OTHER_BUDGETS, ("uniform",)),
        *(
            Spec("mixed", "resnet20", budget, "uniform", who, seed)
            for seed in MORE_SEEDS
            for budget in MIXED_BUDGETS
            for who in DRAWN
        ),
    ]


def mixed(network: str, budgets: tuple[str, ...], quantizers: tuple[str, ...]) -> list[Spec]:
    """Searches of all searchers with the first seed."""
    return [
        Spec("mixed", network, budget, quantizer, searcher, "0")
        for budget in budgets
        for quantizer in quantizers
        for searcher in SEARCHERS
    ]


def command(options: QuantizationResults, spec: Spec) -> str:
    """What makes a row again, with weights and data where the options expect them."""
    changed = "" if options.evaluations == EVALUATIONS else f" --evaluations {options.evaluations}"
    return f"python -m scripts.quantization_results --only '{spec.name}'{changed}"


def source(options: QuantizationResults, network: str) -> SourceConfig:
    """A network with its weights and data."""
    return SourceConfig(
        network,
        options.weights(network),
        data="cifar10",
        data_root=options.data_root,
        device=options.device,
        threads=options.threads,
    )


def mixed_config(options: QuantizationResults, spec: Spec, network: Network) -> RunConfig:
    """The search of a row."""
    problem = ProblemConfig(
        budget=(f"{budget_cost(spec)}={common_cost(spec, network):.0f}{UNIT[budget_cost(spec)]}",),
        freeze=() if spec.budget.startswith("joint") else ("*",),
        weight_bits=CHOICES,
        activation_bits=CHOICES if spec.budget.startswith("bops") else (8,),
        weight_quantizer=spec.quantizer,
    )
    agent = AgentConfig(algorithm=spec.searcher, seed=int(spec.seed))
    return RunConfig(
        source(options, spec.network), problem, agent, SearchConfig(evaluations=options.evaluations)
    )


UNIT = {"size": "B", "bops": ""}


def budget_cost(spec: Spec) -> str:
    """The cost that a search is bounded by."""
    return "bops" if spec.budget.startswith("bops") else "size"


def common_cost(spec: Spec, network: Network) -> float:
    """What the uniform quantizer costs with the bits that a budget is named after, in all layers."""
    bits = int(spec.budget[-1])
    bits_knobs = [BitsKnob(f"{what}_bits", network, BITS) for what in ("weight", "activation")]
    space = Space(network, [WidthKnob(), *bits_knobs])
    table = space.largest.copy()
    table[:, space.column("weight_bits")] = table[:, space.column("activation_bits")] = bits
    return symbolic_costs(space, QuantizerNames())[budget_cost(spec)].of(table)


def aware_config(options: QuantizationResults, spec: Spec) -> RunConfig:
    """The uniform policy with all channels and given bits, whose fine-tuning is asked for.

    The size that no network exceeds leaves widths to decide, and the uniform policy keeps them all.
    """
    bits = (int(spec.budget),)
    problem = ProblemConfig(
        budget=("size=1.0",),
        weight_bits=bits,
        activation_bits=bits,
        weight_quantizer=spec.quantizer,
        activation_quantizer=spec.quantizer,
        full_precision="ends",
    )
    agent = AgentConfig(algorithm="uniform")
    return RunConfig(source(options, spec.network), problem, agent, SearchConfig(evaluations=1))


def run_folder(options: QuantizationResults, spec: Spec) -> Path:
    """The run directory of a search."""
    return options.runs / spec.name.replace("/", "-")

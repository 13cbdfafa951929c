"""The rows of the latency results: which there are, their order, and the options that all of them share."""

import platform
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from agents.config import AgentConfig, SearchConfig
from agents.run_config import RunConfig, SourceConfig
from amc.targets.machine import cpu_features
from envs.problem_config import ProblemConfig
from scripts.results_runner import RowOptions

NETWORKS = ("resnet20", "resnet56")
SEARCH_TARGETS = ("openvino", "litert")
VARIANTS = ("joint", "uniform", "prune", "int8", "prune-int8", "blocks")
JOINT_BUDGETS = {"resnet20": ("0.3",), "resnet56": ("0.3", "0.2")}
CURVE_BUDGETS = ("0.5", "0.35", "0.25", "0.2")
TUNED_BUDGETS, TUNED_EPOCHS = ("0.35", "0.25", "0.2"), 5
HEADLINES = (
    ("resnet56", "openvino", "0.2", "blocks"),
    ("resnet56", "litert", "0.2"),
    ("resnet56", "litert", "0.2", "blocks"),
    ("resnet56", "litert", "0.125", "blocks"),
    ("resnet56", "openvino", "0.2"),
    ("resnet20", "openvino", "0.2"),
)
HEADLINE_EPOCHS, HEADLINE_PROCESSES = 16, 12
BLOCKS_STEPS = 60
"""Steps of training before each score of a search that may leave blocks out."""
LABELS = {
    "amx_int8": "amx",
    "avx512_vnni": "avx512-vnni",
    "avx_vnni": "avx-vnni",
    "avx512f": "avx512",
    "avx2": "avx2",
    "asimddp": "arm-dotprod",
}
"""CPU features by how much they decide about int8, the best first."""


@dataclass(frozen=True)
class LatencyResults(RowOptions):
    """Options; rows that the output already has are made again only with --again."""

    only: str = "*"
    """Make the rows whose ids match this shell pattern, as in 'joint/resnet56/*'; without @machine too."""
    out: Path = Path("docs/results/latency.json")
    """Figures file; every finished row is written at once."""
    runs: Path = Path("runs/latency")
    """Where the run directories go; interrupted searches and fine-tunings continue."""
    data_root: Path = Path("data")
    """Folder that holds cifar-10-batches-py."""
    weights_20: Path = Path("resnet20.th")
    """The common ResNet-20 weights for CIFAR-10 (option-A shortcuts, 91.73 % on the test set)."""
    weights_56: Path = Path("resnet56.th")
    """The common ResNet-56 weights for CIFAR-10 (option-A shortcuts, 93.39 % on the test set)."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """Where networks are scored and trained; latency is always measured on the CPU."""
    threads: int = 1
    """CPU threads for scoring and training."""
    evaluations: int = 100
    """Evaluations of each search."""
    epochs: int = HEADLINE_EPOCHS
    """Epochs of fine-tuning of the headline's rows."""
    machine: str = ""
    """Label of this machine in the row ids; by default the instruction set that decides about int8."""

    @property
    def label(self) -> str:
        """The machine's label."""
        return self.machine or default_label()

    def weights(self, network: str) -> Path:
        """The weight file of a network."""
        return {"resnet20": self.weights_20, "resnet56": self.weights_56}[network]


@dataclass(frozen=True)
class Spec:
    """One row; fields that mean nothing for its part are empty.

    Attributes:
        part: "predictor", "profile", "joint", "curve", "headline" or "arm".
        network, target: by name.
        budget: fraction of the original's latency, as text.
        variant: of a joint row one of `VARIANTS`; "tuned" for a fine-tuned point of a curve; "blocks" for a
            headline whose search may leave residual blocks out.
    """

    part: str
    network: str = ""
    target: str = ""
    budget: str = ""
    variant: str = ""

    @property
    def name(self) -> str:
        """The row's id without the machine."""
        fields = (self.part, self.network, self.target, self.budget, self.variant)
        return "/".join(field for field in fields if field)

    @property
    def trained(self) -> bool:
        """Whether the row needs trained weights and CIFAR-10."""
        return self.part in ("joint", "curve", "headline")

    def to_json(self) -> dict[str, Any]:
        """The fields that mean something."""
        return {name: value for name, value in vars(self).items() if value}


def plan() -> list[Spec]:
    """Every row; those that others build on and those that the goals are about come first."""
    profiles = [Spec("profile", target=target) for target in ("openvino", "litert", "onnxruntime")]
    ours = [Spec("predictor", network, target) for target in SEARCH_TARGETS for network in NETWORKS]
    others = [Spec("predictor", network, "onnxruntime") for network in NETWORKS]
    mobile = [Spec("predictor", "mobilenet_v2", target) for target in (*SEARCH_TARGETS, "onnxruntime")]
    headlines = [Spec("headline", *row) for row in HEADLINES]
    arm = [Spec("arm", variant="correlation")]
    return [*profiles, *ours, *headlines, *_joint(), *_curves(), *mobile, *others, *arm]


def _joint() -> list[Spec]:
    return [
        Spec("joint", network, target, budget, variant)
        for target in SEARCH_TARGETS
        for network, budgets in JOINT_BUDGETS.items()
        for budget in budgets
        for variant in VARIANTS
    ]


def _curves() -> list[Spec]:
    return [
        Spec("curve", network, target, budget, variant)
        for target in SEARCH_TARGETS
        for variant in ("", "tuned")
        for network in NETWORKS
        for budget in (TUNED_BUDGETS if variant else CURVE_BUDGETS)
    ]


def default_label() -> str:
    """What decides how fast int8 is here."""
    features = cpu_features()
    return next((label for flag, label in LABELS.items() if flag in features), platform.machine())


def command(options: LatencyResults, spec: Spec) -> str:
    """What makes a row again, with the weights and the data where the options expect them."""
    changed = "" if options.evaluations == 100 else f" --evaluations {options.evaluations}"
    if spec.part == "headline" and options.epochs != HEADLINE_EPOCHS:
        changed += f" --epochs {options.epochs}"
    return f"python -m scripts.latency_results --only '{spec.name}'{changed}"


def source(options: LatencyResults, network: str) -> SourceConfig:
    """A network with its standard weights, on CIFAR-10."""
    return SourceConfig(
        network,
        options.weights(network),
        data="cifar10",
        data_root=options.data_root,
        device=options.device,
        threads=options.threads,
    )


def search_config(
    options: LatencyResults, spec: Spec, fraction: float, bits: tuple[int, ...], depth: float = 1.0
) -> RunConfig:
    """A search under a fraction of the original's latency; `bits` for all layers, none for the target's.

    Where blocks may be left out, `depth` is the share of them around which it searches.
    """
    problem = ProblemConfig(
        budget=(f"latency={fraction:g}",), target=spec.target, weight_bits=bits, activation_bits=bits
    )
    if spec.variant == "blocks":
        problem = replace(problem, drop_blocks=True, reference_depth=depth, tune_steps=BLOCKS_STEPS)
    settings = SearchConfig(evaluations=options.evaluations)
    return RunConfig(source(options, spec.network), problem, AgentConfig(seed=0), settings)


def run_folder(options: LatencyResults, spec: Spec, kind: str) -> Path:
    """Where a search of this kind is kept, for all rows that need it."""
    return options.runs / options.label / f"{kind}-{spec.network}-{spec.target}-{spec.budget}"

"""The rows of the operator results: which there are, and the searches behind them."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from agents.config import AgentConfig, SearchConfig
from agents.run_config import RunConfig, SourceConfig
from amc.decomposition.filter_groups import FilterGroups
from envs.problem_config import ProblemConfig
from scripts.results_runner import RowOptions

CHOICE, FIXED, TUNED = "choice", "fixed", "tuned"
CLUSTERS, SCATTERING, SECONDS = "clusters", "scattering", "seconds"
NETWORKS = ("resnet56", "vgg16")
SEEDS = (0, 1, 2)
EVALUATIONS, EPOCHS = 100, 15
BUDGETS = {"macs": "macs=0.4", "size": "size=0.08", "latency": "latency=0.3"}
FRACTIONS = (0.5, 0.25)
JOINT, PRUNING = "joint", "pruning"
ALONE = {
    "macs": ("filter-groups",),
    "size": ("filter-groups", "clustered-kernels"),
    "latency": ("filter-groups",),
}
BY_DEPTH = "filter-groups-by-depth"
"""More groups the deeper a layer lies, as the paper argues."""
METHODS = (PRUNING, "filter-groups", BY_DEPTH, "channel-svd", "spatial-svd")
CODEBOOKS = ((32, 8), (64, 1), (256, 1))
"""Centroids and poses of one codebook for a whole network."""
FRONTS, SCALES, IMAGES = ("scattering", "strided"), (2, 3), ("cifar10", "voc-crops")
"""What reads the pixels, J, and the data of the scattering rows: 32 and 64 pixels."""
SCATTERED = "agent"
"""Arm of the hybrid that the agent compresses."""


@dataclass(frozen=True)
class OperatorResults(RowOptions):
    """Options; rows that the output already has are made again only with --again."""

    only: str = "*"
    """Make the rows whose names match this shell pattern, as in 'choice/resnet56/macs/*'."""
    out: Path = Path("docs/results/operators.json")
    """Figures file; the page lies beside it. Every finished row is written at once."""
    runs: Path = Path("runs/operators")
    """Where the run directories go; interrupted searches and fine-tunings continue."""
    data_root: Path = Path("data")
    """Folder that holds cifar-10-batches-py."""
    resnet20: Path = Path("resnet20.th")
    """The common ResNet-20 weights for CIFAR-10."""
    resnet56: Path = Path("resnet56.th")
    """The common ResNet-56 weights for CIFAR-10."""
    voc_root: Path = Path("data")
    """Folder of BCCD in VOC's layout, whose cells are the scattering rows' images of 64 pixels."""
    vgg16: Path = Path("docs/weights/vgg16-quarter.safetensors")
    """VGG-16-BN trained by scripts/pretrain.py."""
    vgg16_width: float = 0.25
    """Multiplier of its channel counts."""
    target: str = "openvino"
    """Runtime that milliseconds are measured in."""
    evaluations: int = EVALUATIONS
    """Evaluations of each search."""
    epochs: int = EPOCHS
    """Passes over the training images after a fixed compression."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """Where networks are scored and trained."""
    threads: int = 1
    """CPU threads for scoring and training."""

    def weights(self, network: str) -> Path:
        """The weight file of a network; a KeyError for one that its row trains itself."""
        return {"resnet20": self.resnet20, "resnet56": self.resnet56, "vgg16": self.vgg16}[network]


@dataclass(frozen=True)
class Spec:
    """One row.

    Attributes:
        part: "choice", "fixed", "tuned" (a fixed compression after fine-tuning), "clusters", "scattering" or
            "seconds".
        network: by name.
        setting: the bounded cost of a choice or of the evaluations that are timed, the share of MACs of a
            fixed compression, the codebook's "centroids x poses", the images of a scattering row.
        arm: what may replace layers; `SCATTERED` where the agent compresses a hybrid.
        seed: of a search, as text.
    """

    part: str
    network: str
    setting: str
    arm: str = ""
    seed: str = ""

    @property
    def name(self) -> str:
        """The row's id."""
        return "/".join(value for value in vars(self).values() if value)

    def to_json(self) -> dict[str, Any]:
        """The fields that mean something."""
        return {name: value for name, value in vars(self).items() if value}


def plan() -> list[Spec]:
    """Every row; the quickest come first, and the seeds of all arms before the next seed."""
    books = [Spec(CLUSTERS, "resnet20", f"{k}x{poses}") for k, poses in CODEBOOKS]
    fixed = [
        Spec(part, network, str(share), arm)
        for part, networks in ((FIXED, NETWORKS), (TUNED, NETWORKS[::-1]))  # VGG trains several times faster
        for network in networks
        for share in FRACTIONS
        for arm in METHODS
    ]
    choices = [
        Spec(CHOICE, network, cost, arm, str(seed))
        for network in NETWORKS
        for cost in BUDGETS
        for seed in SEEDS
        for arm in (JOINT, PRUNING, *ALONE[cost])
    ]
    seconds = [Spec(SECONDS, network, "size") for network in NETWORKS]
    return [*books, *seconds, *fixed, *scattering_plan(), *choices]


def scattering_plan() -> list[Spec]:
    """Every hybrid and its twin, and one hybrid that the agent compresses."""
    pairs = [
        Spec(SCATTERING, f"{front}_resnet_j{scales}", images)
        for images in IMAGES
        for scales in SCALES
        for front in FRONTS
    ]
    return [*pairs, Spec(SCATTERING, "scattering_resnet_j3", "cifar10", SCATTERED)]


def source(options: OperatorResults, network: str) -> SourceConfig:
    """The trained network and its data."""
    return SourceConfig(
        network,
        options.weights(network),
        width=options.vgg16_width if network == "vgg16" else 1.0,
        data="cifar10",
        data_root=options.data_root,
        device=options.device,
        threads=options.threads,
    )


def configuration(options: OperatorResults, spec: Spec) -> RunConfig:
    """The search of a row; a fixed compression is the uniform policy alone."""
    fixed = spec.part in (FIXED, TUNED)
    budget = f"macs={spec.setting}" if fixed else BUDGETS[spec.setting]
    known = {JOINT: ALONE.get(spec.setting, ()), PRUNING: (), BY_DEPTH: (FilterGroups.name,)}
    operators = known.get(spec.arm, (spec.arm,))
    keep = ProblemConfig().min_keep if spec.arm in (JOINT, PRUNING) else 1.0
    # By default a search without operators starts from a better policy, which would be all that one sees.
    problem = ProblemConfig(
        budget=(budget,),
        target=options.target,
        operators=operators,
        min_keep=keep,
        reference="uniform",
    )
    if fixed:
        return RunConfig(
            source(options, spec.network),
            problem,
            AgentConfig(algorithm="uniform"),
            SearchConfig(evaluations=1),
        )
    agent, search = AgentConfig(seed=int(spec.seed)), SearchConfig(evaluations=options.evaluations)
    return RunConfig(source(options, spec.network), problem, agent, search)


def run_folder(options: OperatorResults, spec: Spec) -> Path:
    """The run directory of a row."""
    return options.runs / spec.name.replace("/", "-")

"""The rows of the search results: which there are, their order, and the options that all of them share."""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from agents.config import AgentConfig, SearchConfig
from agents.run_config import RunConfig, SourceConfig
from envs.problem_config import ProblemConfig
from scripts.results_runner import RowOptions

VARIANTS: dict[str, dict[str, Any]] = {
    "l2": {"importance": "l2", "reconstruct": "symmetric"},
    "none": {"reconstruct": "none"},
    "symmetric": {"reconstruct": "symmetric"},
}
"""What else a search may differ by from the default, to fields of its problem."""
WITHOUT: dict[str, dict[str, dict[str, Any]]] = {
    "unscreened": {"agent": {"candidates": 1}},
    "uniform-start": {"problem": {"reference": "uniform"}},
}
"""What the agent can do without, one part of it a time, to fields of its settings or of its problem."""
WITHOUT_SEEDS = {
    "resnet20": ("0", "1", "2", "3", "4"),
    "resnet56": ("0", "1", "2"),
    "vgg16-quarter": ("0", "1"),
}
"""Networks on which that is measured, to the seeds; the table plans each of these with the defaults, too."""
RANKED = ("resnet20", "resnet56", "vgg16-quarter")
"""Networks on which orders of channels are compared."""
BUDGETS = ("0.5", "0.3")
FIXED = ("uniform", "shallow", "deep", "balanced")
"""Searchers that follow a rule: they draw nothing, so one seed says all, and end after few evaluations."""
ONE_SEED = (*FIXED, "greedy")
"""Searchers that draw nothing."""
SEARCHERS = (*FIXED, "random", "evolution", "bayes", "ddpg")
SEEN_SEARCHERS = (*FIXED, "random", "bayes", "ddpg")
"""For the network that costs most."""
SEEDS, FEW_SEEDS, MORE_SEEDS = ("0", "1", "2"), ("0", "1"), ("3", "4")
TUNED = ("uniform", "random", "ddpg")
TUNED_EPOCHS, HEADLINE_EPOCHS = 8, 15
HEADLINE = ("resnet56", "0.5", "ddpg")
REWARDS = ("default", "paper")
"""What leads the searches for the smallest network within a drop."""
SPEED_NETWORKS = ("resnet56", "mobilenet_v1")
SEEN_NETWORKS = ("resnet56", "resnet20")
"""One whose weights know the images of the reward split, and one that has not seen them."""
EVALUATIONS = 200


@dataclass(frozen=True)
class Reference:
    """A trained network of the table.

    Attributes:
        model, width: what `scripts/pretrain.py` was told.
        data, side: what it was trained on.
        seeds: of the searches that come first.
        seen: the weights know the images of the reward split, as those from elsewhere do.
    """

    model: str
    width: float = 1.0
    data: str = "cifar10"
    side: int | None = None
    seeds: tuple[str, ...] = SEEDS
    seen: bool = False


NETWORKS = {
    "resnet20": Reference("resnet20"),
    "resnet56": Reference("resnet56", seen=True),
    "plain20": Reference("plain20", seeds=FEW_SEEDS),
    "vgg16-quarter": Reference("vgg16", width=0.25, seeds=FEW_SEEDS),
    "mobilenet_v2-half": Reference("mobilenet_v2", width=0.5, seeds=FEW_SEEDS),
}


@dataclass(frozen=True)
class SearchResults(RowOptions):
    """Options; rows that the output already has are made again only with --again."""

    only: str = "*"
    """Make the rows whose names match this shell pattern, as in 'table/resnet20/0.5/*'."""
    out: Path = Path("docs/results/search.json")
    """Figures file; every finished row is written at once. Several calls may write to it side by side."""
    runs: Path = Path("runs/search")
    """Where the run directories go; interrupted searches and fine-tunings continue."""
    data_root: Path = Path("data")
    """Folder that holds cifar-10-batches-py."""
    weights_dir: Path = Path("docs/weights")
    """Folder of the weights trained without the reward split."""
    weights_56: Path = Path("resnet56.th")
    """The common ResNet-56 weights for CIFAR-10 (option-A shortcuts, 93.39 % on the test set)."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """Where networks are scored and trained."""
    threads: int = 1
    """CPU threads for scoring and training."""
    evaluations: int = EVALUATIONS
    """Evaluations of each search; the best of the first half of them is reported too."""

    def weights(self, network: str) -> Path:
        """The weight file of a network."""
        return self.weights_56 if NETWORKS[network].seen else self.weights_dir / f"{network}.safetensors"

    @property
    def checkpoints(self) -> tuple[int, int]:
        """Evaluations after which the best policy is reported."""
        return max(1, self.evaluations // 2), self.evaluations


@dataclass(frozen=True)
class Spec:
    """One row; fields that mean nothing for its part are empty.

    Attributes:
        part: "table", "tuned", "headline", "smallest", "fine-grained", "ranking", "seen", "seconds",
            "proxy" or "workers".
        network, searcher: by name.
        budget: fraction of the original's MACs, or of its weights for "fine-grained", as text.
        seed: of the search, as text.
        variant: one of `VARIANTS` or of `WITHOUT`, where it is not the default; for "smallest" one of
            `REWARDS`.
    """

    part: str
    network: str
    budget: str = ""
    searcher: str = ""
    seed: str = ""
    variant: str = ""

    @property
    def name(self) -> str:
        """The row's id."""
        return "/".join(field for field in vars(self).values() if field)

    def to_json(self) -> dict[str, Any]:
        """The fields that mean something."""
        return {name: value for name, value in vars(self).items() if value}


def plan() -> list[Spec]:
    """Every row; those that the goals are about come first."""
    first = [*searches("resnet20"), *searches("resnet56", SEEN_SEARCHERS)]
    headline = Spec("headline", *HEADLINE)
    timed = [
        Spec("seconds", network, variant=kind) for kind in ("", "symmetric") for network in SPEED_NETWORKS
    ]
    speed = [*timed, Spec("workers", "resnet20")]
    later = [row for network in ("plain20", "vgg16-quarter") for row in searches(network)]
    mobile = searches("mobilenet_v2-half", budgets=BUDGETS[:1])
    return [
        *first,
        headline,
        *tuned("resnet20"),
        *tuned("resnet56"),
        *(Spec("smallest", "resnet56", "", "ddpg", SEEDS[0], reward) for reward in REWARDS),
        Spec("fine-grained", "resnet56", "0.2", "ddpg", SEEDS[0]),
        *(Spec("ranking", network) for network in RANKED),
        *(Spec("seen", network) for network in SEEN_NETWORKS),
        *speed,
        *variants("none"),
        Spec("proxy", "resnet20"),
        *later,
        *tuned("plain20"),
        *tuned("vgg16-quarter"),
        *mobile,
        *tuned("mobilenet_v2-half", BUDGETS[:1]),
        *variants("symmetric"),
        *by_weights(),
        *more_seeds(),
        *without(),
    ]


def searches(
    network: str, searchers: tuple[str, ...] = SEARCHERS, budgets: tuple[str, ...] = BUDGETS
) -> list[Spec]:
    """The first searches on a network; a cut leaves whole seeds, whose differences can be paired."""
    return [
        Spec("table", network, budget, searcher, seed)
        for budget in budgets
        for seed in NETWORKS[network].seeds
        for searcher in searchers
        if seed == SEEDS[0] or searcher not in FIXED
    ]


def more_seeds() -> list[Spec]:
    """The last rows: what the blocks before them left out."""
    before = [Spec("table", "resnet56", budget, "evolution", seed) for budget in BUDGETS for seed in SEEDS]
    drawn = [searcher for searcher in SEARCHERS if searcher not in FIXED]
    return before + [
        Spec("table", network, budget, searcher, seed)
        for network in NETWORKS
        for budget in (BUDGETS[:1] if network == "mobilenet_v2-half" else BUDGETS)
        for seed in ((*SEEDS[2:], *MORE_SEEDS) if NETWORKS[network].seeds == FEW_SEEDS else MORE_SEEDS)
        for searcher in drawn
    ]


def tuned(network: str, budgets: tuple[str, ...] = BUDGETS) -> list[Spec]:
    """Fine-tunings of the policies found on a network."""
    return [Spec("tuned", network, budget, searcher) for budget in budgets for searcher in TUNED]


def by_weights() -> list[Spec]:
    """All searches on ResNet-20 once more, the channels ranked by their weights."""
    # The errors behind the balanced policy are those of the other order.
    names = tuple(name for name in SEARCHERS if name != "balanced")
    searched = [replace(spec, variant="l2") for spec in searches("resnet20", names)]
    return searched + [
        Spec("tuned", "resnet20", budget, searcher, variant="l2")
        for budget in BUDGETS
        for searcher in ("uniform", "ddpg")
    ]


def variants(kind: str) -> list[Spec]:
    """The uniform policy and the agent's searches on ResNet-20 once more, with another reconstruction."""
    chosen = [("uniform", SEEDS[0]), *(("ddpg", seed) for seed in SEEDS)]
    return [
        *(Spec("table", "resnet20", budget, *who, kind) for budget in BUDGETS for who in chosen),
        *(
            Spec("tuned", "resnet20", budget, searcher, variant=kind)
            for budget in BUDGETS
            for searcher in ("uniform", "ddpg")
        ),
    ]


def without() -> list[Spec]:
    """The agent's searches once more, each without one of its parts."""
    return [
        Spec("table", network, budget, "ddpg", seed, kind)
        for network, seeds in WITHOUT_SEEDS.items()
        for budget in (BUDGETS if network == "resnet20" else BUDGETS[:1])
        for kind in WITHOUT
        for seed in seeds
    ]


def command(options: SearchResults, spec: Spec) -> str:
    """What makes a row again, with weights and data where the options expect them."""
    changed = "" if options.evaluations == EVALUATIONS else f" --evaluations {options.evaluations}"
    return f"python -m scripts.search_results --only '{spec.name}'{changed}"


def source(options: SearchResults, network: str) -> SourceConfig:
    """A network with its weights and the data that it was trained on."""
    about = NETWORKS[network]
    return SourceConfig(
        about.model,
        options.weights(network),
        width=about.width,
        data=about.data,
        data_root=options.data_root,
        side=about.side,
        device=options.device,
        threads=options.threads,
    )


def search_config(options: SearchResults, spec: Spec) -> RunConfig:
    """The search of a row."""
    missing = WITHOUT.get(spec.variant, {})
    changed = VARIANTS.get(spec.variant, missing.get("problem", {}))
    return RunConfig(
        source(options, spec.network),
        replace(ProblemConfig(budget=(f"macs={spec.budget}",)), **changed),
        replace(AgentConfig(algorithm=spec.searcher, seed=int(spec.seed)), **missing.get("agent", {})),
        SearchConfig(evaluations=options.evaluations),
    )


def run_folder(options: SearchResults, spec: Spec) -> Path:
    """The run directory of a search."""
    return options.runs / spec.name.replace("/", "-")

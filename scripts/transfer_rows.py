"""The rows of the transfer results: which there are, their networks, and the options that they share."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import nn

from agents.config import AgentConfig, SearchConfig
from agents.run_config import RunConfig, SourceConfig
from agents.transfer import general
from amc.errors import UserError
from amc.models.digits import DigitsNet
from amc.models.resnet_cifar import ResNetCifar
from envs.problem_config import ProblemConfig
from scripts.results_runner import RowOptions

LEVEL_BUDGETS = ("0.2", "0.35", "0.5", "0.65", "0.8")
"""Where one agent for every budget is compared with agents for one each."""
RANGE = "macs=0.2..0.8"
LEVELS = ("one", "fifth", "full")
"""One agent of N evaluations on a range; five of N / 5 on a budget each; five of N."""
HOLD_BUDGETS = ("0.2", "0.35")
ADAPTED, SCRATCH = ("0", "10", "50"), ("10", "50", "100")
LITTLE_NOISE = 0.1


@dataclass(frozen=True)
class Group:
    """Networks of one data set. What is held out was chosen before any training, and is not trained on.

    Attributes:
        data, side: what they are trained on.
        training, held_out: names of networks.
        levels: networks of the comparison of levels, with their seeds.
        evaluations: N of the levels.
        training_evaluations: of the agent that is trained on several networks.
        training_range, training_levels: what it draws its budgets from.
        seeds: of the transfer.
    """

    data: str
    side: int | None
    training: tuple[str, ...]
    held_out: tuple[str, ...]
    levels: dict[str, tuple[str, ...]]
    evaluations: int
    training_evaluations: int
    training_range: str
    training_levels: int
    seeds: tuple[str, ...]


GROUPS = {
    "digits": Group(
        "digits",
        16,
        training=("resnet8-half", "plain20-quarter", "digitsnet-half"),
        held_out=("resnet14-half", "digitsnet-three-quarters"),
        levels={"resnet8-half": ("0", "1", "2")},
        evaluations=100,
        training_evaluations=480,
        training_range="macs=0.2..0.5",
        training_levels=4,
        seeds=("0", "1", "2"),
    ),
    "cifar10": Group(
        "cifar10",
        None,
        training=("resnet20", "plain20", "vgg16-quarter"),
        held_out=("resnet56", "mobilenet_v2-half"),
        levels={"resnet20": ("0", "1", "2"), "resnet56": ("0",), "mobilenet_v2-half": ("0",)},
        evaluations=400,
        training_evaluations=600,
        training_range="macs=0.2..0.5",
        training_levels=4,
        seeds=("0",),
    ),
}
SMALL = ("resnet8-half", "plain20-quarter", "digitsnet-half", "resnet14-half", "digitsnet-three-quarters")
"""Networks that the runner trains itself, in a minute each; the factories below build them."""
REGISTERED = {"vgg16-quarter": ("vgg16", 0.25), "mobilenet_v2-half": ("mobilenet_v2", 0.5)}


def resnet8_half(classes: int = 10, in_channels: int = 1) -> nn.Module:
    """Three residual blocks of 8, 16 and 32 channels."""
    return ResNetCifar(1, classes, in_channels, width=0.5)


def plain20_quarter(classes: int = 10, in_channels: int = 1) -> nn.Module:
    """Nineteen plain convolutions of 4, 8 and 16 channels."""
    return ResNetCifar(3, classes, in_channels, residual=False, width=0.25)


def resnet14_half(classes: int = 10, in_channels: int = 1) -> nn.Module:
    """Six residual blocks of 8, 16 and 32 channels."""
    return ResNetCifar(2, classes, in_channels, width=0.5)


def digitsnet_half(classes: int = 10, in_channels: int = 1) -> nn.Module:
    """The demonstration's network at half its width."""
    return DigitsNet(classes, in_channels, 0.5)


def digitsnet_three_quarters(classes: int = 10, in_channels: int = 1) -> nn.Module:
    """The demonstration's network at three quarters of its width."""
    return DigitsNet(classes, in_channels, 0.75)


@dataclass(frozen=True)
class TransferResults(RowOptions):
    """Options; rows that the output already has are made again only with --again."""

    only: str = "*"
    """Make the rows whose names match this shell pattern, as in 'levels/resnet8-half/*'."""
    out: Path = Path("docs/results/transfer.json")
    """Figures file; every finished row is written at once. Several calls may write to it side by side."""
    runs: Path = Path("runs/transfer")
    """Where the run directories and the weights of the small networks go; what was cut continues."""
    data_root: Path = Path("data")
    """Folder that holds cifar-10-batches-py."""
    weights_dir: Path = Path("docs/weights")
    """Folder of the weights of the CIFAR-10 networks, NAME.safetensors."""
    threads: int = 1
    """CPU threads for scoring and training."""

    def weights(self, network: str) -> Path:
        """The weight file of a network."""
        folder = self.runs / "weights" if network in SMALL else self.weights_dir
        return folder / f"{network}.safetensors"


@dataclass(frozen=True)
class Spec:
    """One row; fields that mean nothing for its part are empty.

    Attributes:
        part: "levels" or "transfer".
        network: by name.
        how: of `LEVELS`, or "adapted" and "scratch".
        seed: as text.
        budget: of a transfer, a fraction of the original's MACs.
        evaluations: of a transfer.
    """

    part: str
    network: str
    how: str
    seed: str
    budget: str = ""
    evaluations: str = ""

    @property
    def name(self) -> str:
        """The row's id."""
        fields = (self.part, self.network, self.budget, self.how, self.evaluations, self.seed)
        return "/".join(field for field in fields if field)

    @property
    def group(self) -> Group:
        """The networks that it belongs to."""
        return next(each for each in GROUPS.values() if self.network in (*each.levels, *each.held_out))

    def to_json(self) -> dict[str, Any]:
        """The fields that mean something."""
        return {name: value for name, value in vars(self).items() if value}


def plan() -> list[Spec]:
    """Every row, the cheapest networks first; a cut leaves whole seeds, whose differences can be paired."""
    return [spec for group in GROUPS.values() for spec in (*levels(group), *transfers(group))]


def levels(group: Group) -> list[Spec]:
    """One agent for every budget against one for each."""
    return [
        Spec("levels", network, how, seed)
        for network, seeds in group.levels.items()
        for seed in seeds
        for how in LEVELS
    ]


def transfers(group: Group) -> list[Spec]:
    """An agent trained on other networks against one from scratch."""
    return [
        Spec("transfer", network, how, seed, budget, evaluations)
        for seed in group.seeds
        for network in group.held_out
        for budget in HOLD_BUDGETS
        for how, counts in (("adapted", ADAPTED), ("scratch", SCRATCH))
        for evaluations in counts
    ]


def command(spec: Spec) -> str:
    """What makes a row again."""
    return f"python -m scripts.transfer_results --only '{spec.name}'"


def source(options: TransferResults, network: str) -> SourceConfig:
    """A network with its weights and its data."""
    model, width = REGISTERED.get(network, (network, 1.0))
    if network in SMALL:
        model = f"scripts.transfer_rows:{network.replace('-', '_')}"
    group = next(each for each in GROUPS.values() if network in networks_of(each))
    return SourceConfig(
        model,
        options.weights(network),
        width=width,
        data=group.data,
        data_root=options.data_root,
        side=group.side,
        device="cpu",
        threads=options.threads,
    )


def networks_of(group: Group) -> tuple[str, ...]:
    """Every network of a group."""
    return tuple(dict.fromkeys((*group.training, *group.held_out, *group.levels)))


def level_config(options: TransferResults, spec: Spec, budget: str) -> RunConfig:
    """A search of the comparison of levels; `budget` is "" for the range."""
    evaluations = spec.group.evaluations // (len(LEVEL_BUDGETS) if spec.how == "fifth" else 1)
    return RunConfig(
        source(options, spec.network),
        ProblemConfig(budget=(f"macs={budget}" if budget else RANGE,)),
        AgentConfig(seed=int(spec.seed), updates_per_transition=updates(spec.group)),
        SearchConfig(evaluations=evaluations),
    )


def transfer_config(options: TransferResults, spec: Spec, trained: Path) -> RunConfig:
    """A search on a network that was held out: from scratch as anybody would, or from a trained agent."""
    agent = AgentConfig(seed=int(spec.seed), updates_per_transition=updates(spec.group))
    problem = ProblemConfig(budget=(f"macs={spec.budget}",))
    if spec.how == "adapted":
        agent = AgentConfig(
            seed=int(spec.seed),
            updates_per_transition=updates(spec.group),
            start_from=trained,
            sigma_start=LITTLE_NOISE,
        )
        problem = general(problem)
    search = SearchConfig(evaluations=max(2, int(spec.evaluations)))
    return RunConfig(source(options, spec.network), problem, agent, search)


def training_settings(group: Group, seed: str) -> tuple[ProblemConfig, AgentConfig, SearchConfig]:
    """What the agent of several networks is trained with."""
    problem = general(ProblemConfig(budget=(group.training_range,), levels=group.training_levels))
    return problem, AgentConfig(seed=int(seed)), SearchConfig(evaluations=group.training_evaluations)


def updates(group: Group) -> int:
    """Gradient updates per decision: one where an evaluation takes much less than a second."""
    return 1 if group.data == "digits" else AgentConfig().updates_per_transition


def check_apart() -> None:
    """Refuse a plan in which a network is both trained on and held out.

    Raises:
        UserError: names it.
    """
    for group in GROUPS.values():
        both = sorted({*group.training} & {*group.held_out})
        if both:
            raise UserError(f"{both[0]} is held out and cannot be trained on.")

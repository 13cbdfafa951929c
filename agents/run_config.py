"""The configuration of a run: command line, `config.yaml` and TensorBoard table in one."""

from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Any, Literal, TypeVar

import yaml

from agents.config import AgentConfig, CoolingConfig, SearchConfig
from amc.errors import UserError
from amc.files import write_atomically
from amc.plugins import one_line
from amc.recovery.brief_tuning import LEARNING_RATE
from envs.problem_config import ProblemConfig

CONFIG_FILE = "config.yaml"
FACTS = ("machine", "network", "weights", "original")
"""What a resumed run needs of the facts."""
REFITS = "paired, clipped"
"""How a policy comes to the score that it has: statistics of batch norms are paired with the original's
(`amc.recovery.restate`), and layers are fitted to what a ReLU lets through (`amc.pruning.fits`)."""
PATHS = ("weights", "data_root", "start_from")

C = TypeVar("C")


@dataclass(frozen=True)
class SourceConfig:
    """The trained network and its data."""

    model: str = "digitsnet"
    """Network: a name (a wrong one is answered with the list), timm:NAME or torchvision:NAME (extra hub), or
    package.module:factory."""
    weights: Path | None = None
    """Trained weights, .pt or .safetensors; a factory may bring its own, and timm and torchvision publish
    some."""
    width: float = 1.0
    """Multiplier of all channel counts that the network was trained with."""
    data: str = "digits"
    """Images: digits, cifar10, hf:NAME (the datasets library, extra hub), voc-crops (objects of data in VOC's
    layout), a folder with train/<class>/ and val/<class>/, or package.module:factory; with
    boxes: shapes, voc."""
    data_root: Path = Path("data")
    """Folder that holds cifar-10-batches-py, or data in VOC's layout."""
    side: int | None = None
    """Height and width in pixels for data that can be resized: digits (32 by default), voc-crops (64),
    folders (224)."""
    task: str = "classification"
    """Loss and score: classification, detection, retrieval, or package.module:factory."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """Where networks are scored and trained; latency is always measured on the CPU target."""
    threads: int = 0
    """CPU threads for scoring; 0 leaves the choice to PyTorch."""


@dataclass(frozen=True)
class RunConfig:
    """Everything that decides what a search does."""

    source: SourceConfig = field(default_factory=SourceConfig)
    problem: ProblemConfig = field(default_factory=ProblemConfig)
    agent: AgentConfig = field(default_factory=AgentConfig)
    search: SearchConfig = field(default_factory=SearchConfig)
    cooling: CoolingConfig = field(default_factory=CoolingConfig)

    def flat(self) -> dict[str, Any]:
        """Every setting by name, for tables and hyper-parameters."""
        return {name: value for part in asdict(self).values() for name, value in part.items()}


def continued(
    config: RunConfig, evaluations: int | None = None, time_budget: float | None = None
) -> RunConfig:
    """The configuration to go on with, where a person wants more or fewer evaluations, or another limit.

    The exploration noise falls over the evaluations that the search was first started with. It keeps doing
    so, or the evaluations in the log would not be those that the search proposes there; what comes after
    them explores with the smallest noise.
    """
    if evaluations is not None and evaluations != config.search.evaluations:
        schedule = config.agent.schedule_evaluations or config.search.evaluations
        config = replace(config, agent=replace(config.agent, schedule_evaluations=schedule))
        config = replace(config, search=replace(config.search, evaluations=evaluations))
    if time_budget is not None:
        config = replace(config, search=replace(config.search, time_budget=time_budget))
    return config


def write_config(folder: Path, config: RunConfig, facts: dict[str, Any]) -> None:
    """Write `config.yaml`: every setting, and facts about the machine and the versions.

    Of a search without rounds the file says nothing about them.
    """
    content = {name: _plain(part) for name, part in asdict(config).items()}
    if not config.cooling.is_on:
        del content["cooling"]
    text = yaml.safe_dump({**content, "facts": facts}, sort_keys=False)
    write_atomically(folder / CONFIG_FILE, text.encode())


def read_config(folder: Path) -> RunConfig:
    """Read the settings that `write_config` wrote.

    Raises:
        UserError: the folder holds no run, or its configuration is damaged.
    """
    content = _read(folder)
    try:
        return RunConfig(
            _build(SourceConfig, content["source"]),
            _build(ProblemConfig, content["problem"]),
            _build(AgentConfig, content["agent"]),
            _build(SearchConfig, content["search"]),
            _build(CoolingConfig, content.get("cooling", {})),
        )
    except (KeyError, TypeError) as error:
        raise _foreign(folder, error) from error


def problem_from(values: dict[str, Any], origin: str) -> ProblemConfig:
    """The problem settings behind JSON values; `origin` names their place in an error.

    Raises:
        UserError: a setting is unknown or makes no sense.
    """
    try:
        return _build(ProblemConfig, values)
    except TypeError as error:
        raise UserError(f"{origin} was written by another release: {one_line(error)}.") from error


def refits_of(problem: ProblemConfig) -> str:
    """How the policies of a problem come to their scores: `REFITS`, and the rate of their brief training."""
    return f"{REFITS}, trained at {LEARNING_RATE}" if problem.tune_steps else REFITS


def check_refits(folder: Path) -> None:
    """Refuse a run whose scores cannot be compared with those of today: to search on, or for tables.

    Raises:
        UserError: its layers were refitted and re-normalized in another way.
    """
    if read_facts(folder).get("refits") != refits_of(read_config(folder).problem):
        raise UserError(
            f"{folder} was started before layers were refitted and re-normalized as they are today, and new "
            "scores cannot be compared with its old ones: start another run. Its policy can still be "
            "exported and fine-tuned."
        )


def has_facts(folder: Path) -> bool:
    """Whether the facts of a run are written down; its settings are so before them."""
    return bool(_read(folder).get("facts"))


def read_facts(folder: Path) -> dict[str, Any]:
    """Read the facts that `write_config` wrote.

    Raises:
        UserError: the folder holds no run, or its configuration is damaged.
    """
    try:
        facts: dict[str, Any] = _read(folder)["facts"]
        missing = [name for name in FACTS if name not in facts]
    except (KeyError, TypeError) as error:
        raise _foreign(folder, error) from error
    if missing:
        raise _foreign(folder, KeyError(missing[0]))
    return facts


def _read(folder: Path) -> Any:
    path = folder / CONFIG_FILE
    try:
        return yaml.safe_load(path.read_text())
    except (FileNotFoundError, NotADirectoryError) as error:
        raise UserError(f"{folder} holds no run: there is no {CONFIG_FILE} in it.") from error
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise UserError(f"{path} cannot be read: {one_line(error)}.") from error


def _foreign(folder: Path, error: Exception) -> UserError:
    path = folder / CONFIG_FILE
    return UserError(f"{path} is not the configuration of a run of this release: {one_line(error)}.")


def _build(kind: type[C], values: dict[str, Any]) -> C:
    known = {f.name for f in fields(kind)}  # type: ignore[arg-type]
    unknown = set(values) - known
    if unknown:
        raise TypeError(f"unknown settings {sorted(unknown)}")
    return kind(**{name: _typed(name, value) for name, value in values.items()})


def _typed(name: str, value: Any) -> Any:
    """A setting as the dataclasses hold it: YAML knows neither paths nor tuples."""
    if name in PATHS and value is not None:
        return Path(value)
    return tuple(value) if isinstance(value, list) else value


def _plain(part: dict[str, Any]) -> dict[str, Any]:
    return {
        name: str(value) if isinstance(value, Path) else list(value) if isinstance(value, tuple) else value
        for name, value in part.items()
    }

"""One agent trained on several networks in turn, so that it has something to carry to the next one."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from agents.actor import TrainedActor, restored, write_actor
from agents.actor_contract import actor_contract
from agents.actor_file import ACTOR_FILE
from agents.config import AgentConfig, SearchConfig
from agents.log import EvaluationLog
from agents.run import LOG_FILE, standard
from agents.run_config import REFITS
from agents.run_folder import run_lock
from agents.search import Callback, SearchResult, search
from agents.searcher import check_searcher, make_searcher
from agents.standards import Cases, check_enough
from amc.errors import UserError
from amc.evaluate import Evaluation
from amc.files import read_json, write_json
from amc.policy import CompressionPolicy
from envs.case_walk import CaseWalk
from envs.problem import Problem
from envs.problem_config import ProblemConfig

SETTINGS_FILE = "transfer.json"


class Transfer:
    """A training on several networks and its directory; cut at any moment, it goes on where it was.

    A case is a network at one level of the budget. Each has its own uniform policy as baseline, and all are
    played equally often.

    Args:
        folder: made if it does not exist.
        problems: what is compressed, by name; all with the same settings.
        agent, search: settings; one process evaluates.

    Raises:
        UserError: the networks cannot be trained together, or the folder holds another training.
    """

    def __init__(
        self, folder: Path, problems: Mapping[str, Problem], agent: AgentConfig, search: SearchConfig
    ):
        self.folder, self.problems, self.agent, self.settings = folder, dict(problems), agent, search
        _check(self.problems, agent)
        check_enough(search.evaluations, len(self.walk().names))
        self._adopt_folder()

    @cached_property
    def log(self) -> EvaluationLog:
        """Every evaluation so far."""
        return EvaluationLog(self.folder / LOG_FILE)

    def walk(self) -> CaseWalk:
        """The decision process of all cases."""
        walks = {name: self.problems[network].walk(level) for name, (network, level) in self._cases.items()}
        return CaseWalk(walks, self.agent.seed)

    @property
    def _cases(self) -> dict[str, tuple[str, Sequence[str] | None]]:
        """Name of a case to its network and budgets."""
        found: dict[str, tuple[str, Sequence[str] | None]] = {}
        for network, problem in self.problems.items():
            cases = problem.cases
            found |= {f"{network} {case}": (network, level) for case, level in cases.items()}
            found |= {} if cases else {network: (network, None)}
        return found

    def train(self, callbacks: Sequence[Callback] = ()) -> SearchResult:
        """Train to the end of the evaluations, from wherever the training is.

        Raises:
            UserError: another process trains here, or log and settings do not belong together.
        """
        with run_lock(self.folder):
            self.__dict__.pop("log", None)
            standards = {
                name: standard(self.problems[network], level)
                for name, (network, level) in self._cases.items()
            }
            walk = self.walk()
            return search(
                make_searcher(walk, self.agent, self.settings.evaluations),
                self._evaluate,
                None,
                self.log,
                budget_evaluations=self.settings.evaluations,
                time_budget=self.settings.time_budget,
                checkpoint_every=self.settings.checkpoint_every,
                callbacks=callbacks,
                cases=Cases(standards, walk.case_of),
            )

    def _evaluate(self, policies: list[CompressionPolicy]) -> list[Evaluation]:
        by_network = {each.network.fingerprint: each.evaluator for each in self.problems.values()}
        return [by_network[policy.network]([policy])[0] for policy in policies]

    def actor(self) -> TrainedActor:
        """The agent as the training has left it.

        Raises:
            UserError: there is no checkpoint yet.
        """
        searcher = make_searcher(self.walk(), self.agent, self.settings.evaluations)
        actor = restored(self.folder, searcher, self.log)
        assert actor is not None  # refused before the training
        return actor

    def export(self, folder: Path | None = None) -> Path:
        """Write actor, critic and contract; the actor's file."""
        actor, folder = self.actor(), folder or self.folder
        folder.mkdir(parents=True, exist_ok=True)
        networks = [problem.network.fingerprint for problem in self.problems.values()]
        first = next(iter(self.problems.values()))
        contract = actor_contract(first, actor, self.agent.algorithm, networks)
        write_actor(folder, actor, contract, self.walk())
        return folder / ACTOR_FILE

    def _adopt_folder(self) -> None:
        path, wanted = self.folder / SETTINGS_FILE, self._description()
        if path.exists():
            stored: Any = read_json(path)
            changed = [name for name, value in wanted.items() if stored.get(name) != value]
            if changed:
                raise UserError(f"{self.folder} was trained with other {', '.join(changed)}: choose another.")
            return
        if self.folder.exists() and any(self.folder.iterdir()):
            raise UserError(f"{self.folder} is not empty and holds no such training: choose another.")
        self.folder.mkdir(parents=True, exist_ok=True)
        write_json(path, wanted)

    def _description(self) -> dict[str, Any]:
        """What decides the training, as JSON values."""
        networks = {
            name: [problem.network.fingerprint, problem.weights] for name, problem in self.problems.items()
        }
        config = next(iter(self.problems.values())).config
        settings = {"problem": _plain(asdict(config)), "agent": _plain(asdict(self.agent))}
        evaluations = self.settings.evaluations
        return {"networks": networks, **settings, "evaluations": evaluations, "refits": REFITS}


def general(config: ProblemConfig) -> ProblemConfig:
    """Settings under which an agent can go on to other networks: a summary, and comparable rewards."""
    return replace(config, observation="summary", reward="share")


def _check(problems: Mapping[str, Problem], agent: AgentConfig) -> None:
    check_searcher(agent.algorithm, "accuracy", "several networks")
    fingerprints: dict[str, str] = {}
    for name, problem in problems.items():
        config = problem.config
        if config.observation != "summary" or not config.shares:
            raise UserError(
                "Several networks are trained together with --observation summary --reward share."
            )
        other = fingerprints.setdefault(problem.network.fingerprint, name)
        if other != name:
            raise UserError(
                f"{other} and {name} have the same layers, and policies name those: give one of them."
            )


def _plain(values: dict[str, Any]) -> dict[str, Any]:
    def plain(value: Any) -> Any:
        return list(value) if isinstance(value, tuple) else str(value) if isinstance(value, Path) else value

    return {name: plain(value) for name, value in values.items()}

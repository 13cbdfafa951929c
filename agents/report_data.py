"""What a run directory says about its search, read without its network, its data or its target."""

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, fields
from functools import cached_property
from pathlib import Path
from typing import Any

from agents.latency_file import read_predictor
from agents.log import EvaluationLog, Row
from agents.outcome import ORIGINAL
from agents.report_rounds import Round, read_rounds
from agents.run import LOG_FILE, OUTCOMES_FILE
from agents.run_config import RunConfig, read_config, read_facts
from amc.costs.budget import parse_budget
from amc.costs.symbolic import ALIASES
from amc.errors import UserError
from amc.files import read_json
from envs.latency_budget import PredictorFigures
from envs.reward import least_score

HOW = {"data_root", "device", "threads"}
"""Settings that say where and how fast a search runs, and not what it asks for."""


@dataclass(frozen=True)
class Figures:
    """One network of the before/after table.

    Attributes:
        name: "original", "uniform", "balanced", the searcher's name, or a later stage's.
        reward_score: score on the reward split, in [0, 1].
        test_score: score on the test split; None where it has not been measured.
        costs: cost name to absolute value.
        case: the budgets that it was made for, where there are several levels of them.
        latency_source: whether its latency, measured once at the end of a search that counts none, was
            "measured" or "unreliable"; "" without such a measurement.
        further: what else the task measures on the test split, by name.
    """

    name: str
    reward_score: float
    test_score: float | None
    costs: Mapping[str, float]
    case: str = ""
    latency_source: str = ""
    further: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Record:
    """One run, finished or not, as its directory holds it.

    Attributes:
        folder: the run directory, as it was given.
        config: every setting.
        facts: machine, versions, and what was known of the original network when the run started. Of those
            that are not in every run it uses `score_name`, `widths` (output channels of the original's
            layers), `blocks` (first layers of the residual blocks that can be left out) and `reward_images`
            (how many images score a policy).
        log: the evaluations so far; may be empty.
        outcomes: the content of `outcomes.json`; empty without one.
        predictor: how good the latency predictor was; None where latency was not predicted.
        rounds: those that a cooled search has begun; empty for a search without rounds.
        against: other searches for the same thing, whose curves are drawn beside its own.
    """

    folder: Path
    config: RunConfig
    facts: Mapping[str, Any]
    log: EvaluationLog
    outcomes: tuple[Figures, ...]
    predictor: PredictorFigures | None
    rounds: tuple[Round, ...] = ()
    against: tuple["Record", ...] = ()

    @property
    def name(self) -> str:
        """Name of the run directory."""
        return self.folder.resolve().name

    @property
    def algorithm(self) -> str:
        """Name of the searcher."""
        return self.config.agent.algorithm

    @property
    def score_name(self) -> str:
        """What the score measures."""
        return str(self.facts.get("score_name", "score"))

    @property
    def costs(self) -> tuple[str, ...]:
        """The costs that were budgeted or minimised."""
        names = (ALIASES.get(name, name) for name in self.config.problem.active_costs)
        return tuple(dict.fromkeys(names))

    @property
    def original_widths(self) -> dict[str, int] | None:
        """Output channels of the uncompressed layers; None where the run does not record them."""
        return self.facts.get("widths")

    @property
    def reference(self) -> str:
        """What the policy is called that searches start from and rewards count from, in the latest round."""
        return self.rounds[-1].reference if self.rounds else str(self.facts.get("reference", "uniform"))

    @property
    def first(self) -> Row | None:
        """The reference policy under the budgets of the best one: the first evaluation made for them.

        In a cooled search that of the latest round: the rounds before have other budgets.
        """
        return self._first(self.best.case) if self.best else None

    def _first(self, case: str) -> Row:
        return self.log.rows[self.round_start] if self.rounds else self.log.first(case)

    @property
    def round_start(self) -> int:
        """Index of the row with which the latest round begins; 0 for a search without rounds."""
        return self.rounds[-1].start if self.rounds else 0

    @property
    def misses(self) -> bool:
        """Whether even the best policy misses a budget; the final ones bind the last round alone."""
        cooling = self.config.cooling
        early = cooling.is_on and len(self.rounds) < cooling.rounds
        return self.best is not None and not self.best.feasible and not early

    @property
    def best(self) -> Row | None:
        """The best evaluation."""
        return self.log.best()

    @cached_property
    def outdated(self) -> bool:
        """Whether `outcomes.json` tells of another best policy than the log, which has since gone on."""
        told = {(each.case, each.name): each.reward_score for each in self.outcomes}
        leaders = [leader for case in self.log.cases or [""] if (leader := self.log.best(case))]
        known = [(told.get((row.case, self.algorithm)), row.score) for row in leaders]
        if not known or any(said is None for said, _ in known):
            return bool(self.outcomes)
        return not all(said is not None and math.isclose(said, now, abs_tol=1e-6) for said, now in known)

    @cached_property
    def networks(self) -> tuple[Figures, ...]:
        """The original, the reference and the best network, and whatever else has been measured since."""
        if self.outcomes and not self.outdated:
            return self.outcomes
        log, cases = self.log, self.log.cases or ([""] if self.log.rows else [])
        rows = [{self.reference: self._first(case), self.algorithm: log.best(case)} for case in cases]
        logged = [
            Figures(name, row.score, None, row.costs, row.case)
            for here in rows
            for name, row in here.items()
            if row is not None
        ]
        return (self.original, *logged)

    @property
    def original(self) -> Figures:
        """The uncompressed network."""
        known = self.facts["original"]
        told = next((each for each in self.outcomes if each.name == ORIGINAL), None)
        return told or Figures(ORIGINAL, known["score"], None, known["costs"])

    @property
    def limits(self) -> dict[str, float]:
        """What the budgeted costs must not exceed, in the cost's unit."""
        original = self.original.costs
        names: dict[str, Any] = dict.fromkeys(original)
        known = [text for text in self.config.problem.loosest if cost_name(text) in original]
        return {cost_name(text): parse_budget(text, names, original).limit for text in known}

    @property
    def misses_drop(self) -> bool:
        """Whether the best network keeps the budgets, but loses more of the score than --max-drop."""
        problem, best = self.config.problem, self.best
        if problem.goal != "cost" or best is None:
            return False
        kept = all(best.costs[name] <= limit for name, limit in self.limits.items())
        return kept and best.score < least_score(self.original.reward_score, problem.max_drop / 100)

    @property
    def latency_unit(self) -> str:
        """What the target counts."""
        return str(self.facts.get("latency_unit", "ms"))

    @property
    def predicted(self) -> int:
        """Evaluations whose latency was predicted and not measured."""
        return sum(row.latency_source == "predicted" for row in self.log.rows)

    def standard_error(self, score: float) -> float | None:
        """Standard error of a score on the reward split; None where its size is not recorded.

        That of a share of right answers; for a mean of other scores in [0, 1] it is an upper bound.
        """
        images = self.facts.get("reward_images")
        return math.sqrt(max(score * (1.0 - score), 0.0) / images) if images else None


def cost_name(budget: str) -> str:
    """Name of the cost that a budget bounds, aliases resolved."""
    name = budget.partition("=")[0].strip().lower()
    return ALIASES.get(name, name)


def load_record(folder: Path) -> Record:
    """Read a run directory.

    Raises:
        UserError: it holds no run, or something in it is damaged.
    """
    config, log = read_config(folder), EvaluationLog(folder / LOG_FILE)
    outcomes, predictor = _outcomes(folder / OUTCOMES_FILE), read_predictor(folder)
    rounds = read_rounds(folder, len(log)) if config.cooling.is_on else ()
    return Record(folder, config, read_facts(folder), log, outcomes, predictor, rounds)


def _outcomes(path: Path) -> tuple[Figures, ...]:
    if not path.exists():
        return ()
    content = read_json(path)
    try:
        return tuple(_figures(row) for row in content)  # type: ignore[attr-defined]
    except (TypeError, KeyError, ValueError, AttributeError) as error:
        raise UserError(f"{path} is not a table of outcomes: {error!r}.") from error


def _figures(row: Mapping[str, Any]) -> Figures:
    test = row.get("test_score")
    costs = {str(name): float(value) for name, value in row["costs"].items()}
    source = str(row.get("latency_source", ""))
    if source:
        costs["latency"] = float(row["latency"])
    score, tested = float(row["reward_score"]), None if test is None else float(test)
    further = {str(name): float(value) for name, value in row.get("further", {}).items()}
    return Figures(str(row["name"]), score, tested, costs, str(row.get("case", "")), source, further)


def differences(records: Iterable[Record]) -> list[str]:
    """Names of the settings in which runs that are compared do not ask for the same thing."""
    configs = [record.config for record in records]
    result = []
    for part in ("source", "problem"):
        settings = [getattr(config, part) for config in configs]
        for name in [each.name for each in fields(settings[0]) if each.name not in HOW]:
            if any(getattr(each, name) != getattr(settings[0], name) for each in settings):
                result.append(name)
    return result

"""The search loop: propose, evaluate, log, learn; interruptible at any moment and resumable."""

import math
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from agents.checkpoint import CHECKPOINT_FOLDER, load_checkpoint, save_checkpoint
from agents.log import EvaluationLog, Row
from agents.searcher import Searcher
from agents.standards import Cases, Latency, Reward, Standard, one_case
from amc.errors import UserError
from amc.evaluate import Evaluation
from amc.policy import CompressionPolicy

POLICY_FILE, POLICIES_FOLDER = "policy.json", "policies"


Evaluate = Callable[[list[CompressionPolicy]], list[Evaluation]]
Callback = Callable[[Row, EvaluationLog], None]
Ending = Literal["budget", "exhausted", "time", "stopped", "interrupted"]


@dataclass(frozen=True)
class SearchResult:
    """How a search ended.

    Attributes:
        ending: "budget": all evaluations are spent; "exhausted": the searcher has nothing left to propose;
            "time": the next round would not have ended in time; "stopped": by `stop`; "interrupted": Ctrl-C.
        log: all evaluations.
    """

    ending: Ending
    log: EvaluationLog

    @property
    def best(self) -> Row | None:
        """The best evaluation."""
        return self.log.best()


def search(
    searcher: Searcher,
    evaluate: Evaluate,
    reward: Reward | None,
    log: EvaluationLog,
    *,
    budget_evaluations: int,
    time_budget: float | None = None,
    checkpoint_every: int = 10,
    proposals_per_round: int = 1,
    callbacks: Sequence[Callback] = (),
    stop: Callable[[], bool] = lambda: False,
    latency: Latency | None = None,
    limits: Mapping[str, float] | None = None,
    cases: Cases | None = None,
) -> SearchResult:
    """Search until the budget is spent, from wherever the log and the checkpoint beside it end.

    The log is the truth and the checkpoint a shortcut: rows after the checkpoint (all rows, without one)
    are proposed again and answered from the log instead of being measured, so that the searcher ends up
    exactly where it was. Nothing is therefore saved from inside an interrupted update. A policy met
    before is answered from the log too, and counts as an evaluation.

    Args:
        searcher: new, with the settings and seed of the search.
        evaluate: measures policies, results in their order; never called with a policy of the log.
        reward: the number to maximise.
        log: its folder also holds `policy.json` (best so far) and `checkpoint/`.
        budget_evaluations: evaluations in all, those of earlier calls included.
        time_budget: seconds for this call; it ends before a round that would not fit. One round always runs.
        checkpoint_every: evaluations between two checkpoints.
        proposals_per_round: policies asked and evaluated together.
        callbacks: called with each new row, not with rows that the log already held.
        stop: asked before each round.
        latency: under a latency budget; what would be the best is measured before its reward is stored.
        limits: cost name to the most that it may be; a policy that costs more is never the best. Most
            searchers propose no such policies.
        cases: where evaluations are judged by several standards in turn; `reward`, `latency` and `limits`
            then stand in each of them. The best policy of each case is kept in `policies/`.

    Raises:
        UserError: the log or the checkpoint belongs to another configuration or seed, or a reward is not
            a finite number.
    """
    if cases is None:
        assert reward is not None
        cases = one_case(Standard(reward, latency, limits or {}))
    _check_rows(cases, log)
    _write_best(log)
    loop = _Loop(searcher, evaluate, log, callbacks, checkpoint_every, cases)
    try:
        ending = _run(loop, budget_evaluations, proposals_per_round, _Pace(time_budget, log), stop)
    except KeyboardInterrupt:
        ending = "interrupted"
    _write_best(log)
    return SearchResult(ending, log)


def _run(loop: "_Loop", budget: int, at_once: int, pace: "_Pace", stop: Callable[[], bool]) -> Ending:
    if len(loop.log) >= budget:
        return "budget"
    loop.load()
    ending: Ending | None = None
    while ending is None:
        if loop.told >= budget:
            ending = "budget"
        elif loop.told >= len(loop.log) and stop():
            ending = "stopped"
        elif loop.told >= len(loop.log) and pace.too_late():
            ending = "time"
        else:
            started = time.monotonic()
            rows = loop.round(min(at_once, budget - loop.told))
            pace.add(rows, time.monotonic() - started)
            ending = None if rows else "exhausted"
    loop.save()
    return ending


class _Pace:
    """Predicts whether another round ends within the time budget: as slow as the slowest of the last five."""

    def __init__(self, seconds: float | None, log: EvaluationLog):
        self._end = math.inf if seconds is None else time.monotonic() + seconds
        self._recent = deque((row.seconds for row in log.rows if not row.cached), maxlen=5)

    def add(self, rows: list[Row], seconds: float) -> None:
        """Hear of a round; one that measured nothing says nothing about the next."""
        if not all(row.cached for row in rows):
            self._recent.append(seconds)

    def too_late(self) -> bool:
        """Whether the next round would probably end after the budget."""
        return bool(self._recent) and time.monotonic() + max(self._recent) > self._end


class _Loop:
    """One round at a time, and the searcher's state between rounds."""

    def __init__(
        self,
        searcher: Searcher,
        evaluate: Evaluate,
        log: EvaluationLog,
        callbacks: Sequence[Callback],
        checkpoint_every: int,
        cases: Cases,
    ):
        self.searcher, self.evaluate, self.log, self.cases = searcher, evaluate, log, cases
        self.callbacks, self.checkpoint_every = callbacks, checkpoint_every
        self.folder = log.path.parent / CHECKPOINT_FOLDER
        self.told = self.saved = 0

    def round(self, n: int) -> list[Row]:
        """Ask, answer from the log or measure, tell; the rows in the order of the proposals."""
        policies = self.searcher.ask(n)
        known = self._logged(policies)
        rows = known + self._measure(policies[len(known) :])
        self._learn(rows)
        if rows:
            self.searcher.tell([row.evaluation for row in rows], [row.reward for row in rows])
        self.told += len(rows)
        if self.told - self.saved >= self.checkpoint_every:
            self.save()
        return rows

    def _logged(self, policies: list[CompressionPolicy]) -> list[Row]:
        """The rows that answer the first of these proposals, when a search is being resumed."""
        rows = self.log.rows[self.told : self.told + len(policies)]
        for row, policy in zip(rows, policies, strict=False):
            if row.digest != policy.digest():
                raise UserError(
                    f"{self.log.path} belongs to another configuration or seed: its evaluation "
                    f"{row.index} is not the policy that this search proposes there."
                )
        return rows

    def _measure(self, policies: list[CompressionPolicy]) -> list[Row]:
        new = {policy.digest(): policy for policy in policies if self.log.find(policy.digest()) is None}
        results = self.evaluate(list(new.values())) if new else []
        measured = dict(zip(new, results, strict=True))
        # `pop`: a policy proposed twice in one round is answered from the log the second time.
        return [self._add(measured.pop(policy.digest(), None), policy) for policy in policies]

    def _add(self, measured: Evaluation | None, policy: CompressionPolicy) -> Row:
        if measured is None:
            earlier = self.log.find(policy.digest())
            assert earlier is not None
            measured = replace(earlier.evaluation, seconds=0.0, cached=True)
        index = len(self.log)
        case, standard = self.cases.at(index)
        measured, reward = self._judge(measured, case, standard)
        if not math.isfinite(reward):
            raise UserError(
                f"The reward of evaluation {index} is {reward}, not a finite number; its score is "
                f"{measured.score} and its costs are {measured.costs}."
            )
        feasible = standard.feasible(measured)
        leads = standard.leads(measured, reward, self.log.best(case))
        row = self.log.add(measured, reward, self.searcher.metrics(index), leads, feasible, case)
        if row.best_index == index:
            _write_best(self.log)
        for callback in self.callbacks:
            callback(row, self.log)
        return row

    def _judge(self, evaluation: Evaluation, case: str, standard: Standard) -> tuple[Evaluation, float]:
        """The evaluation and its reward; with a measured latency if it would be the best of its case."""
        best = self.log.best(case)
        if best is None:
            standard.reward.set_reference(evaluation)
        reward = standard.reward(evaluation)
        predicted = evaluation.latency_source == "predicted"
        if standard.latency is None or not predicted or not standard.leads(evaluation, reward, best):
            return evaluation, reward
        started = time.perf_counter()
        measured = standard.latency.measure(evaluation)
        seconds = evaluation.seconds + time.perf_counter() - started
        return replace(measured, seconds=seconds), standard.reward(measured)

    def _learn(self, rows: Sequence[Row]) -> None:
        for row in rows:
            latency = self.cases.standards[row.case].latency
            if latency is not None:
                latency.learn(row.evaluation)

    def save(self) -> None:
        """Write the searcher's state; between rounds only."""
        if self.told > self.saved:
            state = {**self._identity(self.told), "state": self.searcher.state_dict()}
            save_checkpoint(self.folder, state)
            self.saved = self.told

    def load(self) -> None:
        """Take over the checkpoint, if there is one.

        Raises:
            UserError: it is not one of this log, or of another searcher.
        """
        checkpoint = load_checkpoint(self.folder)
        if checkpoint is None:
            return
        told = checkpoint["evaluations"]
        state = checkpoint.pop("state")
        try:
            if told > len(self.log) or checkpoint != self._identity(told):
                raise ValueError("it was written by another search")
            self.searcher.load_state_dict(state)
        except (ValueError, KeyError, TypeError, RuntimeError) as error:
            raise UserError(
                f"{self.folder} does not fit this search and {self.log.path.name}: {error}."
            ) from error
        self._learn(self.log.rows[:told])
        self.told = self.saved = told

    def _identity(self, told: int) -> dict[str, Any]:
        last = self.log.rows[told - 1].digest
        return {"evaluations": told, "last_policy": last, "searcher": type(self.searcher).__name__}


def _check_rows(cases: Cases, log: EvaluationLog) -> None:
    met = set()
    for row in log.rows:
        case, standard = cases.at(row.index)
        if row.case != case:
            raise UserError(
                f"{log.path} belongs to another configuration: its evaluation {row.index} was made for "
                f"{row.case or 'no level'}, and would now be for {case or 'no level'}."
            )
        reward = standard.reward
        if case not in met:
            reward.set_reference(row.evaluation)
            met.add(case)
        if not math.isclose(reward(row.evaluation), row.reward, rel_tol=1e-9, abs_tol=1e-12):
            raise UserError(
                f"{log.path} belongs to another configuration: the reward of its evaluation {row.index} "
                f"is {row.reward}, and would now be {reward(row.evaluation)}."
            )
        if row.feasible and row.score < standard.least_score:
            raise UserError(
                f"{log.path} was judged by another rule: its evaluation {row.index} counts as feasible, and "
                f"its score {row.score} is below the least that is allowed, {standard.least_score}; start "
                "the search anew."
            )


def _write_best(log: EvaluationLog) -> None:
    """Write the best policy, and that of every case that has a name."""
    folder = log.path.parent
    leaders = {folder / POLICY_FILE: log.best()}
    leaders |= {case_file(folder, case): log.best(case) for case in log.cases}
    for path, best in leaders.items():
        if best is not None:
            path.parent.mkdir(parents=True, exist_ok=True)
            best.policy.save(path)


def case_file(folder: Path, case: str) -> Path:
    """Where a run keeps the best policy of a case: `policies/macs0.35.json`."""
    return folder / POLICIES_FOLDER / f"{case.replace('=', '').replace(' ', '-')}.json"

"""The evaluation log: one JSON line an evaluation, on disk before the searcher learns of it."""

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from amc.errors import UserError
from amc.evaluate import Evaluation
from amc.policy import CompressionPolicy


@dataclass(frozen=True)
class Row:
    """One evaluation of a search.

    Attributes:
        index: its place in the search, from 0.
        policy: the executed policy.
        score: on the reward split.
        costs: absolute numbers by name.
        reward: what the searcher was told.
        seconds: spent on measuring; 0 when the policy was met before.
        cached: the policy was met before.
        best_index: index of the best row up to this one, of its case.
        latency_source: whether the latency was "measured", "unreliable" or "predicted"; "" without one.
        feasible: no measurement says that it misses a budget, or loses more of the score than is allowed.
        metrics: the searcher's figures at the proposal (`sigma`, `critic_loss`, `actor_loss`).
        case: which of several budgets or networks it was proposed for, such as "macs=0.35"; "" in a search
            that has one.
    """

    index: int
    policy: CompressionPolicy
    score: float
    costs: Mapping[str, float]
    reward: float
    seconds: float
    cached: bool
    best_index: int
    latency_source: str = ""
    feasible: bool = True
    metrics: Mapping[str, float] = field(default_factory=dict)
    case: str = ""

    @property
    def evaluation(self) -> Evaluation:
        """The evaluation as it was returned."""
        costs = dict(self.costs)
        return Evaluation(self.policy, self.score, costs, self.seconds, self.cached, self.latency_source)

    @property
    def digest(self) -> str:
        """The policy's short name."""
        return self.policy.digest()

    def to_json(self) -> dict[str, Any]:
        """The object of the log's line."""
        row = {name: value for name, value in vars(self).items() if name != "policy"}
        return {**row, "digest": self.digest, "policy": self.policy.to_json()}

    @classmethod
    def from_json(cls, data: dict[str, Any], origin: str) -> "Row":
        """Read what `to_json` wrote; `origin` names the place in an error."""
        values = {name: value for name, value in data.items() if name not in ("digest", "policy")}
        return cls(policy=CompressionPolicy.from_json(data["policy"], origin), **values)


class EvaluationLog:
    """The rows of one search, in memory and on disk.

    A process that is killed while it writes leaves a torn last line. It is ignored when the log is opened
    and cut off by the next `append`, so that looking at the log of a running search never changes it.
    """

    def __init__(self, path: Path):
        """Open a log; a missing file is an empty log.

        Raises:
            UserError: a line other than a torn last one is not a row.
        """
        self.path = Path(path)
        self.rows: list[Row] = []
        self._by_digest: dict[str, Row] = {}
        self._leaders: dict[str, Row] = {}
        content = self.path.read_bytes() if self.path.exists() else b""
        self._whole_bytes = content.rfind(b"\n") + 1
        for line in content[: self._whole_bytes].splitlines():
            self._remember(self._parse(line))

    def __len__(self) -> int:
        return len(self.rows)

    def _parse(self, line: bytes) -> Row:
        origin = f"line {len(self.rows) + 1} of {self.path}"
        try:
            row = Row.from_json(json.loads(line), origin)
        except (ValueError, KeyError, TypeError) as error:
            raise UserError(f"{origin} is not an evaluation: {error!r}.") from error
        if row.index != len(self.rows):
            raise UserError(f"{origin} has index {row.index}: rows are missing or were put in by hand.")
        return row

    def _remember(self, row: Row) -> None:
        self.rows.append(row)
        self._by_digest.setdefault(row.digest, row)
        self._leaders[row.case] = self.rows[row.best_index]

    def find(self, digest: str) -> Row | None:
        """The first row with this policy, or None."""
        return self._by_digest.get(digest)

    @property
    def cases(self) -> list[str]:
        """Names of the cases met so far; none in a search that has one case."""
        return [case for case in self._leaders if case]

    def best(self, case: str | None = None) -> Row | None:
        """The feasible row with the highest reward, the earliest of equals; None where there is no row.

        The smallest feasible one where a cost is minimised; `Standard.leads` has the rule, also for as long
        as no row is feasible.

        Args:
            case: the best of this one; by default of all.
        """
        if case is not None:
            return self._leaders.get(case)
        leaders = sorted(self._leaders.values(), key=lambda row: row.index)
        return max(leaders, key=lambda row: (row.feasible, row.reward), default=None)

    def first(self, case: str) -> Row:
        """The first row of a case, which is its reference policy."""
        return next(row for row in self.rows if row.case == case)

    def add(
        self,
        evaluation: Evaluation,
        reward: float,
        metrics: Mapping[str, float],
        leads: bool,
        feasible: bool = True,
        case: str = "",
    ) -> Row:
        """Append an evaluation, and return its row once it is safely on disk.

        Args:
            evaluation: what was measured.
            reward: what the searcher is told of it.
            metrics: the searcher's figures at the proposal.
            leads: whether it is the best of its case from now on; the first always is.
            feasible: whether it keeps to what was asked.
            case: that it belongs to.
        """
        best, index = self.best(case), len(self.rows)
        row = Row(
            index=index,
            policy=evaluation.policy,
            score=evaluation.score,
            costs=dict(evaluation.costs),
            reward=reward,
            seconds=evaluation.seconds,
            cached=evaluation.cached,
            best_index=index if best is None or leads else best.index,
            latency_source=evaluation.latency_source,
            feasible=feasible,
            metrics=dict(metrics),
            case=case,
        )
        self._write(json.dumps(row.to_json()).encode() + b"\n")
        self._remember(row)
        return row

    def _write(self, line: bytes) -> None:
        with self.path.open("ab") as file:
            file.truncate(self._whole_bytes)
            file.write(line)
            file.flush()
            os.fsync(file.fileno())
        self._whole_bytes += len(line)

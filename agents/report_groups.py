"""Runs that are compared: those that ask for the same thing together, repeats with other seeds as one."""

import math
from collections import Counter
from collections.abc import Hashable, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any

import numpy as np

from agents.log import Row
from agents.report_data import HOW, Record
from agents.report_text import goal, status


@dataclass(frozen=True)
class Series:
    """Runs of one searcher with the same settings that differ in their seed only.

    Attributes:
        label: the searcher's name, and what tells it from another series of the group.
        records: the runs, by seed.
    """

    label: str
    records: tuple[Record, ...]

    @property
    def begun(self) -> tuple[Record, ...]:
        """The runs that have evaluated something."""
        return tuple(record for record in self.records if record.log.rows)


@dataclass(frozen=True)
class Group:
    """Runs that ask for the same thing of the same network, so that their figures can be compared.

    Attributes:
        title: what they ask for.
        series: in the order of their first runs.
    """

    title: str
    series: tuple[Series, ...]

    @property
    def records(self) -> list[Record]:
        """All runs."""
        return [record for series in self.series for record in series.records]


def grouped(records: Sequence[Record]) -> list[Group]:
    """The runs in groups and series, each in the order in which it was first met."""
    together = _together(records, _question)
    titles = [f"{each[0].config.source.model}: {goal(each[0])}" for each in together]
    return [
        Group(title if titles.count(title) == 1 else f"{title} ({_marks(together, place)})", _series(runs))
        for place, (title, runs) in enumerate(zip(titles, together, strict=True))
    ]


def network_of(record: Record) -> Hashable:
    """What runs have in common whose networks lie in one plane of cost and score: original, data, split."""
    return (*_source(record), record.config.problem.target, record.config.problem.reward_images)


def by_network(records: Sequence[Record]) -> list[list[Record]]:
    """The runs of each original network."""
    return _together(records, network_of)


def best_so_far(series: Series, longest: int, scored: bool) -> np.ndarray:
    """The best score, in %, or reward, after each evaluation: [runs, evaluations], NaN before any.

    As long as the shortest run that still goes on; what has ended stays at its last value, up to `longest`.
    """
    ends = [longest if _has_ended(record) else len(record.log) for record in series.begun]
    length = min(ends)
    curves = np.full((len(ends), length), np.nan)
    for curve, record in zip(curves, series.begun, strict=True):
        best: dict[str, float] = {}
        cases = max(1, len(record.log.cases))
        for place, row in enumerate(record.log.rows[:length]):
            value = (100 * row.score if scored else row.reward) if _counts(record, row) else -math.inf
            best[row.case] = max(best.get(row.case, -math.inf), value)
            # Of several levels the mean, as soon as each has a policy.
            known = sum(best.values()) / cases if len(best) == cases else -math.inf
            curve[place:] = known if math.isfinite(known) else np.nan
    return curves


def _counts(record: Record, row: Row) -> bool:
    """Whether a row can be the best: it keeps the budgets, in rounds in the network of the last one."""
    return row.feasible and row.index >= record.round_start


def _has_ended(record: Record) -> bool:
    return status(record).startswith("finished") or bool(record.outcomes and not record.outdated)


def _together(records: Sequence[Record], key: Any) -> list[list[Record]]:
    found: dict[Hashable, list[Record]] = {}
    for record in records:
        found.setdefault(key(record), []).append(record)
    return list(found.values())


def _source(record: Record) -> tuple[Hashable, ...]:
    source = record.config.source
    return tuple(getattr(source, field.name) for field in fields(source) if field.name not in HOW)


def _question(record: Record) -> Hashable:
    return (*_source(record), record.config.problem)


def _answerer(record: Record) -> Hashable:
    """Who searches, and for how long, whatever the seed."""
    search = record.config.search
    agent = replace(record.config.agent, seed=0, schedule_evaluations=None)
    return agent, search.evaluations, search.at_once, record.config.cooling


def _series(records: Sequence[Record]) -> tuple[Series, ...]:
    together = _together(records, _answerer)
    names = Counter(runs[0].algorithm for runs in together)
    return tuple(
        Series(
            runs[0].algorithm + (f" ({_marks(together, place)})" if names[runs[0].algorithm] > 1 else ""),
            tuple(sorted(runs, key=lambda record: record.config.agent.seed)),
        )
        for place, runs in enumerate(together)
    )


def _marks(together: Sequence[Sequence[Record]], place: int) -> str:
    """The settings, of those that are not the same everywhere, that tell one of these from the others."""
    every = [runs[0].config.flat() for runs in together]
    own = every[place]
    names = [name for name in own if name not in ("seed", *HOW) and any(e[name] != own[name] for e in every)]
    shown = [f"{name.replace('_', ' ')} {_plain(own[name])}" for name in names if name != "algorithm"]
    return ", ".join(shown) or together[place][0].name


def _plain(value: Any) -> str:
    return " ".join(map(str, value)) if isinstance(value, tuple) else str(getattr(value, "name", value))

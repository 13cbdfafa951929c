"""Searches on one network under one budget, compared: means over seeds, and differences seed by seed."""

import statistics
from collections.abc import Sequence
from dataclasses import dataclass

from scripts.main_job import standard_error
from scripts.results_runner import Row
from scripts.search_rows import BUDGETS, EVALUATIONS, FIXED, NETWORKS, ONE_SEED, SEARCHERS, VARIANTS


@dataclass(frozen=True)
class Difference:
    """How much better one searcher is than another, over the seeds that both have.

    Attributes:
        mean: of the differences, in [-1, 1].
        error: its standard error; None for a single pair.
        pairs: how many.
    """

    mean: float
    error: float | None
    pairs: int

    def __str__(self) -> str:
        """In points."""
        spread = "one seed" if self.error is None else f"± {100 * self.error:.2f}"
        return f"{100 * self.mean:+.2f} ({spread})"


@dataclass(frozen=True)
class Setting:
    """The searches on one network under one budget.

    Attributes:
        rows: of the table, of the same variant.
    """

    network: str
    budget: str
    rows: tuple[Row, ...]

    @property
    def title(self) -> str:
        """Network and budget in words."""
        return f"{self.network}, {float(self.budget):.0%} of the MACs"

    @property
    def caption(self) -> str:
        """The title, with the options by which these searches differ from the default."""
        changed = VARIANTS.get(self.rows[0].get("variant", ""), {})
        options = " ".join(f"--{name} {value}" for name, value in changed.items())
        return f"{self.title} ({options})" if options else self.title

    @property
    def searchers(self) -> list[str]:
        """Who has searched here, in the order of the table."""
        return [name for name in SEARCHERS if self.of(name)]

    @property
    def is_contest(self) -> bool:
        """Whether two have searched here, and not only followed a rule."""
        return len(set(self.searchers) - set(FIXED)) > 1

    def of(self, searcher: str) -> list[Row]:
        """The searches of one searcher, by seed."""
        return sorted((row for row in self.rows if row["searcher"] == searcher), key=lambda row: row["seed"])

    def finals(self, searcher: str, figure: str = "reward_accuracy") -> dict[str, float]:
        """Seed to a figure of the best policy of the whole search."""
        return {row["seed"]: row["best"][-1][figure] for row in self.of(searcher)}

    def mean(self, searcher: str, figure: str = "reward_accuracy") -> float:
        """The mean of a figure over the seeds."""
        return statistics.fmean(self.finals(searcher, figure).values())

    def difference(self, one: str, other: str, figure: str = "reward_accuracy") -> Difference | None:
        """How much better `one` is than `other`; None where no seed has both.

        What draws nothing has one policy, which every seed of the other is compared with.
        """
        ours, theirs = self.finals(one, figure), self.finals(other, figure)
        if other in ONE_SEED:
            theirs = dict.fromkeys(ours, *theirs.values()) if theirs else {}
        elif one in ONE_SEED:
            ours = dict.fromkeys(theirs, *ours.values()) if ours else {}
        both = [ours[seed] - theirs[seed] for seed in ours if seed in theirs]
        if not both:
            return None
        error = statistics.stdev(both) / len(both) ** 0.5 if len(both) > 1 else None
        return Difference(statistics.fmean(both), error, len(both))

    def is_tie(self, difference: Difference) -> bool:
        """Whether a difference on the reward split is below the standard error of one accuracy there."""
        return abs(difference.mean) < self.standard_error

    @property
    def standard_error(self) -> float:
        """Of the best searcher's accuracy on the reward split."""
        best = max(self.mean(searcher) for searcher in self.searchers)
        return standard_error(best, self.rows[0]["reward_images"])


def settings(rows: Sequence[Row]) -> list[Setting]:
    """The networks and budgets that have been searched, in the order of the plan."""
    found = []
    for network in NETWORKS:
        for budget in BUDGETS:
            own = [row for row in rows if (row["network"], row["budget"]) == (network, budget)]
            if own:
                found.append(Setting(network, budget, tuple(own)))
    return found


def contests(rows: Sequence[Row]) -> list[Setting]:
    """Where searchers can be compared: with the defaults, or with other settings while nobody has those.

    Args:
        rows: of the table, of all variants.
    """
    kinds = [[row for row in rows if row.get("variant") == kind] for kind in (None, *VARIANTS)]
    found = [setting for kind in kinds for setting in settings(kind)]
    chosen: dict[tuple[str, str], Setting] = {}
    for setting in found:
        place = (setting.network, setting.budget)
        if place not in chosen or (setting.is_contest and not chosen[place].is_contest):
            chosen[place] = setting
    return sorted(
        chosen.values(), key=lambda each: (list(NETWORKS).index(each.network), BUDGETS.index(each.budget))
    )


def best_so_far(row: Row, evaluations: int = EVALUATIONS) -> list[float]:
    """The best score on the reward split after each evaluation.

    Args:
        evaluations: length of the result; a search that ended earlier keeps its last value.
    """
    steps = dict(zip(row["improved_at"], row["best_so_far"], strict=True))
    values, best = [], row["best_so_far"][0]
    for evaluation in range(1, evaluations + 1):
        best = steps.get(evaluation, best)
        values.append(best)
    return values

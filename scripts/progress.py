"""The progress bar of a search and the before/after table."""

from collections.abc import Sequence
from types import TracebackType

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

from agents.log import EvaluationLog, Row
from agents.run import Outcome
from amc.targets.protocol import NOISE_FLOOR
from envs.problem import Problem
from scripts.cli import console

UNITS = {
    **{"macs": 1e6, "params": 1e3, "size": 1e3, "bops": 1e9, "nonzeros": 1e3},
    **{"code": 1.0, "storage": 1e3, "latency": 1.0},
}
DECIMALS = {"latency": 3, "code": 0}
HEADINGS = {
    "macs": "MMACs",
    "params": "k params",
    "size": "kB",
    "bops": "GBOPs",
    "nonzeros": "k non-zeros",
    "code": "code bits",
    "storage": "kB with database",
}


class SearchProgress:
    """A callback of `search`: evaluations done, best so far, time left."""

    def __init__(self, evaluations: int, log: EvaluationLog):
        columns = (
            TextColumn("searching"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.description}"),
            TimeRemainingColumn(),
        )
        self._progress = Progress(*columns, console=console())
        best = log.best()
        self._bar = self._progress.add_task(
            _describe(best) if best else "", total=evaluations, completed=len(log)
        )

    def __enter__(self) -> "SearchProgress":
        self._progress.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._progress.stop()

    def __call__(self, row: Row, log: EvaluationLog) -> None:
        """Draw one new row."""
        best = log.rows[row.best_index]
        self._progress.update(self._bar, completed=row.index + 1, description=_describe(best))


class MeasuringProgress:
    """A bar for the measurements before a search; appears with the first of them."""

    def __init__(self, description: str):
        columns = (TextColumn(description), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
        self._progress = Progress(*columns, console=console(), transient=True)
        self._bar = self._progress.add_task("", total=None)

    def __enter__(self) -> "MeasuringProgress":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        # Stopping what never started would print an empty line.
        if self._progress.live.is_started:
            self._progress.stop()

    def __call__(self, done: int, total: int) -> None:
        """Hear of `done` measurements of `total`."""
        self._progress.start()
        self._progress.update(self._bar, completed=done, total=total)


def miss_sentence(best: Row, problem: Problem) -> str:
    """What to say of a search in which no network was within the drop, or none kept its latency budget."""
    limits = [budget.limit for budget in problem.budgets if budget.cost.name == "latency"]
    if best.score < problem.least_score and all(best.costs["latency"] <= limit for limit in limits):
        return (
            f"No network of this search is within --max-drop {problem.config.max_drop:g}: the most accurate, "
            f"in policy.json, loses {100 * (problem.original_score - best.score):.2f} points of "
            f"{problem.task.score_name} on the reward split."
        )
    limit, unit = min(limits), problem.target.unit
    near = best.costs["latency"] <= limit
    beneath = f" Two measurements may differ by {NOISE_FLOOR:.0%}, which has to stay free." if near else ""
    return (
        f"No network that was measured keeps the latency budget of {limit:.3g} {unit}: the fastest, in "
        f"policy.json, takes {best.costs['latency']:.3g} {unit}.{beneath}"
    )


def _describe(best: Row) -> str:
    level = f"{best.case}: " if best.case else ""
    return f"{level}best {best.score:.2%}, reward {best.reward:+.3f} (evaluation {best.index + 1})"


def outcome_table(outcomes: Sequence[Outcome], score_name: str, latency_unit: str = "ms") -> Table:
    """Original, uniform and best policy side by side."""
    costs = [name for name in UNITS if any(name in outcome.costs for outcome in outcomes)]
    headings = {**HEADINGS, "latency": latency_unit}
    table = Table(title=None)
    table.add_column("")
    further = list(dict.fromkeys(name for outcome in outcomes for name in outcome.further))
    scores = (f"reward-split {score_name}", f"test {score_name}", *(f"test {name}" for name in further))
    for heading in (*scores, *(headings[name] for name in costs)):
        table.add_column(heading, justify="right")
    for outcome in outcomes:
        cells = [
            f"{outcome.costs[name] / UNITS[name]:,.{DECIMALS.get(name, 2)}f}" if name in outcome.costs else ""
            for name in costs
        ]
        tested = [f"{outcome.further[name]:.2%}" if name in outcome.further else "" for name in further]
        first = (f"{outcome.reward_score:.2%}", f"{outcome.test_score:.2%}", *tested)
        table.add_row(outcome.name, *first, *cells)
    return table


def level_table(outcomes: Sequence[Outcome], score_name: str) -> Table:
    """Uniform, best and the actor's policy at every level of a range of budgets, both splits."""
    names = list(dict.fromkeys(outcome.name for outcome in outcomes if outcome.case))
    table = Table(title=score_name)
    table.add_column("")
    for split in ("reward-split", "test"):
        for name in names:
            table.add_column(f"{split}\n{name}", justify="right")
    original = next(outcome for outcome in outcomes if not outcome.case)
    scores = (original.reward_score, original.test_score)
    table.add_row("original", *(f"{score:.2%}" for score in scores for _ in names))
    for case in dict.fromkeys(outcome.case for outcome in outcomes if outcome.case):
        here = {outcome.name: outcome for outcome in outcomes if outcome.case == case}
        found = [here[name].reward_score for name in names] + [here[name].test_score for name in names]
        table.add_row(case, *(f"{score:.2%}" for score in found))
    return table


def print_table(table: Table) -> None:
    """Print a table to standard output, wide enough that no figure is cut."""
    Console(width=max(100, Console().width)).print(table)

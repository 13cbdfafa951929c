"""A cooled run: a search in rounds under budgets that tighten, each round an ordinary run in its folder.

    RUN/config.yaml, evaluations.jsonl  all settings; every round's evaluations, told of the original network
    RUN/round-1 ... round-T             ordinary run directories
    RUN/round-N/tuned/                  what the next round starts from: the network after fine-tuning
    RUN/cooling.json                    the summary: a row a round
    RUN/policy.json, outcomes.json      the result, relative to the original
    RUN/network.safetensors             its weights

Whatever opens a run opens this one too, and finds the original network and one policy of it.
"""

import shutil
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import cached_property
from pathlib import Path

from torch import fx

from agents.cooling_nesting import (
    Nested,
    in_floats,
    in_original,
    load_nested,
    nested_kept,
    nested_policy,
    restart,
    save_nested,
)
from agents.cooling_product import (
    CooledEvaluator,
    CooledLog,
    outcomes_of,
    read_outcomes,
    shares_of,
    summarise,
    told_row,
)
from agents.cooling_rounds import budget_share, floor_text, least_widths, round_config
from agents.cooling_tuning import CHECKPOINT_FILE, tuned
from agents.log import EvaluationLog, Row
from agents.outcome import Outcome
from agents.run import LOG_FILE, OUTCOMES_FILE, Run, load_run, start_run
from agents.run_config import CONFIG_FILE, RunConfig, check_refits, read_facts, write_config
from agents.run_folder import run_lock
from agents.search import POLICY_FILE, Callback, Ending, SearchResult
from amc.errors import UserError
from amc.files import write_json
from amc.package import kept_by
from amc.policy import CompressionPolicy
from amc.training import Epoch

TUNED_FOLDER, NETWORK_FILE = "tuned", "network.safetensors"


class CooledRun(Run):
    """A search in rounds and its directory.

    Args:
        folder: the run directory; it exists.
        config: every setting.
        first: the first round, whose network is the original.

    Attributes:
        announce: hears a sentence now and then.
    """

    def __init__(self, folder: Path, config: RunConfig, first: Run):
        budgets = first.problem.parse_budgets(config.problem.budgets)
        super().__init__(folder, config, replace(first.problem, config=config.problem, budgets=budgets))
        self._first = first
        self.announce: Callable[[str], None] = lambda text: None
        self._adopt_result()

    @cached_property
    def log(self) -> CooledLog:
        """Every evaluation of every round so far."""
        return CooledLog(self.folder / LOG_FILE)

    @property
    def best_policy(self) -> CompressionPolicy:
        """The policy that the last round has found.

        Raises:
            UserError: the rounds have not come to their end.
        """
        if not (self.folder / POLICY_FILE).exists():
            raise UserError(f"The rounds of {self.folder} have not come to their end: go on with --resume.")
        return CompressionPolicy.load(self.folder / POLICY_FILE)

    def search(
        self, callbacks: Sequence[Callback] = (), stop: Callable[[], bool] = lambda: False
    ) -> SearchResult:
        """Go through the rounds from wherever the run is; Ctrl-C ends it early.

        Raises:
            UserError: another process searches here, a round's budget cannot be reached, or the run is of
                before layers were refitted as they are today.
        """
        with run_lock(self.folder):
            self.__dict__.pop("log", None)
            check_refits(self.folder)
            write_config(self.folder, self.config, read_facts(self.folder))
            limit = self.config.search.time_budget
            try:
                end = None if limit is None else time.monotonic() + limit
                ending = self._cool(callbacks, stop, end)
            except KeyboardInterrupt:
                ending = "interrupted"
        return SearchResult(ending, self.log)

    def _cool(self, callbacks: Sequence[Callback], stop: Callable[[], bool], end: float | None) -> Ending:
        ending: Ending = "budget"
        for number in range(1, self.config.cooling.rounds + 1):
            if self._left(number).exists():
                continue
            with self._opened(number) as run:
                ending = self._search_round(number, run, callbacks, stop, end)
                if ending not in ("budget", "exhausted"):
                    return ending
                if end is not None and time.monotonic() > end:
                    return "time"
                self._finish_round(number, run)
        return ending

    def _search_round(
        self,
        number: int,
        run: Run,
        callbacks: Sequence[Callback],
        stop: Callable[[], bool],
        end: float | None,
    ) -> Ending:
        left = None if end is None else max(end - time.monotonic(), 1e-3)
        run.config = replace(run.config, search=replace(run.config.search, time_budget=left))
        offset = sum(len(EvaluationLog(self._round(n) / LOG_FILE)) for n in range(1, number))

        def tell(row: Row, log: EvaluationLog) -> None:
            told = told_row(row, offset, nested_policy(row.policy, self.network), self._limits)
            self.log.append(told)
            for callback in callbacks:
                callback(told, self.log)

        for row in EvaluationLog(run.folder / LOG_FILE).rows[max(0, len(self.log) - offset) :]:
            tell(row, self.log)  # logged there, and the process was killed before it was logged here
        run.address = self.address
        return run.search((tell,), stop).ending

    @property
    def _limits(self) -> dict[str, float]:
        return {budget.cost.name: budget.limit for budget in self.problem.budgets}

    def _round(self, number: int) -> Path:
        return self.folder / f"round-{number}"

    def _left(self, number: int) -> Path:
        """What a round leaves when it has come to its end."""
        if number == self.config.cooling.rounds:
            return self.folder / OUTCOMES_FILE
        return self._round(number) / TUNED_FOLDER / NETWORK_FILE

    @contextmanager
    def _opened(self, number: int) -> Iterator[Run]:
        """A round as it was left, or a new one; closed at the end, but for the first."""
        if number == 1:
            yield self._first
            return
        folder, start = self._round(number), self._start(number)
        assert start is not None
        model = restart(start)
        if (folder / CONFIG_FILE).exists():
            run = load_run(folder, model, self.task)
        else:
            _discard(folder)
            run = start_run(folder, self._round_config(number), model, self.task)
        try:
            yield run
        finally:
            run.problem.close()

    def _start(self, number: int) -> Nested | None:
        """What the rounds before have left; None before the first."""
        if number == 1:
            return None
        return load_nested(self._left(number - 1), self.network, self.config.problem.quantizers)

    def _round_config(self, number: int) -> RunConfig:
        """The settings of a round after the first; costs are bounded in absolute numbers.

        All but the latency: measured in the same minute, the network's share of the original's is exact, and
        milliseconds are not.
        """
        texts = []
        for budget in self.problem.budgets:
            share = budget_share(self.config.cooling, number, budget.fraction)
            if budget.cost.name == "latency":
                texts.append(f"latency={min(1.0, share / self._latency_share(number))!r}")
            else:
                texts.append(floor_text(budget.cost.name, share * budget.original))
        source = replace(self.config.source, weights=self._left(number - 1))
        config = round_config(self.config, number, tuple(texts))
        widths = least_widths(config.problem, self.network)
        return replace(
            config, source=source, problem=replace(config.problem, min_keep=0.0, min_widths=widths)
        )

    def _latency_share(self, number: int) -> float:
        """Latency of the network that a round starts from, in floats, as a fraction of the original's."""
        start, meter = self._start(number), self.problem.meter
        assert start is not None and meter is not None
        return meter.timing(start.policy, start.module).ratio

    def _finish_round(self, number: int, run: Run) -> None:
        """Leave what the next round starts from, or the result."""
        best = run.log.best()
        assert best is not None
        if number < self.config.cooling.rounds:
            self._tune(number, run, best)
        else:
            self._conclude(number, run, best)

    def _tune(self, number: int, run: Run, best: Row) -> None:
        folder, policy, started = self._left(number).parent, in_floats(best.policy), time.perf_counter()
        teacher, settings = self.network.copy(), self.config.cooling

        def on_epoch(epoch: Epoch) -> None:
            self.announce(
                f"round {number}: fine-tuned for {epoch.number} of {settings.round_epochs} epochs, "
                f"loss {epoch.loss:.3f}, {epoch.seconds:.1f} s"
            )

        model, score = tuned(run, policy, teacher, settings, number, folder, on_epoch)
        figures = {
            "tuned_score": score,
            "tuned_test_score": run.task.score(model, "test"),
            "tuning_seconds": round(time.perf_counter() - started, 1),
        }
        self._summarise(number, run, best, figures)
        save_nested(self._left(number), self._nested(number, run, policy, model))
        (folder / CHECKPOINT_FILE).unlink(missing_ok=True)

    def _conclude(self, number: int, run: Run, best: Row) -> None:
        nested = self._nested(number, run, best.policy, run.evaluator.compressed(best.policy))
        outcomes = outcomes_of(self._first.outcomes()[0], run.outcomes(), self._told)
        self._summarise(number, run, best, {})
        save_nested(self.folder / NETWORK_FILE, nested)
        nested.policy.save(self.folder / POLICY_FILE)
        self._adopt_result()
        write_json(self._left(number), [outcome.to_json() for outcome in outcomes])

    def _nested(self, number: int, run: Run, policy: CompressionPolicy, model: fx.GraphModule) -> Nested:
        before = self._start(number)
        kept = nested_kept(
            self.network,
            before.kept if before else None,
            run.network,
            kept_by(run.evaluator.compressors, run.network, policy),
        )
        told, quantizers = self._told(policy), self.config.problem.quantizers
        return in_original(model.cpu(), run.network.points, told, kept, self.network, quantizers)

    def _told(self, policy: CompressionPolicy) -> CompressionPolicy:
        return nested_policy(policy, self.network)

    def _summarise(self, number: int, run: Run, best: Row, figures: dict[str, float]) -> None:
        cooling, outcomes = self.config.cooling, {each.name: each for each in run.outcomes()}
        bounds = {
            budget.cost.name: budget_share(cooling, number, budget.fraction)
            for budget in self.problem.budgets
        }
        row = {
            "round": number,
            "budgets": bounds,
            "costs": shares_of(best.costs, self.problem.original_costs),
            "evaluations": len(run.log),
            "feasible": sum(each.feasible for each in run.log.rows),
            "uniform_score": outcomes["uniform"].reward_score,
            "score": best.score,
            "test_score": outcomes[self.algorithm].test_score,
            "search_seconds": round(sum(each.seconds for each in run.log.rows), 1),
        }
        summarise(self.folder, vars(cooling), {**row, **figures})

    def _adopt_result(self) -> None:
        """From the last round on, the evaluator gives the network that was found."""
        if (self.folder / POLICY_FILE).exists():
            path, quantizers = self.folder / NETWORK_FILE, self.config.problem.quantizers
            nested = load_nested(path, self.network, quantizers)
            self.problem.evaluator = CooledEvaluator(self._first.evaluator, nested)

    def outcomes(self) -> list[Outcome]:
        """The original, and uniform and best policy of the last round; empty before its end."""
        path = self.folder / OUTCOMES_FILE
        return read_outcomes(path, {self.algorithm: self.best_policy}) if path.exists() else []


def _discard(folder: Path) -> None:
    """Remove what a process left that was killed while it made a round's folder."""
    if folder.exists():
        shutil.rmtree(folder)

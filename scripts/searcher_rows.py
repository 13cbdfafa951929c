"""The rows of the searchers' comparison: which there are, and which of the search table they share."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import fmean
from typing import Any

from agents.run_config import RunConfig
from scripts.results_runner import Row, Rows
from scripts.search_rows import EVALUATIONS, FIXED, MORE_SEEDS, ONE_SEED, SEEDS, SearchResults
from scripts.search_rows import Spec as SearchSpec
from scripts.search_rows import run_folder as search_folder
from scripts.search_rows import search_config as macs_config

TODAY, BEFORE = "default", "l2"
"""The settings that are compared: the defaults, and those when the comparison began, a variant of the search
table."""
SEARCHERS = (*FIXED, "greedy", "random", "evolution", "bayes", "cbo", "ddpg", "td3", "sac")
LATER = ("balanced", "greedy")
"""Not compared under the earlier settings: the errors behind the balanced policy are those of another order
of channels, and greedy came later."""
FIVE = (*SEEDS, *MORE_SEEDS)
BUDGET = "0.5"
FIRST, OTHERS = "resnet20", ("resnet56", "mobilenet_v2-half")
BEST = 3
"""Searchers that go on to the other networks."""


@dataclass(frozen=True)
class SearcherResults(SearchResults):
    """Options; rows that the output already has are made again only with --again."""

    out: Path = Path("docs/results/searchers.json")
    """Figures file; every finished row is written at once. Several calls may write to it side by side."""
    table: Path = Path("docs/results/search.json")
    """Figures of scripts/search_results.py, whose searches under MACs are taken as they are."""
    latency_runs: Path = Path("runs/searchers")
    """Where the searches under latency go; those under MACs go to --runs, which the search table shares."""


@dataclass(frozen=True)
class Spec:
    """One row: a search.

    Attributes:
        network, searcher: by name.
        cost: "macs" or "latency".
        budget: fraction of the original's, as text.
        seed: of the search, as text.
        settings: `TODAY` or `BEFORE`.
    """

    network: str
    cost: str
    budget: str
    searcher: str
    seed: str
    settings: str = TODAY

    @property
    def name(self) -> str:
        """The row's id; where it names no settings, they are those with which the comparison began."""
        own = (self.network, self.cost, self.budget, self.searcher, self.seed)
        return "/".join(own if self.settings == BEFORE else (*own, self.settings))

    @property
    def search(self) -> SearchSpec:
        """The row of the search table that asks for the same under MACs."""
        variant = "" if self.settings == TODAY else self.settings
        return SearchSpec("table", self.network, self.budget, self.searcher, self.seed, variant)

    def to_json(self) -> dict[str, Any]:
        """The fields."""
        return dict(vars(self))


def plan(rows: Mapping[str, Row]) -> list[Spec]:
    """Every row that is known so far: which searchers go on to other networks is read off the first rows."""
    first = [*block("macs"), *block("latency")]
    chosen = best_searchers(rows)
    others = [Spec(network, "macs", BUDGET, searcher, SEEDS[0]) for network in OTHERS for searcher in chosen]
    return [*first, *others, *block("macs", BEFORE)]


def block(cost: str, settings: str = TODAY) -> list[Spec]:
    """All searchers on the first network, the seeds in the outer loop."""
    return [
        Spec(FIRST, cost, BUDGET, searcher, seed, settings)
        for seed in FIVE
        for searcher in SEARCHERS
        if seed in seeds_of(searcher) and (settings == TODAY or searcher not in LATER)
    ]


def seeds_of(searcher: str) -> tuple[str, ...]:
    """The seeds of a searcher on the first network."""
    return SEEDS[:1] if searcher in ONE_SEED else FIVE


def best_searchers(rows: Mapping[str, Row]) -> list[str]:
    """The searchers with the best mean under MACs at half of the evaluations; none before all ended."""
    scores = {}
    for searcher in (name for name in SEARCHERS if name not in FIXED):
        names = [Spec(FIRST, "macs", BUDGET, searcher, seed).name for seed in seeds_of(searcher)]
        if any(name not in rows for name in names):
            return []
        scores[searcher] = fmean(rows[name]["best"][0]["reward_accuracy"] for name in names)
    return sorted(scores, key=lambda searcher: -scores[searcher])[:BEST]


def shared(table: Rows, spec: Spec, evaluations: int) -> Row:
    """The figures of the same search in the search table; empty where it has none.

    Args:
        table: rows of the search table.
        spec: a row of this comparison.
        evaluations: of a search that is no rule.
    """
    row = table.get(spec.search.name, {})
    if spec.cost != "macs" or not row:
        return {}
    if spec.searcher not in FIXED and row["best"][-1]["evaluations"] != evaluations:
        return {}
    own = {name: value for name, value in row.items() if name not in ("part", "command", *spec.to_json())}
    return {**own, "taken_from": spec.search.name, "searched": row["origin"]}


def with_table(rows: Rows, table: Rows) -> Rows:
    """The rows, and beside them what the search table has found under the defaults.

    Args:
        rows: of this comparison.
        table: rows of the search table.
    """
    specs = [
        Spec(row["network"], "macs", row["budget"], row["searcher"], row["seed"])
        for row in table.values()
        if row["part"] == "table" and "variant" not in row
    ]
    wanted = [spec for spec in specs if spec.budget == BUDGET and spec.network in (FIRST, *OTHERS)]
    taken = {spec.name: {**spec.to_json(), **shared(table, spec, EVALUATIONS)} for spec in wanted}
    return {**{name: row for name, row in taken.items() if "best" in row}, **rows}


def search_config(options: SearcherResults, spec: Spec) -> RunConfig:
    """The search of a row."""
    config = macs_config(options, spec.search)
    if spec.cost == "macs":
        return config
    return replace(config, problem=replace(config.problem, budget=(f"{spec.cost}={spec.budget}",)))


def run_folder(options: SearcherResults, spec: Spec) -> Path:
    """The run directory of a row; under MACs that of the search table."""
    if spec.cost == "macs":
        return search_folder(options, spec.search)
    return options.latency_runs / spec.name.replace("/", "-")


def command(options: SearcherResults, spec: Spec) -> str:
    """What makes a row again, with weights and data where the options expect them."""
    changed = "" if options.evaluations == EVALUATIONS else f" --evaluations {options.evaluations}"
    return f"python -m scripts.searcher_results --only '{spec.name}'{changed}"

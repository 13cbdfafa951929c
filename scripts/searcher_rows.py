"""The rows of the searchers' comparison: which there are, and which of the search table they share."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from agents.run_config import RunConfig
from scripts.results_runner import Row
from scripts.search_rows import EVALUATIONS, FIXED, MORE_SEEDS, SEEDS, SearchResults
from scripts.search_rows import Spec as SearchSpec
from scripts.search_rows import run_folder as search_folder
from scripts.search_rows import search_config as macs_config

SETTINGS = "l2"
"""The variant of the search table that is compared: the defaults when this comparison began."""
RULES = tuple(name for name in FIXED if name != "balanced")
"""Those that do without the errors that another order of channels predicts."""
SEARCHERS = (*RULES, "random", "evolution", "bayes", "cbo", "ddpg", "td3", "sac")
DRAWN = tuple(name for name in SEARCHERS if name not in RULES)
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
    """

    network: str
    cost: str
    budget: str
    searcher: str
    seed: str

    @property
    def name(self) -> str:
        """The row's id."""
        return "/".join(vars(self).values())

    @property
    def search(self) -> SearchSpec:
        """The row of the search table that asks for the same under MACs."""
        return SearchSpec("table", self.network, self.budget, self.searcher, self.seed, SETTINGS)

    def to_json(self) -> dict[str, Any]:
        """The fields."""
        return dict(vars(self))


def plan(rows: Mapping[str, Row]) -> list[Spec]:
    """Every row that is known so far: which searchers go on to other networks is read off the first rows."""
    first = [*block("macs"), *block("latency")]
    chosen = best_searchers(rows)
    others = [Spec(network, "macs", BUDGET, searcher, SEEDS[0]) for network in OTHERS for searcher in chosen]
    return [*first, *others]


def block(cost: str) -> list[Spec]:
    """All searchers on the first network, the seeds in the outer loop."""
    return [
        Spec(FIRST, cost, BUDGET, searcher, seed)
        for seed in FIVE
        for searcher in SEARCHERS
        if seed == SEEDS[0] or searcher not in RULES
    ]


def best_searchers(rows: Mapping[str, Row]) -> list[str]:
    """The searchers with the best mean under MACs at half of the evaluations; none before all ended."""
    scores = {}
    for searcher in DRAWN:
        names = [Spec(FIRST, "macs", BUDGET, searcher, seed).name for seed in FIVE]
        if any(name not in rows for name in names):
            return []
        scores[searcher] = sum(rows[name]["best"][0]["reward_accuracy"] for name in names)
    return sorted(scores, key=lambda searcher: -scores[searcher])[:BEST]


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

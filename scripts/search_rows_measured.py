"""Rows of the search results that measure what searches rest on: the proxy, the evaluation, the workers."""

from typing import Any

from amc.errors import UserError
from amc.files import read_json
from scripts import proxy_correlation
from scripts.results_runs import Figures
from scripts.search_rows import SearchResults, Spec, source


def proxy_row(options: SearchResults, spec: Spec) -> Figures:
    """How well scores without fine-tuning rank policies; interrupted, it goes on with the next policy."""
    out = options.runs / f"{spec.name.replace('/', '-')}.json"
    settings = proxy_correlation.ProxyCorrelation(source=source(options, spec.network), out=out)
    proxy_correlation.main(settings)
    figures: Any = read_json(out)
    kept = ("proxies", "reward_against_test", "mean_score", "policies", "seconds")
    return {
        "rank_correlation": figures["proxy_rank_correlation"],
        "epochs": settings.epochs,
        **{key: figures[key] for key in kept},
    }


def evaluation_row(options: SearchResults, spec: Spec) -> Figures:
    """Wall time of one evaluation, or what several workers gain.

    Raises:
        UserError: there is no script yet that measures it.
    """
    raise UserError("it needs scripts/benchmark_evaluation.py, which is not here yet.")

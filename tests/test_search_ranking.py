"""Rows without a search, and what else a search may differ by."""

from dataclasses import replace
from pathlib import Path

import pytest

from scripts import search_results
from scripts.search_page_measured import ranking
from scripts.search_rows import VARIANTS, SearchResults, Spec, search_config
from tests.test_search_results import call, figures, folder

__all__ = ["folder"]


def test_orders_and_allocations_are_compared_without_a_search(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(search_results, "plan", lambda: [Spec("ranking", "tiny")])
    assert call(folder) == 0
    row = figures(folder)["rows"]["ranking/tiny"]
    assert set(row["scores"]) == {"0.7", "0.5", "0.3"}
    assert list(row["scores"]["0.5"]) == [
        *("l1", "l2", "bn", "taylor", "obs"),
        *("obs, balanced", "the same, refitted symmetrically", "the same, not refitted"),
    ]
    assert all(0 <= each["test"] <= 1 for found in row["scores"].values() for each in found.values())
    page = "\n".join(ranking([row], folder))
    assert "tiny, 50% of the MACs, reward" in page and "obs, balanced" in page
    assert (folder / "untuned.png").read_bytes().startswith(b"\x89PNG")
    assert ranking([], folder)[1] == "*Not measured yet.*"


def test_what_else_a_search_may_differ_by_reaches_its_problem() -> None:
    options = SearchResults()
    spec = Spec("table", "resnet20", "0.5", "ddpg", "0")
    assert search_config(options, spec).problem.importance == "obs"
    problems = {kind: search_config(options, replace(spec, variant=kind)).problem for kind in VARIANTS}
    assert problems["l2"].importance == "l2" and problems["l2"].reconstruct == "symmetric"
    assert problems["none"].reconstruct == "none" and problems["none"].importance == "obs"
    assert problems["symmetric"].reconstruct == "symmetric" and problems["symmetric"].importance == "obs"

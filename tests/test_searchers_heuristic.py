"""The hand-made policies: where they prune, that they end, and that they resume."""

from pathlib import Path

import numpy as np
import pytest

from agents.heuristic import SLOPES
from tests.synthetic_search import Sensitivities, advance, continued, digests, new, width_walk


def keeps(walk, policy) -> np.ndarray:
    """Keep ratios of the decided layers, in order of depth."""
    column = walk.space.column("width")
    return (walk.space.table(policy)[:, column] / walk.space.largest[:, column])[walk.rows]


@pytest.mark.parametrize(("algorithm", "direction"), [("shallow", 1.0), ("deep", -1.0)])
def test_steeper_ramps_prune_the_named_end_more(traced, algorithm, direction):
    walk = width_walk(traced("resnet20"), "macs=0.5")
    policies = new(walk, algorithm).ask(len(SLOPES))
    half = walk.length // 2
    tilt = [direction * (keeps(walk, p)[half:].mean() - keeps(walk, p)[:half].mean()) for p in policies]
    assert tilt[0] + 0.05 < tilt[3] < tilt[8]
    assert policies[0] == walk.reference_policy()
    macs = walk.budgets[0]
    assert all(macs.cost.of(walk.space.table(policy)) <= macs.limit for policy in policies)


@pytest.mark.parametrize("algorithm", ["shallow", "deep"])
def test_the_family_ends_and_resumes(traced, tmp_path: Path, algorithm):
    walk = width_walk(traced("digitsnet"), "macs=0.5")
    evaluate = Sensitivities(walk)
    searcher = new(walk, algorithm)
    whole = digests(advance(searcher, evaluate, [1] * 12))
    assert len(whole) == len(SLOPES) and searcher.ask(1) == []
    first = new(walk, algorithm)
    begun = digests(advance(first, evaluate, [2, 2]))
    rest = advance(continued(first, new(walk, algorithm), tmp_path), evaluate, [3, 3])
    assert begun + digests(rest) == whole
    assert searcher.metrics(8) == {"slope": 1.0}

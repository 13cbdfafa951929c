"""Evolution over real walks: exact resume, open proposals, its own generator, better than random."""

from pathlib import Path

import numpy as np
import pytest
import torch

from tests.synthetic_search import Sensitivities, advance, continued, digests, new, width_walk


@pytest.fixture
def walk(traced):
    return width_walk(traced("digitsnet"), "macs=0.5")


def test_first_is_uniform_and_a_seed_decides_the_rest(walk):
    evaluate = Sensitivities(walk)
    runs = [digests(advance(new(walk, "evolution", seed=seed), evaluate, [1] * 25)) for seed in (0, 0, 1)]
    assert runs[0] == runs[1] != runs[2]
    assert runs[0][0] == walk.reference_policy().digest()
    assert len(set(runs[0])) > 20


@pytest.mark.parametrize("cut", [1, 9, 20])
def test_resumes_exactly_within_and_between_populations(walk, tmp_path: Path, cut: int):
    evaluate = Sensitivities(walk)
    whole = digests(advance(new(walk, "evolution"), evaluate, [1] * 30))
    searcher = new(walk, "evolution")
    begun = digests(advance(searcher, evaluate, [1] * cut))
    rest = advance(continued(searcher, new(walk, "evolution"), tmp_path), evaluate, [1] * (30 - cut))
    assert begun + digests(rest) == whole


def test_proposals_may_be_open_beyond_a_population(walk, tmp_path: Path):
    evaluate = Sensitivities(walk)
    rounds = [4, 13, 3, 4, 6]
    whole = digests(advance(new(walk, "evolution"), evaluate, rounds))
    searcher = new(walk, "evolution")
    begun = digests(advance(searcher, evaluate, rounds[:2]))
    searcher = continued(searcher, new(walk, "evolution"), tmp_path)
    assert begun + digests(advance(searcher, evaluate, rounds[2:])) == whole
    searcher.ask(1)
    with pytest.raises(RuntimeError, match="only when every proposal has been told"):
        searcher.state_dict()


def test_the_distribution_moves_only_when_a_population_is_complete(walk):
    evaluate = Sensitivities(walk)
    searcher = new(walk, "evolution")
    advance(searcher, evaluate, [1] * 8)
    same = new(walk, "evolution")
    advance(same, lambda policy: evaluate(walk.reference_policy()), [1] * 8)
    ninth = [digests([evaluate(policy) for policy in each.ask(2)]) for each in (searcher, same)]
    assert searcher.metrics(8) == {"generation": 0.0} and searcher.metrics(9) == {"generation": 1.0}
    assert ninth[0] == ninth[1]


def test_global_generators_are_left_alone(walk):
    before = np.random.get_state()[1].tolist(), torch.get_rng_state().tolist()  # noqa: NPY002
    advance(new(walk, "evolution"), Sensitivities(walk), [1] * 12)
    assert before == (np.random.get_state()[1].tolist(), torch.get_rng_state().tolist())  # noqa: NPY002


def test_beats_random(walk):
    bests = {}
    for algorithm in ("random", "evolution"):
        runs = [
            advance(new(walk, algorithm, seed=seed), Sensitivities(walk, seed), [1] * 60) for seed in (0, 1)
        ]
        bests[algorithm] = np.mean([max(each.score for each in run) for run in runs])
    assert bests["evolution"] > bests["random"] + 0.005, bests

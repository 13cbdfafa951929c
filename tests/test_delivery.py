"""Networks that are kept: refitted once more, to more images than a search has time for."""

import pytest
import torch
from torch import Tensor

from amc.errors import UserError
from envs.problem import Problem, build_problem
from envs.problem_config import ProblemConfig
from envs.pruning import REFIT_BATCH_SIZE, REFIT_BATCHES, make_delivery
from tests.test_run import tiny_model, tiny_task

SMALL = {"reward_images": 60, "calibration_images": 40}


def made(**settings: object) -> Problem:
    return build_problem(
        tiny_model(), tiny_task(), ProblemConfig(**{"budget": ("macs=0.5",), **SMALL, **settings})
    )


def weights(problem: Problem, form: str) -> list[Tensor]:
    policy = problem.walk().reference_policy()
    return [*getattr(problem.evaluator, form)(policy).state_dict().values()]


def same(one: list[Tensor], other: list[Tensor]) -> bool:
    return all(map(torch.equal, one, other))


def test_the_kept_network_has_other_numbers_than_the_searched_one():
    problem = made()
    assert not same(weights(problem, "searched"), weights(problem, "compressed"))
    assert same(weights(problem, "compressed"), weights(problem, "compressed"))


def test_without_final_images_it_is_that_of_the_search():
    few, many = made(final_images=0), made()
    assert same(weights(few, "searched"), weights(few, "compressed"))
    assert same(weights(few, "searched"), weights(many, "searched"))


@pytest.mark.parametrize("reconstruct", ["none", "symmetric"])
def test_only_the_asymmetric_reconstruction_asks_for_more(reconstruct: str):
    assert made(reconstruct=reconstruct).evaluator.delivery is None


def test_more_images_bring_the_outputs_nearer_to_the_original():
    problem = made()
    policy, images = problem.walk().reference_policy(), problem.task.data.normalised("test")
    wanted = problem.network.module(images)

    def error(model: torch.nn.Module) -> float:
        return float((model(images) - wanted).square().mean())

    with torch.no_grad():
        kept, searched = problem.evaluator.compressed(policy), problem.evaluator.searched(policy)
        assert error(kept) < error(searched)


def test_large_images_are_fewer(monkeypatch: pytest.MonkeyPatch):
    problem = made()
    task, asked = problem.task, list[int]()
    monkeypatch.setattr(task, "example_input", lambda: torch.zeros(1, 1, 40, 40))
    monkeypatch.setattr(task, "calibration", lambda images: asked.append(images) or [torch.zeros(2, 1, 8, 8)])

    def delivery(images: int) -> object:
        config = ProblemConfig(final_images=images)
        return make_delivery(problem.network, task, config, problem.evaluator.compressors)

    made_later = delivery(2000)
    assert callable(made_later) and not asked  # not before it is needed
    made_later()
    assert asked == [2000 * 32 * 32 // 40**2]
    # Where fewer are left than the search takes, its networks are as good.
    assert delivery(REFIT_BATCHES * REFIT_BATCH_SIZE) is None


def test_a_negative_number_of_images_is_refused():
    with pytest.raises(UserError, match="--final-images must be 0 or more, not -1"):
        ProblemConfig(final_images=-1)

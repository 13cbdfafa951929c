"""Training a little before a policy is scored: it helps, it is repeatable, and every policy gets the same."""

import copy
from dataclasses import replace

import pytest
import torch

from amc.errors import UserError
from amc.recovery.brief_tuning import BATCH_SIZE, BriefTuning
from tests.test_env import make_problem


def test_brief_tuning_raises_the_score_of_a_network_that_has_lost_much():
    plain, tuned = (make_problem("macs=0.2", tune_steps=steps) for steps in (0, 120))
    policy = plain.walk().reference_policy()
    before, after = (problem.evaluator([policy])[0].score for problem in (plain, tuned))
    assert after > before + 0.1


def test_the_same_policy_gets_the_same_score_whatever_came_before():
    first, second = (make_problem("macs=0.3", tune_steps=4) for _ in range(2))
    wanted = first.walk().reference_policy()
    other = second.space.policy(second.space.largest)
    scores = [first.evaluator([wanted])[0].score, second.evaluator([other, wanted])[1].score]
    assert scores[0] == scores[1]


def test_the_teacher_sees_each_batch_once():
    problem = make_problem("macs=0.3", tune_steps=3)
    tuning = problem.evaluator.tuning
    assert tuning is not None
    for table in (problem.space.largest, problem.space.smallest):
        tuning(problem.evaluator.compressed(problem.space.policy(table)))
    assert len(tuning._teacher.answers) == 3


def test_quantizers_are_back_when_the_network_is_scored():
    problem = make_problem("bops=0.05", tune_steps=2)
    model = problem.evaluator.compressed(problem.walk().reference_policy())
    assert problem.evaluator.tuning is not None
    problem.evaluator.tuning(model)
    quantized = model.get_submodule(problem.network.layers[-1].name)
    rows = quantized.quantizer(quantized.weight)[0].detach()
    assert len(torch.unique(rows)) <= 2**8


def test_too_few_images_are_refused():
    problem = make_problem("macs=0.3")
    few = copy.copy(problem.task)
    few.data = replace(few.data, train=few.data.train.take(torch.arange(BATCH_SIZE - 1)), _normalised={})
    with pytest.raises(UserError, match="--tune-steps needs 64 training images, and there are 63"):
        BriefTuning(problem.network.copy(), few, 1, problem.evaluator.calibration)

"""Which evaluated policy is the best: within the drop and the budgets, or the nearest to them."""

from collections.abc import Sequence
from pathlib import Path

from agents.log import EvaluationLog, Row
from agents.standards import Standard
from amc.evaluate import Evaluation
from amc.policy import CompressionPolicy, LayerDecision
from envs.reward import CostReward, PaperReward, least_score

ORIGINAL_SCORE, ORIGINAL_PARAMS = 0.9, 1024.0
COST = CostReward("params", ORIGINAL_PARAMS, ORIGINAL_SCORE, 0.005)


def within(drop: float, reward: CostReward | PaperReward = COST, **limits: float) -> Standard:
    """The smallest network within a drop."""
    return Standard(reward, None, limits, least_score(ORIGINAL_SCORE, drop), "params")


def judged(folder: Path, standard: Standard, found: Sequence[tuple[float, float]]) -> list[Row]:
    """Rows of a log: pairs of score and parameters."""
    log = EvaluationLog(folder / "evaluations.jsonl")
    for index, (score, params) in enumerate(found):
        policy = CompressionPolicy("toy", (LayerDecision("layer", {"width": index}),))
        each = Evaluation(policy, score, {"params": params}, 0.0)
        reward = standard.reward(each)
        log.add(each, reward, {}, standard.leads(each, reward, log.best()), standard.feasible(each))
    return log.rows


def test_the_best_is_the_smallest_within_the_drop_whatever_the_rewards(tmp_path: Path):
    rows = judged(tmp_path, within(0.005), [(0.90, 512.0), (0.875, 64.0), (0.896, 500.0), (0.9, 600.0)])
    # Four halvings for 2 points beyond the drop: the second is paid more, and is not what was asked for.
    assert rows[1].reward > rows[2].reward > rows[0].reward
    assert [row.feasible for row in rows] == [True, False, True, True]
    assert [row.best_index for row in rows] == [0, 0, 2, 2]


def test_a_first_policy_beyond_the_drop_makes_room_for_the_first_within_it(tmp_path: Path):
    rows = judged(tmp_path, within(0.005), [(0.88, 64.0), (0.9, 1000.0), (0.89, 32.0)])
    assert [row.best_index for row in rows] == [0, 1, 1]


def test_a_drop_of_exactly_what_is_allowed_is_within_it():
    assert ORIGINAL_SCORE - 0.895 > 0.005  # as floats are rounded
    standard, policy = within(0.005), CompressionPolicy("toy", ())
    assert standard.feasible(Evaluation(policy, 0.895, {"params": 1.0}, 0.0))
    assert not standard.feasible(Evaluation(policy, 0.8949, {"params": 1.0}, 0.0))  # one image in 10,000


def test_where_none_is_within_the_drop_the_most_accurate_leads(tmp_path: Path):
    rows = judged(tmp_path, within(0.005), [(0.80, 10.0), (0.89, 900.0), (0.88, 20.0), (0.89, 30.0)])
    assert not any(row.feasible for row in rows)
    assert [row.best_index for row in rows] == [0, 1, 1, 1]


def test_what_misses_a_budget_comes_after_what_misses_the_drop(tmp_path: Path):
    found = [(0.90, 900.0), (0.90, 600.0), (0.70, 400.0), (0.90, 800.0), (0.88, 450.0)]
    rows = judged(tmp_path, within(0.005, params=500.0), found)
    assert [row.best_index for row in rows] == [0, 1, 2, 2, 4]


def test_the_papers_reward_leads_the_search_and_the_drop_decides(tmp_path: Path):
    rows = judged(
        tmp_path, within(0.005, PaperReward("params")), [(0.9, 1000.0), (0.8955, 900.0), (0.8, 2.0)]
    )
    assert rows[2].reward > rows[0].reward > rows[1].reward
    assert [row.best_index for row in rows] == [0, 1, 1]

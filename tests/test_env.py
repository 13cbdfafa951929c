"""The Gymnasium environment on a real, tiny problem; its rewards by hand arithmetic."""

import math
import warnings
from collections.abc import Iterator
from typing import Any

import gymnasium
import numpy as np
import pytest
from gymnasium.utils.env_checker import check_env
from stable_baselines3.common.env_checker import check_env as check_env_sb3

from agents.ddpg import CompressionDDPG
from agents.exploration import Exploration
from amc.errors import UserError
from amc.evaluate import Evaluation
from amc.policy import CompressionPolicy
from envs.compression_env import CompressionEnv
from envs.problem import Problem, ProblemConfig, build_problem
from envs.registration import ENVIRONMENT_ID, register_environments
from envs.reward import CostReward, PaperReward, ScoreReward
from tests.test_run import tiny_model, tiny_task

SMALL: dict[str, Any] = {
    "reward_images": 60,
    "calibration_images": 40,
    "target": "tests.test_run:FakeTarget",
}


def make_problem(*budget: str, layers: int = 3, **settings: Any) -> Problem:
    return build_problem(
        tiny_model(layers=layers), tiny_task(), ProblemConfig(budget=budget, **SMALL, **settings)
    )


@pytest.fixture(scope="module")
def problem() -> Iterator[Problem]:
    made = make_problem("macs=0.5", "size=0.2")
    yield made
    made.close()


@pytest.fixture
def env(problem: Problem) -> CompressionEnv:
    return CompressionEnv(problem)


def play(env: CompressionEnv, actions: Any, **reset: Any) -> list[tuple[Any, ...]]:
    """Everything an episode returns; `actions` is called with the step's number."""
    env.reset(**reset)
    steps = [env.step(actions(0))]
    while not steps[-1][2]:
        steps.append(env.step(actions(len(steps))))
    return steps


def zeros(env: CompressionEnv) -> Any:
    return lambda step: np.zeros(env.action_space.shape or (), np.float32)


def test_gymnasium_and_stable_baselines3_have_nothing_to_say(env: CompressionEnv):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        check_env(env, skip_render_check=True)
        check_env_sb3(env)


def test_made_by_its_registered_name(problem: Problem):
    register_environments()
    register_environments()  # Gymnasium may have asked for it already.
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        made = gymnasium.make(ENVIRONMENT_ID, problem=problem)
        observation, _ = made.reset(seed=0)
        made.step(made.action_space.sample())
    assert ENVIRONMENT_ID == "amc/Compression-v0"
    assert observation.shape == made.observation_space.shape
    assert isinstance(made.unwrapped, CompressionEnv)


def test_only_the_last_step_is_rewarded_and_terminates(env: CompressionEnv, problem: Problem):
    env.action_space.seed(3)
    steps = play(env, lambda step: env.action_space.sample())
    assert len(steps) == problem.walk().length == 4
    for _, reward, terminated, truncated, info in steps[:-1]:
        assert (reward, terminated, truncated, set(info)) == (0.0, False, False, {"executed_action"})
    observation, reward, terminated, truncated, info = steps[-1]
    assert (terminated, truncated) == (True, False) and reward != 0.0
    assert set(info) == {"executed_action", "policy", "evaluation"}
    assert observation in env.observation_space


def test_info_holds_the_executed_action_the_policy_and_its_evaluation(env: CompressionEnv, problem: Problem):
    env.action_space.seed(4)
    steps = play(env, lambda step: env.action_space.sample())
    info = steps[-1][4]
    policy, evaluation = info["policy"], info["evaluation"]
    assert isinstance(policy, CompressionPolicy) and isinstance(evaluation, Evaluation)
    assert evaluation.policy == policy and evaluation.costs == problem.evaluator.costs_of(policy)
    assert evaluation.costs["macs"] <= 0.5 * problem.original_costs["macs"]
    assert evaluation.costs["size"] <= 0.2 * problem.original_costs["size"]
    executed = [step[4]["executed_action"] for step in steps]
    assert all(each in env.action_space for each in executed)
    # What was executed, played again, is the same policy: rounding has been taken into account.
    assert play(env, lambda step: executed[step])[-1][4]["policy"] == policy


def test_same_seed_same_episode(env: CompressionEnv):
    episodes = []
    for _ in range(2):
        env.action_space.seed(5)
        episodes.append(play(env, lambda step: env.action_space.sample(), seed=11))
    for one, other in zip(*episodes, strict=True):
        assert np.array_equal(one[0], other[0]) and one[1:4] == other[1:4]
    assert episodes[0][-1][4]["policy"] == episodes[1][-1][4]["policy"]


def test_the_reference_is_worth_nothing(env: CompressionEnv, problem: Problem):
    last = play(env, zeros(env))[-1]
    assert last[4]["policy"] == problem.walk().reference_policy() and last[1] == 0.0


def test_reward_is_the_lead_over_the_reference(env: CompressionEnv, problem: Problem):
    env.action_space.seed(6)
    _, reward, _, _, info = play(env, lambda step: env.action_space.sample())[-1]
    reference = problem.evaluator([problem.walk().reference_policy()])[0].score
    assert reward == pytest.approx((info["evaluation"].score - reference) / 0.1)


def test_a_budget_holds_for_one_episode(env: CompressionEnv, problem: Problem):
    tight = play(env, zeros(env), options={"budget": ["macs=0.3", "size=0.1"]})[-1]
    own = play(env, zeros(env))[-1]
    original = problem.original_costs["macs"]
    assert tight[4]["evaluation"].costs["macs"] <= 0.3 * original < own[4]["evaluation"].costs["macs"]
    assert tight[1] == own[1] == 0.0  # Each against the reference of its own budgets.
    first, _ = env.reset(options={"budget": "macs=0.3"})
    assert first[env._layout.slice("budget")] == pytest.approx([0.3, 0.0])


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"network": "vgg"}, "no network 'vgg' here; there are network"),
        ({"budget": "macs=1e-6"}, "cannot be reached: the smallest legal network costs"),
        ({"budget": "macs=2"}, "at most 1"),
        ({"budget": "latency=0.5"}, "Latency is measured"),
        ({"budget": ["macs=0.5", "size=0.5", "params=0.5"]}, "has room for 2 and 4"),
    ],
)
def test_wrong_options_are_one_sentence_and_change_nothing(
    env: CompressionEnv, options: dict[str, Any], words: str
):
    before, _ = env.reset()
    with pytest.raises(UserError, match=words):
        env.reset(options=options)
    after, _ = env.reset()
    assert np.array_equal(before, after)
    assert play(env, zeros(env))[-1][1] == 0.0


def test_knobs_that_only_another_budget_depends_on_come_alive():
    made = make_problem("macs=0.5", weight_bits=(2, 4, 8))
    assert made.live == {"width"}
    walk = made.walk(["size=0.03"])
    policy = walk.reference_policy()
    assert made.evaluator.costs_of(policy)["size"] <= 0.03 * made.original_costs["size"]
    assert walk.length == made.walk().length + 1  # The last layer has bits to choose and no width.
    with pytest.raises(
        UserError, match=r"decisions about width, weight_bits, and .* for 1 and 3 about width:"
    ):
        CompressionEnv(made).reset(options={"budget": "size=0.03"})


def test_several_networks_share_one_layout():
    problems = {"small": make_problem("macs=0.5"), "large": make_problem("macs=0.5", layers=5)}
    env = CompressionEnv(problems)
    lengths = {name: each.walk().length for name, each in problems.items()}
    assert lengths == {"small": 3, "large": 5}
    assert env.observation_space.shape == CompressionEnv(problems["large"]).observation_space.shape
    for name in ("large", "small", "large"):
        env.action_space.seed(1)
        steps = play(env, lambda step: env.action_space.sample(), options={"network": name})
        assert len(steps) == lengths[name]
        assert all(step[0] in env.observation_space for step in steps)
        assert steps[-1][4]["policy"].network == problems[name].network.fingerprint
        assert play(env, zeros(env), options={"network": name})[-1][1] == 0.0
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        check_env(env, skip_render_check=True)


def test_networks_with_other_knobs_are_refused():
    with pytest.raises(UserError, match="need the same knobs"):
        CompressionEnv({})
    with pytest.raises(UserError, match="need the same knobs"):
        CompressionEnv({"width": make_problem("macs=0.5"), "both": make_problem("size=0.2")})


def test_the_agent_learns_on_it(env: CompressionEnv):
    exploration = Exploration(evaluations=8, warmup=2)
    settings: dict[str, Any] = {"policy_kwargs": {"net_arch": [16, 16]}, "seed": 0}
    model = CompressionDDPG("MlpPolicy", env, exploration=exploration, **settings)
    model.learn(6 * 4)
    assert model._episode_num == 6 and model._n_updates == 5 * 4
    first = model.buffer.actions[:4]
    assert not first.any() and not model.buffer.rewards[:4].any()  # The first episode is the reference.
    assert np.all(np.abs(model.buffer.actions[: 6 * 4]) <= 1.0)
    action, _ = model.predict(env.reset()[0], deterministic=True)
    assert action in env.action_space


def test_the_callers_task_keeps_its_reward_images():
    task = tiny_task()
    count = len(task.data.reward)
    made = build_problem(tiny_model(), task, ProblemConfig(**{**SMALL, "reward_images": 7}))
    assert len(made.task.data.reward) == 7 < count == len(task.data.reward)


def test_reconstruction_refits_the_kept_weights():
    plain, refitted = (make_problem("macs=0.5", reconstruct=each) for each in ("none", "symmetric"))
    policy = plain.walk().reference_policy()
    one, other = (made.evaluator.compressed(policy).state_dict() for made in (plain, refitted))
    assert any(not one[name].equal(other[name]) for name in one if name.endswith("weight"))


def evaluation(score: float, **costs: float) -> Evaluation:
    return Evaluation(CompressionPolicy("toy", ()), score, costs, 0.0)


def test_score_reward_by_hand():
    reward = ScoreReward()
    with pytest.raises(RuntimeError, match="reference policy has to be evaluated first"):
        reward(evaluation(0.7))
    reward.set_reference(evaluation(0.7))
    assert reward(evaluation(0.7)) == 0.0
    assert reward(evaluation(0.85)) == pytest.approx(1.5)
    assert reward(evaluation(0.6)) == pytest.approx(-1.0)


def test_cost_reward_by_hand():
    reward = CostReward("macs", original_cost=800.0, original_score=0.9, max_drop=0.02)
    assert reward(evaluation(0.9, macs=800.0)) == 0.0
    assert reward(evaluation(0.9, macs=100.0)) == 3.0  # three halvings
    assert reward(evaluation(0.89, macs=100.0)) == 3.0  # within the drop
    assert reward(evaluation(0.88, macs=100.0)) == pytest.approx(3.0)
    assert reward(evaluation(0.87, macs=100.0)) == pytest.approx(2.0)  # a point beyond it costs a halving
    assert reward(evaluation(0.95, macs=400.0)) == 1.0  # and more accuracy pays nothing
    assert reward(evaluation(0.9, macs=1600.0)) == -1.0


def test_paper_reward_by_hand():
    reward = PaperReward("macs")
    assert reward(evaluation(0.75, macs=math.e**8)) == pytest.approx(-0.25 * 8)
    assert reward(evaluation(1.0, macs=1e9)) == 0.0
    with pytest.raises(UserError, match=r"needs macs above 1 as an absolute count, not 0.5"):
        reward(evaluation(0.5, macs=0.5))


@pytest.mark.parametrize("milliseconds", [2.0, 1.0, 0.5, 0.01])
def test_paper_reward_does_not_pay_for_wrong_answers_below_a_millisecond(milliseconds: float):
    reward = PaperReward("latency")
    wrong, right = (reward(evaluation(score, latency=milliseconds)) for score in (0.1, 0.9))
    assert wrong < right < 0.0
    assert right == pytest.approx(-0.1 * math.log(milliseconds * 1e6))
    assert reward(evaluation(0.9, latency=milliseconds / 2)) > right


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"weight_bits": (9,)}, "--weight-bits must be 2 to 8, or 32 for not quantized, not 9"),
        ({"activation_bits": (8, 1)}, "--activation-bits must be .* not 1"),
        ({"min_keep": 2.0}, r"smallest keep in \[0, 1\]"),
        ({"min_channels": 0}, "at least 1"),
        ({"min_widths": ("conv1",)}, "--min-widths takes LAYER=CHANNELS, as in conv1=8, and not conv1"),
        ({"width_multiple": 0}, "at least 1"),
        ({"max_drop": float("nan")}, "--max-drop is a loss in points and cannot be nan"),
        ({"reward_images": 0}, "must be at least 1"),
        ({"reward": "paper"}, "--reward paper says how a cost is made small; it needs --goal cost"),
        ({"minimize": "macs"}, "--minimize macs says how a cost is made small; it needs --goal cost"),
        ({"budget": ("macs=0",)}, "above 0"),
        ({"budget": ("speed=0.5",)}, "no cost 'speed'"),
    ],
)
def test_settings_that_make_no_sense_are_refused_without_a_network(settings: dict[str, Any], words: str):
    with pytest.raises(UserError, match=words):
        ProblemConfig(**settings)


def test_aliases_make_the_same_knobs_alive():
    assert make_problem("bytes=0.2").live == make_problem("size=0.2").live == {"width", "weight_bits"}
    assert ProblemConfig(budget=("flops=0.5",), goal="cost").active_costs == ("macs", "latency")

"""Length of retrieval codes as a choice of the agent: order of sub-vectors, costs, budgets, packages."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from amc.data.digits import digits
from amc.errors import UserError
from amc.models import build_model
from amc.network import trace
from amc.package import Architecture, Package, file_bytes, kept_by, load_package, save_package
from amc.package_form import packed_form
from amc.policy import CompressionPolicy, LayerDecision
from amc.policy_check import check_policy
from amc.retrieval import said
from amc.retrieval.code_knob import CodeKnob, find_codebooks
from amc.retrieval.code_length import rank_subvectors
from amc.tasks import ClassificationTask, OwnCompressors, RetrievalTask
from envs.problem import Problem, build_problem
from envs.problem_config import ProblemConfig
from scripts import train_agent
from scripts.cli import exit_code

NAME, WIDTH, BITS = "digitsnet-pqn24", 0.25, 24


@pytest.fixture(scope="module")
def task() -> RetrievalTask:
    return RetrievalTask(digits(8))


def build(task: RetrievalTask, *budget: str, database: int = 0) -> Problem:
    torch.manual_seed(0)
    model = build_model(NAME, 10, 1, WIDTH).eval()
    config = ProblemConfig(
        budget=budget, database=database, reward_images=100, calibration_images=200, reconstruct="none"
    )
    return build_problem(model, task, config)


@pytest.fixture(scope="module")
def problem(task: RetrievalTask) -> Problem:
    return build(task, "size=0.3", "code=16")


@pytest.fixture(scope="module")
def stored(task: RetrievalTask) -> Problem:
    return build(task, "storage=30KB", database=10_000)


def policy_of(problem: Problem, bits: int) -> CompressionPolicy:
    """All channels, and a code of so many bits."""
    space, table = problem.space, problem.space.original()
    table[space.row("words"), space.column("code")] = bits
    return space.policy(table)


def drawn(problem: Problem, count: int) -> list[CompressionPolicy]:
    walk, rng, found = problem.walk(), np.random.default_rng(0), []
    for _ in range(count):
        walk.reset()
        for _ in range(walk.length):
            walk.step(rng.uniform(-1, 1, walk.action_size))
        found.append(walk.policy())
    return found


def test_only_the_codebooks_have_a_code(problem):
    codebooks = find_codebooks(problem.network)
    assert (codebooks.layer, codebooks.group, codebooks.sources) == (
        *("words", "backbone.linear"),
        ("backbone.linear", "norm"),
    )
    knob = CodeKnob(codebooks)
    legal = {point.name: knob.values(point, None) for point in problem.space.points}
    assert legal.pop("words") == (4, 8, 12, 16, 20, 24) and set(legal.values()) == {(0,)}
    for policy in drawn(problem, 3):
        assert list(policy.values("code")) == ["words"]
        assert CompressionPolicy.from_json(policy.to_json()) == policy
        assert problem.space.policy(problem.space.table(policy)) == policy


def test_a_subvector_that_says_something_new_comes_before_a_copy():
    labels = torch.arange(60) % 4
    tables = torch.zeros(60, 3, 16)
    for image, label in enumerate(labels.tolist()):
        tables[image, 0, label // 2] = tables[image, 1, label // 2] = 1.0  # two classes from the other two
        tables[image, 2, label % 2 if image > 5 else 2] = 1.0  # the rest, with errors
    assert rank_subvectors(tables, labels).tolist() == [0, 2, 1]


def test_a_shorter_code_is_that_of_the_kept_subvectors(problem, task):
    x = task.data.normalised("reward")[:7]
    (shortening,) = task.compressors(problem.network)
    policy = policy_of(problem, 8)
    whole, short = (said(problem.evaluator.compressed(policy_of(problem, bits))(x)) for bits in (BITS, 8))
    stay = shortening.order[:2].sort().values
    assert short.table.shape == (7, 2, 16)
    assert torch.allclose(short.table, whole.table[:, stay], atol=1e-4)
    assert torch.allclose(short.vectors, whole.vectors[:, stay], atol=1e-4)
    assert policy["words"].values["code"] == 8 and policy["words"].values["width"] == 96


@pytest.mark.parametrize("bits", [4, 16, 24])
def test_costs_are_those_of_the_smaller_network(problem, bits):
    policy = policy_of(problem, bits)
    model, costs = problem.evaluator.compressed(policy), problem.evaluator.costs_of(policy)
    assert costs["code"] == bits
    assert costs["params"] == sum(parameter.numel() for parameter in model.parameters())
    assert costs["macs"] == trace(model, problem.network.example).macs


def test_a_package_holds_a_shorter_code_to_the_byte(problem, task, tmp_path):
    x, architecture = task.data.normalised("test")[:5], Architecture(NAME, 10, task.data.shape, WIDTH)
    lengths = set()
    for policy in drawn(problem, 3):
        model = problem.evaluator.compressed(policy)
        kept = kept_by(problem.evaluator.compressors, problem.network, policy)
        path = save_package(tmp_path, Package(model, policy, kept, architecture), problem.network)
        loaded = load_package(tmp_path)
        assert loaded.policy == policy
        assert torch.equal(loaded.module(x), packed_form(model, problem.network)(x))
        assert file_bytes(path)[1] == problem.evaluator.costs_of(policy)["size"]
        lengths.add(policy["words"].values["code"])
    assert min(lengths) < BITS


def test_every_policy_keeps_the_budgets_and_the_reference_has_the_longest_code(problem):
    reference = problem.walk().reference_policy()
    assert reference["words"].values["code"] == 16
    for policy in [reference, *drawn(problem, 5)]:
        costs = problem.evaluator.costs_of(policy)
        assert all(costs[budget.cost.name] <= budget.limit for budget in problem.budgets)


def test_storage_counts_the_codes_of_the_database(stored):
    for policy in [stored.walk().reference_policy(), *drawn(stored, 5)]:
        costs = stored.evaluator.costs_of(policy)
        assert costs["storage"] == costs["size"] + 10_000 * costs["code"] / 8 <= 30_000
    assert len({policy["words"].values["code"] for policy in drawn(stored, 8)}) > 1
    empty = stored.space.empty()
    cost = stored.costs["storage"]
    assert cost.lower_bound(empty) == cost.of(cost.cheapest(empty)) < cost.upper_bound(empty)


def test_without_a_budget_on_codes_there_is_nothing_new_to_decide(task):
    space = build(task, "macs=0.5").space
    assert "code" not in [knob.name for knob in space.knobs]


def test_codes_are_refused_where_there_are_none(task, problem):
    with pytest.raises(UserError, match="bounds the codes of --task retrieval; classification has none"):
        torch.manual_seed(0)
        classifier = build_model("digitsnet", 10, 1, WIDTH).eval()
        build_problem(classifier, ClassificationTask(digits(8)), ProblemConfig(budget=("code=8",)))
    with pytest.raises(UserError, match="no codebooks"):
        find_codebooks(trace(classifier, problem.network.example))
    with pytest.raises(UserError, match="give both"):
        ProblemConfig(budget=("storage=10KB",))
    with pytest.raises(UserError, match="give both"):
        ProblemConfig(budget=("macs=0.5",), database=10)
    with pytest.raises(UserError, match="cannot be reached"):
        build(task, "code=2")
    assert isinstance(task, OwnCompressors) and not isinstance(ClassificationTask(digits(8)), OwnCompressors)


@pytest.mark.parametrize(("point", "bits"), [("words", 28), ("words", 6), ("backbone.conv1", 8)])
def test_a_policy_with_an_impossible_code_is_refused(problem, point, bits):
    policy = policy_of(problem, BITS)
    wrong = [
        LayerDecision(each.point, {**each.values, "code": bits}) if each.point == point else each
        for each in policy.decisions
    ]
    with pytest.raises(UserError, match=f"a code of {bits} bits"):
        check_policy(replace(policy, decisions=tuple(wrong)), problem.network)


@pytest.mark.slow
def test_an_agent_chooses_the_length_of_codes(tmp_path, capsys):
    arguments = "--data digits --side 8 --task retrieval --device cpu --model digitsnet-pqn24 --width 0.25"
    budget = "--budget storage=35KB macs=0.7 --database 10000 --evaluations 24 --algorithm ddpg --name a"
    assert exit_code(train_agent.main, [*arguments.split(), *budget.split(), "--runs", str(tmp_path)]) == 0
    policy = CompressionPolicy.load(tmp_path / "a" / "policy.json")
    assert policy["words"].values["code"] in range(4, 28, 4)

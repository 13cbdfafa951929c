"""The decision process: whatever the actions are, budgets hold and are used."""

import time

import numpy as np
import pytest

from amc.costs.budget import Budget, parse_budget
from amc.costs.symbolic import symbolic_costs
from amc.knobs import BitsKnob, WidthKnob
from amc.reference import complete_uniformly
from amc.space import Space
from envs.bounding import Range
from envs.observation import Layout
from envs.walk import Walk

WIDTHS_ONLY, ALL = frozenset({"width"}), frozenset({"width", "weight_bits", "activation_bits"})
CASES = [
    (("macs=0.5",), WIDTHS_ONLY, 1),
    (("macs=0.5",), WIDTHS_ONLY, 4),
    (("macs=0.5", "size=0.15"), frozenset({"width", "weight_bits"}), 1),
    (("bops=0.02",), ALL, 1),
]


def walk_of(network, texts, live=ALL, multiple=1, scale=1.0, bits=(2, 3, 4, 5, 6, 7, 8)) -> Walk:
    knobs = (
        WidthKnob(multiple),
        BitsKnob("weight_bits", network, bits),
        BitsKnob("activation_bits", network, bits),
    )
    space = Space(network, knobs)
    costs = symbolic_costs(space)
    original = {name: cost.of(space.original()) for name, cost in costs.items()}
    budgets = [parse_budget(text, costs, original) for text in texts]
    tighter = [Budget(b.cost, b.limit * scale, b.original) for b in budgets]
    return Walk(space, tighter, live, costs["macs"])


def episode(walk: Walk, actions: np.ndarray) -> np.ndarray:
    """The table of the policy of some actions [length, knobs]."""
    walk.reset()
    for action in actions:
        _, _, done = walk.step(action)
    assert done
    return walk.partial.values


def random_actions(walk: Walk, count: int, seed: int = 0) -> np.ndarray:
    """Half of them anywhere in the box, half around one level with its corners reached often."""
    draw = np.random.default_rng(seed)
    shape = (count, walk.length, walk.action_size)
    anywhere = draw.uniform(-1, 1, shape)
    level = np.clip(draw.normal(draw.uniform(-1.5, 1.5, (count, 1, 1)), 0.3, shape), -1, 1)
    return np.where(np.arange(count)[:, None, None] % 2, anywhere, level)


@pytest.mark.parametrize("episodes", [40, pytest.param(400, marks=pytest.mark.slow)])
@pytest.mark.parametrize(("texts", "live", "multiple"), CASES)
def test_budgets_hold_are_used_and_a_tighter_one_never_costs_more(texts, live, multiple, episodes, traced):
    walk = walk_of(traced("resnet20"), texts, live, multiple)
    tighter = walk_of(traced("resnet20"), texts, live, multiple, scale=0.9)
    for number, actions in enumerate(random_actions(walk, episodes)):
        costs = np.array([budget.cost.of(episode(walk, actions)) for budget in walk.budgets])
        used = costs / [budget.limit for budget in walk.budgets]
        assert used.max() <= 1.0
        assert used.max() >= 0.97, f"episode {number} leaves a budget unused: {used}"
        if number % 4 == 0:
            less = np.array([budget.cost.of(episode(tighter, actions)) for budget in walk.budgets])
            assert (less <= 0.9 * np.array([budget.limit for budget in walk.budgets])).all()
            assert (less <= costs).any()
            assert len(costs) > 1 or less[0] <= costs[0]


@pytest.mark.parametrize(("texts", "live", "multiple"), CASES)
def test_zero_actions_are_the_reference_policy(texts, live, multiple, traced):
    walk = walk_of(traced("resnet20"), texts, live, multiple)
    zero = episode(walk, np.zeros((walk.length, walk.action_size)))
    assert (walk.space.table(walk.reference_policy()) == zero).all()
    start = walk.space.empty()
    uniform = complete_uniformly(walk.space, start, walk.budgets)
    live_columns = [walk.space.column(name) for name in live]
    assert (zero[:, live_columns] != uniform[:, live_columns]).mean() <= 0.1


@pytest.mark.parametrize(("texts", "live", "multiple"), CASES)
def test_executed_action_gives_the_same_policy_and_is_its_own(texts, live, multiple, traced):
    walk = walk_of(traced("resnet20"), texts, live, multiple)
    for actions in random_actions(walk, 10, seed=1):
        walk.reset()
        executed = np.array([walk.step(action)[1] for action in actions])
        first = walk.partial.values
        assert executed.dtype == np.float32 and np.abs(executed).max() <= 1
        walk.reset()
        again = np.array([walk.step(action)[1] for action in executed])
        assert (walk.partial.values == first).all() and (again == executed).all()


def test_knobs_that_are_dead_everywhere_have_no_entry(traced):
    walk = walk_of(traced("resnet20"), ("macs=0.5",), WIDTHS_ONLY)
    assert walk.action_size == 1
    assert (episode(walk, random_actions(walk, 1)[0])[:, 1:] == 8).all()


def test_entries_that_are_dead_at_a_point_are_ignored_and_get_0(traced):
    walk = walk_of(traced("resnet20"), ("size=0.15",), frozenset({"width", "weight_bits"}))
    actions = random_actions(walk, 1)[0]
    alive = np.array([[walk._open(row, column) for column in walk.columns] for row in walk.rows])
    walk.reset()
    executed = np.array([walk.step(action)[1] for action in actions])
    assert (executed[~alive] == 0).all() and (executed[alive] != 0).any() and (~alive).any()
    table = walk.partial.values
    assert (episode(walk, np.where(alive, actions, -actions)) == table).all()


def test_points_without_a_live_knob_are_not_visited(traced):
    network = traced("resnet20")
    macs = walk_of(network, ("macs=0.5",), WIDTHS_ONLY)
    assert [macs.space.points[row].name for row in macs.rows] == [
        g.name for g in network.groups if not g.frozen
    ]
    size = walk_of(network, ("size=0.15",), frozenset({"width", "weight_bits"}))
    assert size.length == len(network.layers)
    sizes = walk_of(network, ("size=0.25",), frozenset({"width", "weight_bits"}), bits=(8,))
    assert sizes.length == macs.length


def test_observation_is_in_range_and_of_the_declared_size(traced):
    walk = walk_of(traced("resnet20"), ("macs=0.5", "size=0.15"))
    layout = walk.layout
    assert layout.size == walk.observation_size == sum(layout.parts.values())
    observations = [walk.reset()]
    for action in random_actions(walk, 1)[0]:
        observations.append(walk.step(action)[0])
    table = np.array(observations)
    assert table.shape == (walk.length + 1, walk.observation_size) and table.dtype == np.float32
    assert table.min() == 0.0 and table.max() == 1.0
    parts = dict(
        zip(layout.parts, np.split(table, np.cumsum(list(layout.parts.values()))[:-1], 1), strict=True)
    )
    assert (parts["one_hot"][:-1] == np.eye(walk.length)).all() and not parts["one_hot"][-1].any()
    assert parts["budget"][0] == pytest.approx([0.5, 0.15])
    assert (np.diff(parts["progress"][:, 0]) >= 0).all() and (np.diff(parts["progress"][:, 1]) <= 0).all()
    assert parts["progress"][-1, 1] == 0.0  # nothing is left to decide
    macs = walk.budgets[0].cost
    reduced = 1 - macs.of(walk.partial.values) / macs.of(walk.space.largest)
    assert parts["progress"][-1, 0] == pytest.approx(reduced, abs=1e-6)
    # Decided entries only ever fill up, and the last observation holds the whole policy.
    decided = parts["decided"].reshape(walk.length + 1, walk.length, 3)
    assert ((decided[1:] == decided[:-1]) | (decided[:-1] == 0)).all()
    assert decided[-1, 0, 0] == pytest.approx(walk.partial.values[0, 0] / 16)


def test_observation_tells_which_knobs_are_alive(traced):
    walk = walk_of(traced("resnet20"), ("size=0.15",), frozenset({"width", "weight_bits"}))
    assert walk.action_size == 2
    seen = [walk.reset()[walk.alive].tolist()]
    while len(seen) < walk.length:
        seen.append(walk.step(np.zeros(2))[0][walk.alive].tolist())
    names = [walk.space.points[row].name for row in walk.rows]
    assert seen[names.index("conv1")] == [1.0, 1.0]
    assert seen[names.index("layer1.0.conv2")] == [0.0, 1.0]  # its group is decided by conv1
    assert seen[names.index("linear")] == [0.0, 1.0]


def test_a_larger_layout_pads_with_zeros(traced):
    small = walk_of(traced("resnet20"), ("macs=0.5",))
    large = Walk(small.space, small.budgets, ALL, small.progress, layout=Layout(60, 3, 2))
    assert large.observation_size == 9 + 2 + 3 + 3 + 2 + 60 + 180
    assert large.reset().shape == (large.observation_size,)


def test_an_unfinished_episode_has_no_policy(traced):
    walk = walk_of(traced("resnet20"), ("macs=0.5",), WIDTHS_ONLY)
    walk.step(np.zeros(3))
    with pytest.raises(RuntimeError, match="not finished"):
        walk.policy()


def test_actions_beyond_the_box_are_clipped(traced):
    walk = walk_of(traced("resnet20"), ("macs=0.5",), WIDTHS_ONLY)
    actions = random_actions(walk, 1)[0]
    wild = np.where(actions > 0, 9.0, -9.0)
    assert (episode(walk, wild) == episode(walk, np.sign(wild))).all()


def test_without_budgets_the_whole_range_is_open(traced):
    walk = walk_of(traced("resnet20"), ())
    ones = np.ones((walk.length, 3))
    assert (episode(walk, ones) == walk.space.largest).all()
    assert (episode(walk, -ones) == walk.space.smallest).all()
    assert episode(walk, 0 * ones)[0, 0] == 14  # 0.9 of 16


# Values 1, 2, 4, 8, 16, 32; the reference is 8, feasible are 2 to 32.
@pytest.mark.parametrize(
    ("action", "value"), [(-1, 2), (-0.5, 4), (-0.2, 8), (0, 8), (0.2, 8), (0.3, 16), (0.7, 16), (1, 32)]
)
def test_actions_stretch_over_the_feasible_values(action, value):
    assert Range((1, 2, 4, 8, 16, 32), 1, 3, 5).value(action) == value


def test_action_of_a_value_round_trips():
    limits = Range(tuple(range(100)), 3, 40, 97)
    assert all(limits.value(np.float32(limits.action(v))) == v for v in range(3, 98))
    assert Range((4, 8), 1, 1, 1).action(8) == 0.0


@pytest.mark.parametrize("name", ["resnet56", "mobilenet_v2"])
def test_an_episode_is_short(name, traced):
    walk = walk_of(traced(name), ("macs=0.5", "size=0.15"))
    actions = random_actions(walk, 3)
    times = []
    for one in actions:
        start = time.process_time()
        episode(walk, one)
        times.append(time.process_time() - start)
    assert min(times) < 2.0

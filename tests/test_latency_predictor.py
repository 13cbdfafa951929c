"""The latency predictor: its features, what it learns and how it is sampled; nothing here is timed."""

import json
from collections.abc import Callable, Sequence
from functools import cache

import numpy as np
import pytest
import torch
from torch import nn
from torch.fx.passes.shape_prop import ShapeProp

from amc.compress import ActivationQuantization, ChannelPruning, Compressor, WeightQuantization, apply
from amc.costs.latency.cost import LatencyCost
from amc.costs.latency.features import FORMATS, LAYER_FEATURES, LatencyFeatures
from amc.costs.latency.parts import block_of, rounded
from amc.costs.latency.predictor import LatencyPredictor, Sample, _interval
from amc.costs.latency.sampling import random_table
from amc.costs.latency.tensors import find_tensors
from amc.knobs import BitsKnob, WidthKnob
from amc.network import Network, trace
from amc.pruning.importance import rank_channels
from amc.quantization.modules import ActivationQuantizer
from amc.space import Space

Traced = Callable[[str], Network]
NETWORKS = ("resnet20", "mobilenet_v1", "mobilenet_v2", "concatnet")
"""With shortcuts, depthwise layers, both, and concatenations."""


def make_space(network: Network, multiple: int = 1, bits: Sequence[int] = (8, 32)) -> Space:
    """Widths, and one choice between integers and floats for each tensor."""
    implied = ("activation_bits", dict(zip(bits, bits, strict=True)))
    return Space(
        network,
        (
            WidthKnob(multiple),
            BitsKnob("weight_bits", network, bits, None, implied),
            BitsKnob("activation_bits", network, bits),
        ),
    )


def make_compressors(space: Space) -> list[Compressor]:
    width, weights, activations = space.knobs
    assert isinstance(width, WidthKnob)
    assert isinstance(weights, BitsKnob) and isinstance(activations, BitsKnob)
    ranking = rank_channels(space.network, "l2")
    return [ChannelPruning(ranking, width), WeightQuantization(weights), ActivationQuantization(activations)]


def tables(space: Space, count: int, seed: int = 0) -> list[np.ndarray]:
    rng = np.random.default_rng(seed)
    return [random_table(space, rng) for _ in range(count)]


def small_network(layers: int = 4, channels: int = 24) -> Network:
    """A chain of 3x3 convolutions and a linear layer."""
    torch.manual_seed(0)
    body: list[nn.Module] = []
    for index in range(layers):
        body += [nn.Conv2d(channels if index else 3, channels, 3, 1, 1), nn.BatchNorm2d(channels), nn.ReLU()]
    model = nn.Sequential(*body, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(channels, 10))
    return trace(model.eval(), torch.zeros(1, 3, 8, 8))


class Truth:
    """A closed-form latency of the chain: steps of 8, a layer's own cost, and a border between formats.

    Args:
        space: of `small_network`.
        noise: standard deviation of the relative error of a measurement.
    """

    def __init__(self, space: Space, noise: float = 0.0):
        self.space, self.noise = space, noise
        self._rng = np.random.default_rng(1)
        self._whole = self._cost(space.original())

    def ratio(self, table: np.ndarray) -> float:
        """As a fraction of the original's, without noise."""
        return self._cost(table) / self._whole

    def sample(self, table: np.ndarray) -> Sample:
        """One measurement."""
        return Sample(table, self.ratio(table) * (1.0 + self.noise * self._rng.normal()))

    def _cost(self, table: np.ndarray) -> float:
        widths = np.ceil(table[:, 0] / 8) * 8
        inputs = np.array([3.0, *widths[:-1]])
        integer = table[:, 1:].max(axis=1) < 32
        speed = np.where(integer, 0.3, 1.0)
        layers = speed * inputs * widths + 40.0
        borders = 30.0 * table[:-1, 0] * (integer[1:] != integer[:-1])
        return float(layers.sum() + borders.sum())


@cache
def chain() -> Space:
    """The space of `small_network`, made once: it is never changed."""
    return make_space(small_network())


def fitted(noise: float = 0.01, count: int = 120, steps: tuple[int, int] = (8, 8)) -> LatencyPredictor:
    truth = Truth(chain(), noise)
    return LatencyPredictor(
        LatencyFeatures(chain(), steps), [truth.sample(t) for t in tables(chain(), count)]
    )


@pytest.mark.parametrize("name", NETWORKS)
def test_features_grow_with_every_width(traced: Traced, name: str):
    space = make_space(traced(name))
    features = LatencyFeatures(space, (4, 8))
    rng = np.random.default_rng(0)
    for table in tables(space, 6):
        before = features.of(table)
        assert before.shape == (features.size,) and (before >= 0).all()
        for row in rng.permutation(np.flatnonzero(space.decider[:, 0] == np.arange(len(space.points))))[:12]:
            wider = table.copy()
            wider[space.decider[:, 0] == row, 0] = space.legal(int(row), 0)[-1]
            assert (features.of(wider) >= before - 1e-6).all()


@pytest.mark.parametrize(("step", "jumps"), [(1, [16, 32]), (4, [16, 32]), (8, [16, 32]), (16, [32])])
def test_features_jump_where_a_register_is_full(step: int, jumps: list[int]):
    """Also where the target has found no step of its own that suits all layers."""
    widths = np.arange(step, 49, step)
    blocks = rounded(widths, block_of(step))
    assert widths[:-1][np.diff(blocks) > 0].tolist() == jumps


@pytest.mark.parametrize("name", NETWORKS)
def test_classes_split_what_their_kinds_add_up(traced: Traced, name: str):
    space = make_space(traced(name))
    features = LatencyFeatures(space, (4, 8))
    assert features.specific.shape == (features.size,)
    kinds = len({layer.kind for layer in space.network.layers})
    for table in tables(space, 3):
        values = features.of(table)
        of_classes = values[features.specific].reshape(FORMATS, -1, LAYER_FEATURES)
        of_kinds = values[~features.specific][: FORMATS * kinds * LAYER_FEATURES]
        added_up = of_kinds.reshape(FORMATS, kinds, LAYER_FEATURES).sum(axis=1)
        assert of_classes.sum(axis=1) == pytest.approx(added_up)


@pytest.mark.parametrize("name", ["resnet20", "mobilenet_v2", "concatnet"])
def test_elements_are_those_of_the_sliced_network(traced: Traced, name: str):
    """The tensors of the formula are those that the really compressed network writes."""
    space = make_space(traced(name))
    network, tensors = space.network, find_tensors(space)
    compressors = make_compressors(space)
    assert {point for point in tensors.point if point}
    for table in tables(space, 2):
        model = apply(space.policy(table), network, compressors)
        ShapeProp(model).propagate(network.example)
        real: dict[str, tuple[int, ...]] = {
            str(node.target): tuple(node.meta["tensor_meta"].shape)
            for node in model.graph.nodes
            if node.op == "call_module"
        }
        elements = tensors.elements(table[:, 0].astype(float))
        for index, writer in enumerate(tensors.writer):
            if writer >= 0:
                assert elements[index] == np.prod(real[space.points[writer].name])
        stored = [
            (point, count)
            for point, count, writer in zip(tensors.point, elements, tensors.writer, strict=True)
            if point and writer < 0
        ]
        for point, count in stored:
            if isinstance(dict(model.named_modules()).get(point), ActivationQuantizer):
                assert count == np.prod(real[point]), point


def test_a_synthetic_latency_is_recovered():
    predictor, truth = fitted(), Truth(chain())
    assert predictor.mape < 0.03
    errors = [predictor(t) / truth.ratio(t) - 1.0 for t in tables(chain(), 60, seed=7)]
    assert np.abs(errors).mean() < 0.02


def test_predictions_never_fall_when_a_width_grows():
    predictor = fitted(noise=0.05)
    for table in tables(chain(), 40, seed=3):
        for row in range(len(table) - 1):
            curve = []
            for width in chain().legal(row, 0):
                wider = table.copy()
                wider[row, 0] = width
                curve.append(predictor(wider))
            assert (np.diff(curve) >= -1e-12).all()


def test_the_right_channel_step_predicts_better():
    assert fitted(noise=0.0).mape < 0.5 * fitted(noise=0.0, steps=(1, 1)).mape


def test_bounds_are_completions():
    space, predictor = chain(), fitted()
    cost = LatencyCost(space, predictor, original=2.0)
    rng = np.random.default_rng(5)
    for table in tables(space, 15, seed=4):
        partial = space.empty()
        for row in range(3):
            partial = space.decide(partial, row, 0, int(table[row, 0]))
            partial = space.decide(partial, row, 2, int(table[row, 2]))
        low, high = [], []
        for bits in (8, 32):
            smallest, largest = space.smallest.copy(), space.largest.copy()
            smallest[:, 1:], largest[:, 1:] = bits, bits
            low.append(cost.of(partial.filled(smallest)))
            high.append(cost.of(partial.filled(largest)))
            widths = [rng.choice(space.legal(row, 0)) for row in range(len(table))]
            between = np.column_stack([widths, np.full((len(table), 2), bits)])
            assert cost.lower_bound(partial) <= cost.of(partial.filled(between)) <= cost.upper_bound(partial)
        assert cost.lower_bound(partial) == min(low) and cost.upper_bound(partial) == max(high)
    assert cost.of(table) == pytest.approx(2.0 * predictor.bound(predictor(table)))


def test_a_lone_integer_layer_may_be_slower_than_floats():
    space = chain()
    cost = LatencyCost(space, fitted(noise=0.0), 1.0)
    partial = space.empty()
    for row in range(len(space.points) - 1):
        partial = space.decide(partial, row, 0, 24)
    for row in (0, 1, 3, 4):
        partial = space.decide(partial, row, 2, 32)
    floats = space.decide(partial, 2, 2, 32)
    assert cost.lower_bound(partial) == min(
        cost.lower_bound(floats), cost.lower_bound(space.decide(partial, 2, 2, 8))
    )
    assert cost.of(floats.values) < cost.of(space.decide(partial, 2, 2, 8).values)


def test_adding_a_sample_corrects_what_is_near():
    predictor = fitted(count=60)
    table = tables(chain(), 1, seed=11)[0]
    slow, before, count = 1.5 * predictor(table), predictor(table), len(predictor.errors)
    predictor.add(table, slow)
    assert len(predictor.errors) == count + 1
    assert predictor.errors[-1] == pytest.approx(1 / 1.5 - 1)
    for _ in range(10):
        predictor.add(table, slow)
    assert abs(predictor(table) - slow) < 0.7 * abs(before - slow)


def test_margin_and_mean_error_by_hand():
    predictor = fitted(count=40)
    predictor.errors = np.array([0.25] * 10 + [-0.2] * 10)  # measurements 20 % below and 25 % above
    assert predictor.mape == pytest.approx(0.225)
    assert predictor.margin == pytest.approx(0.25)
    predictor.errors = np.array([0.1] * 20)
    assert predictor.margin == 0.0  # predictions that are always too high need none


def test_the_bound_follows_the_errors_at_that_latency():
    """A half of the policies is predicted exactly, the slower half 20 % too fast."""
    predictor = fitted(count=200)
    ratios = np.linspace(0.1, 1.0, 200)
    predictor._ratios, predictor.errors = ratios, np.where(ratios < 0.55, 0.0, 1 / 1.2 - 1)
    assert predictor.margin == pytest.approx(0.2)
    assert predictor.bound(0.2) == pytest.approx(0.2)
    assert predictor.bound(0.05) == pytest.approx(0.05)  # below every sample, as the nearest ones
    assert predictor.bound(0.8) == pytest.approx(0.96)
    assert predictor.bound(2.0) == pytest.approx(2.4)
    rising = [predictor.bound(ratio) for ratio in np.linspace(0.01, 2.0, 300)]
    assert rising == sorted(rising)


def test_the_bound_hears_of_new_measurements():
    predictor, table = fitted(count=60), tables(chain(), 1, seed=11)[0]
    before = predictor.bound(predictor(table)) / predictor(table)
    for _ in range(10):
        predictor.add(table, 1.5 * predictor(table))
    assert predictor.bound(predictor(table)) / predictor(table) > before


def test_a_search_is_bound_by_its_own_measurements():
    predictor, table = fitted(count=60), tables(chain(), 1, seed=11)[0]
    predictor.errors = np.array([0.5, -0.4] * 30)  # random policies scatter widely
    for excess in (-0.05, -0.06):
        predictor.add(table, (1 + excess) * predictor(table))
    assert predictor.bound(0.5) > 0.5
    for excess in (-0.04, -0.05):
        predictor.add(table, (1 + excess) * predictor(table))
    assert 0.475 < predictor.bound(0.5) < 0.5


def test_the_bound_of_eight_measurements_holds_for_the_ninth():
    excess = np.random.default_rng(0).normal(-0.05, 0.01, (1000, 9))
    bounds = [_interval(1 / (1 + known) - 1) for known in excess[:, :8]]
    assert 0.93 <= np.mean(excess[:, 8] <= bounds) <= 0.97


def test_too_few_samples_fit_nothing():
    with pytest.raises(ValueError, match="19 samples are too few"):
        fitted(count=19)


def test_a_sample_survives_json():
    sample = Sample(tables(chain(), 1)[0], 0.4375)
    again = Sample.from_json(json.loads(json.dumps(sample.to_json())))
    assert np.array_equal(again.table, sample.table) and again.table.dtype == sample.table.dtype
    assert again.ratio == sample.ratio

"""The latency predictor: its features, what it learns and how it is sampled; nothing here is timed."""

import json
from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from torch.fx.passes.shape_prop import ShapeProp

from amc.compress import ActivationQuantization, ChannelPruning, Compressor, WeightQuantization, apply
from amc.costs.latency.cost import LatencyCost
from amc.costs.latency.features import FORMATS, LAYER_FEATURES, LatencyFeatures
from amc.costs.latency.fitting import make_predictor, sample_latencies
from amc.costs.latency.predictor import LatencyPredictor, Sample, _interval
from amc.costs.latency.sampling import LEAST_SAMPLES, Sampler, random_table, with_ratios
from amc.costs.latency.tensors import find_tensors
from amc.errors import UserError
from amc.knobs import BitsKnob, WidthKnob
from amc.network import Network, trace
from amc.pruning.importance import rank_channels
from amc.quantization.modules import ActivationQuantizer
from amc.space import Space
from amc.targets import Profile, Target, Timing
from amc.targets.cache import JsonCache

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


@pytest.mark.parametrize("name", ["resnet20", "mobilenet_v2", "concatnet"])
def test_random_tables_are_legal_and_bits_agree(traced: Traced, name: str):
    space = make_space(traced(name), multiple=4, bits=(7, 32))
    for table in tables(space, 15):
        for row, column in np.ndindex(table.shape):
            assert table[row, column] in space.legal(row, column)
        assert np.array_equal(table[:, 1], table[:, 2])
        assert np.array_equal(space.table(space.policy(table)), table)  # checks what layers must share


def test_random_tables_scatter_over_sizes_and_formats():
    drawn = tables(chain(), 200)
    kept = [table[:-1, 0].mean() / 24 for table in drawn]
    assert min(kept) < 0.2 and max(kept) > 0.9
    integers = [(table[:, 2] == 8).mean() for table in drawn]
    assert {0.0, 1.0} <= set(integers) and any(0 < share < 1 for share in integers)


class SizeTarget(Target):
    """Latency is the size of the file; nothing is timed."""

    name = "size"
    profile = Profile(width_multiple=4, width_multiple_at={32: 8})
    runtime_version = "1"

    def __init__(self) -> None:
        self.calls: list[int] = []

    def export(self, module: Any, example: torch.Tensor, path: Path) -> Any:
        """As many bytes as the module has parameters."""
        path.write_bytes(bytes(sum(p.numel() for p in module.parameters())))

    def measure(self, files: Sequence[Path | str], *, time_limit_s: float = 30.0) -> list[Timing]:
        """The first file is the reference."""
        self.calls.append(len(files) - 1)
        sizes = [Path(file).stat().st_size for file in files]
        return [Timing(size, (size,), size / sizes[0], True, 1) for size in sizes]

    def run(self, file: Path | str, inputs: np.ndarray) -> np.ndarray:
        """Never asked for."""
        raise NotImplementedError


def timing(*rounds: float) -> Timing:
    return Timing(min(rounds), rounds, 1.0, True, 1)


def test_a_slow_phase_that_spares_the_references_best_changes_no_ratio():
    calm = ([np.zeros((1, 3))], [timing(2.0, 2.0, 2.0), timing(1.0, 1.0, 1.0), timing(0.5, 0.5, 0.5)])
    slow = ([np.ones((1, 3))], [timing(2.0, 3.0, 3.0), timing(1.0, 1.5, 1.5), timing(0.9, 0.9, 0.9)])
    assert slow[1][2].best / slow[1][0].best == 0.45
    assert [sample.ratio for sample in with_ratios([calm, slow])] == pytest.approx([0.25, 0.3])


def test_a_reference_that_alone_is_slow_in_one_measurement_changes_no_ratio():
    calm = ([np.zeros((1, 3))], [timing(2.0), timing(1.0), timing(0.5)])
    odd = ([np.zeros((1, 3))], [timing(2.6), timing(1.0), timing(0.5)])
    assert [sample.ratio for sample in with_ratios([calm, odd, calm])] == pytest.approx([0.25] * 3)


def test_a_measurement_whose_anchor_strays_from_all_others_is_left_out():
    calm = ([np.zeros((1, 3))], [timing(2.0), timing(1.0), timing(0.5)])
    stray = ([np.zeros((1, 3))], [timing(2.0), timing(1.2), timing(0.5)])
    assert [sample.ratio for sample in with_ratios([stray, *[calm] * 5])] == pytest.approx([0.25] * 5)
    assert len(with_ratios([stray, stray, *[calm] * 3])) == 5, "two of five are no strays"


@pytest.fixture
def reference(tmp_path: Path) -> Path:
    target = SizeTarget()
    path = tmp_path / "original.onnx"
    target.export(chain().network.module, chain().network.example, path)
    return path


def test_sampling_measures_so_many_different_policies(reference: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("amc.costs.latency.sampling.MOST_SAMPLES", 60)
    target, heard = SizeTarget(), list[tuple[int, int]]()
    sampler = Sampler(chain().network, chain(), make_compressors(chain()), target, reference)
    samples = sampler.collect(lambda done, total: heard.append((done, total)))
    anchors, each = len(target.calls), 2  # every file is measured once to be loaded, and then timed
    assert len(samples) == 60 == (sum(target.calls) - anchors) / each and max(target.calls) == 7
    assert len({sample.table.tobytes() for sample in samples}) == 60
    assert heard[0] == (6, 60) and heard[-1] == (60, 60)
    model = apply(chain().policy(samples[0].table), chain().network, make_compressors(chain()))
    ratio = sum(p.numel() for p in model.parameters()) / reference.stat().st_size
    assert samples[0].ratio == pytest.approx(ratio)


def test_sampling_ends_in_time_with_one_sentence(reference: Path, monkeypatch: pytest.MonkeyPatch):
    target = SizeTarget()
    target.sampling_limit_s = 10.0
    now = iter(range(0, 100_000, 2))
    monkeypatch.setattr("amc.costs.latency.sampling.time.monotonic", lambda: float(next(now)))
    sampler = Sampler(chain().network, chain(), make_compressors(chain()), target, reference)
    with pytest.raises(UserError, match=r"Only \d+ random policies could be measured on size within 10 s"):
        sampler.collect()
    assert 0 < len(target.calls) < LEAST_SAMPLES // 7


def test_sampling_a_space_with_few_policies_says_so(reference: Path):
    space = make_space(chain().network, multiple=24, bits=(8, 32))
    sampler = Sampler(space.network, space, make_compressors(space), SizeTarget(), reference)
    with pytest.raises(UserError, match="there are no more, or the machine is too busy"):
        sampler.collect()


def test_samples_are_remembered_and_a_damaged_entry_is_not(
    tmp_path: Path, reference: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr("amc.costs.latency.sampling.MOST_SAMPLES", LEAST_SAMPLES)
    space, kept = chain(), JsonCache(tmp_path / "cache")
    compressors = make_compressors(space)

    def measured(multiple: int = 1) -> int:
        target = SizeTarget()
        own = space if multiple == 1 else make_space(space.network, multiple)
        samples = sample_latencies(space.network, own, compressors, target, reference, cache=kept)
        assert len(samples) == LEAST_SAMPLES
        assert make_predictor(own, target, samples).features.steps.tolist() == [4, 8]
        return (sum(target.calls) - len(target.calls)) // 2  # less the anchors, loaded and then timed

    assert (measured(), measured()) == (LEAST_SAMPLES, 0)
    (file,) = kept.directory.iterdir()
    whole = json.loads(file.read_text())
    for samples in (None, [{"table": 3}], [{"table": [[1, 2]], "ratio": 0.5}] * 50):
        file.write_text(json.dumps({**whole, "value": {"samples": samples}}))
        assert measured() == LEAST_SAMPLES
    file.write_text("{")
    assert measured() == LEAST_SAMPLES
    assert measured(multiple=2) == LEAST_SAMPLES  # other legal widths are another space

"""Random policies for the latency predictor, and how they are measured; nothing here is timed."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from amc.compress import apply
from amc.costs.latency.fitting import make_predictor, sample_latencies
from amc.costs.latency.sampling import LEAST_SAMPLES, Sampler, with_ratios
from amc.errors import UserError
from amc.targets import Profile, Target, Timing
from amc.targets.cache import JsonCache
from tests.test_latency_predictor import Traced, chain, make_compressors, make_space, tables


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

"""Weight sharing and Huffman coding."""

import numpy as np
import pytest
import torch
from torch import Tensor

from amc.quantization import huffman
from amc.quantization.kmeans import KmeansWeightQuantizer, fit_codebook, huffman_bytes, lloyd
from amc.quantization.modules import UniformWeightQuantizer
from amc.quantization.sorted_rows import SortedRows, midpoints


def gaussian(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def test_no_step_of_lloyd_raises_the_error():
    rows, levels = SortedRows(gaussian(1, 2000) ** 3), torch.linspace(-9, 9, 8).double()
    errors = []
    for _ in range(30):
        counts, sums = rows.cells(midpoints(levels[None]))
        errors.append(float(rows.error(levels[None], counts, sums)))
        levels = torch.where(counts > 0, sums / counts.clamp_min(1), levels[None])[0].sort().values
    assert errors == sorted(errors, reverse=True)
    assert lloyd(rows, torch.linspace(-9, 9, 8).double())[1] <= errors[-1] * 1.001


def test_four_levels_of_a_gaussian_are_those_of_lloyd_and_max():
    codebook = fit_codebook(gaussian(200_000), 4)
    assert codebook.abs().sort().values.tolist() == pytest.approx([0.453, 0.453, 1.51, 1.51], abs=0.02)


@pytest.mark.parametrize("bits", [2, 3, 4, 6])
def test_it_is_better_than_uniform_codes_of_the_same_bits_on_one_channel(bits):
    weight = gaussian(1, 3000) ** 3
    ours, theirs = (
        float((kind.fitted(weight, bits)(weight) - weight).square().sum())
        for kind in (KmeansWeightQuantizer, UniformWeightQuantizer)
    )
    assert ours < 0.9 * theirs


@pytest.mark.parametrize("distinct", [1, 3, 8])
def test_few_distinct_weights_are_kept_exactly(distinct):
    weight = gaussian(distinct)[torch.arange(100) % distinct].reshape(5, 20)
    quantizer = KmeansWeightQuantizer.fitted(weight, 3)
    assert torch.equal(quantizer(weight), weight) and len(quantizer.codebook) == 8


def test_every_weight_gets_the_nearest_entry():
    weight = gaussian(6, 70)
    quantizer = KmeansWeightQuantizer.fitted(weight, 3)
    distance = (weight[..., None] - quantizer.codebook).abs().amin(-1)
    torch.testing.assert_close((quantizer(weight) - weight).abs(), distance)


def test_a_codebook_is_no_longer_than_its_layer():
    quantizer = KmeansWeightQuantizer.fitted(gaussian(4, 10), 8)
    assert len(quantizer.codebook) == 40
    assert quantizer.quantize(gaussian(4, 10)).bytes == 40 + 4 * 40


def test_pruned_weights_stay_zero_and_only_the_others_are_clustered():
    weight = gaussian(16, 8, 3, 3)
    pruned = weight * (weight.abs() > 1)
    codebook = KmeansWeightQuantizer.fitted(pruned, 2).codebook
    values = KmeansWeightQuantizer.fitted(pruned, 2)(pruned)
    assert int((codebook == 0).sum()) == 1 and torch.equal(values == 0, pruned == 0)
    rest = torch.cat([codebook[codebook < 0], codebook[codebook > 0]])
    assert torch.allclose(rest, fit_codebook(pruned[pruned != 0], 3).float())


def test_code_lengths_by_hand():
    assert huffman.code_lengths([45, 13, 12, 16, 9, 5]).tolist() == [1, 3, 3, 3, 4, 4]
    assert huffman.code_lengths([0, 7, 0]).tolist() == [0, 1, 0]
    assert huffman.code_lengths([5, 5, 5, 5]).tolist() == [2, 2, 2, 2]
    assert huffman.code_lengths([0, 0]).tolist() == [0, 0]
    assert huffman.stream_bytes([45, 13, 12, 16, 9, 5]) == 224 // 8


def test_no_code_begins_another():
    codes = list(huffman.canonical_codes(huffman.code_lengths([3, 1, 4, 1, 5, 9, 2, 6, 5])).values())
    assert not any(a != b and b.startswith(a) for a in codes for b in codes)


@pytest.mark.parametrize("spread", [0.3, 2.0, 40.0])
def test_lengths_lie_within_a_bit_of_the_entropy(spread):
    draw = np.random.default_rng(0)
    codes = np.clip(np.round(draw.normal(128, spread, 5000)), 0, 255).astype(np.uint8)
    counts = np.bincount(codes, minlength=256)
    shares = counts[counts > 0] / counts.sum()
    entropy, mean = float(-(shares * np.log2(shares)).sum()), huffman.code_lengths(counts) @ counts / 5000
    assert entropy <= mean < entropy + 1
    assert sum(2.0**-length for length in huffman.code_lengths(counts) if length) == 1.0


@pytest.mark.parametrize("symbols", [1, 2, 5, 256])
def test_what_is_encoded_comes_back(symbols):
    codes = (np.random.default_rng(1).random(3000) ** 3 * symbols).astype(np.uint8)
    counts = np.bincount(codes, minlength=symbols)
    lengths = huffman.code_lengths(counts)
    stream = huffman.encode(codes, lengths)
    assert len(stream) == huffman.stream_bytes(counts)
    assert np.array_equal(huffman.decode(stream, lengths, len(codes)), codes)


def test_a_cut_stream_is_refused():
    codes = np.arange(8, dtype=np.uint8)
    lengths = huffman.code_lengths(np.ones(8))
    with pytest.raises(ValueError, match="ends after 5 of 8"):
        huffman.decode(huffman.encode(codes, lengths)[:2], lengths, 8)
    with pytest.raises(ValueError, match="not in its table"):
        huffman.decode(b"\xff", np.array([2, 2, 2]), 1)


def test_huffman_coded_weights_are_smaller_and_count_everything():
    weight = gaussian(32, 16, 3, 3) ** 3
    coded = KmeansWeightQuantizer.fitted(weight, 4).quantize(weight)
    codes = coded.codes.numpy().reshape(-1)
    lengths = huffman.code_lengths(np.bincount(codes, minlength=16))
    stream = huffman.encode(codes, lengths)
    assert huffman_bytes(coded) == len(stream) + 16 + 16 * 4 < 0.9 * coded.bytes
    values = coded.parts["codebook"][torch.from_numpy(huffman.decode(stream, lengths, len(codes))).long()]
    assert torch.equal(values.reshape(weight.shape), KmeansWeightQuantizer.fitted(weight, 4)(weight))

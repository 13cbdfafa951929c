"""Additive codes: encoding, codebook fits, relaxations, starts, search and weights."""

import itertools

import pytest
import torch
from torch import Tensor

from amc.codecs import (
    AdditiveCodec,
    LocalSearch,
    Recipe,
    StoredVectors,
    encoding,
    exact_neighbours,
    fitting,
    nearest,
    recall,
    starts,
    train,
    train_codec,
)
from amc.codecs.encoding import decode, encode, icm, pair_terms, random_codes, squared_errors, unary_terms
from amc.codecs.faiss_index import additive_index
from amc.codecs.fitting import co_occurrences, fit_codebooks, sums_by_code
from amc.codecs.training import fit_relaxed, temperature
from amc.codecs.weights import CodedWeight, encode_weight, recipe_for
from amc.errors import UserError
from amc.quantization.modules import UniformWeightQuantizer

LIGHT = LocalSearch(rounds=2, sweeps=2, perturbations=2)


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=generator(seed))


def correlated(vectors: int, dimensions: int, seed: int = 0) -> Tensor:
    """Gaussian, with a spectrum that falls like that of natural data."""
    axes = torch.linalg.qr(normal(dimensions, dimensions, seed=99)).Q
    return normal(vectors, dimensions, seed=seed) * torch.logspace(0.5, -1, dimensions) @ axes


def clustered(vectors: int, dimensions: int, seed: int = 0) -> Tensor:
    """Sums of entries of hidden codebooks, with some noise."""
    books = normal(6, 16, dimensions, seed=7)
    return decode(books, random_codes(vectors, 6, 16, generator(seed))) + 0.3 * normal(
        vectors, dimensions, seed=seed
    )


def one_hot(codes: Tensor, entries: int) -> Tensor:
    """B of the papers, float64 [M * K, n]."""
    return torch.cat([torch.nn.functional.one_hot(column, entries) for column in codes.T], dim=1).double().T


def problem(n: int = 300, d: int = 12, m: int = 3, k: int = 8) -> tuple[Tensor, Tensor, Tensor]:
    return correlated(n, d), random_codes(n, m, k, generator(1)), normal(m, k, d, seed=2)


def test_unary_and_pair_terms_add_up_to_the_squared_error():
    x, codes, books = problem()
    unary, pairs = unary_terms(x, books), pair_terms(books)
    energy = x.square().sum(dim=1)
    for j in range(3):
        energy = energy + unary[j].gather(1, codes[:, j : j + 1])[:, 0]
        for i in range(j):
            energy = energy + pairs[j][i * 8 + codes[:, i], codes[:, j]]
    torch.testing.assert_close(energy, squared_errors(x, codes, books), rtol=1e-4, atol=1e-3)


def test_the_fast_fit_is_dense_ridge_regression():
    x, codes, _ = problem()
    b = one_hot(codes, 8)
    dense = torch.linalg.solve(b @ b.T + 1e-4 * torch.eye(24, dtype=torch.float64), b @ x.double())
    torch.testing.assert_close(fit_codebooks(x, codes, 8).view(24, -1).double(), dense, rtol=1e-4, atol=1e-4)


def test_counts_are_histograms_and_co_occurrences(monkeypatch):
    monkeypatch.setattr(fitting, "CHUNK", 64)
    x, codes, _ = problem()
    b, counts = one_hot(codes, 8), co_occurrences(codes, 8)
    assert torch.equal(counts, b @ b.T)
    assert torch.equal(counts[8:16, 8:16], torch.diag(torch.bincount(codes[:, 1], minlength=8).double()))
    torch.testing.assert_close(sums_by_code(x, codes, 8), b @ x.double())


def test_no_fit_raises_the_objective():
    x, codes, books = problem()
    for step in range(4):
        fitted = fit_codebooks(x, codes, 8)
        before, after = (
            float(squared_errors(x, codes, c).sum() + fitting.RIDGE * c.square().sum())
            for c in (books, fitted)
        )
        assert after <= before * (1 + 1e-6)
        books, codes = fitted, encode(x, fitted, codes, LIGHT, generator(step))


def test_an_unused_entry_is_zero():
    x, codes, _ = problem()
    codes[codes[:, 1] == 5, 1] = 4
    assert fit_codebooks(x, codes, 8)[1, 5].abs().max() == 0


def test_icm_never_raises_an_error_and_ends_where_no_single_code_helps():
    x, codes, books = problem()
    unary, pairs = unary_terms(x, books), pair_terms(books)
    errors = [squared_errors(x, codes, books)]
    for sweep in range(12):
        codes = icm(unary, pairs, codes, 1, generator(sweep))
        errors.append(squared_errors(x, codes, books))
        assert (errors[-1] <= errors[-2] + 1e-3).all()
    for j, k in itertools.product(range(3), range(8)):
        other = codes.clone()
        other[:, j] = k
        assert (squared_errors(x, other, books) >= errors[-1] - 1e-3).all()


def test_no_vector_gets_worse_and_more_rounds_help():
    x, codes, books = problem()
    errors = [squared_errors(x, codes, books)]
    for rounds in (1, 3, 9):
        found = encode(x, books, codes, LocalSearch(rounds, 2, 2), generator())
        errors.append(squared_errors(x, found, books))
        assert (errors[-1] <= errors[0]).all()
    assert errors[0].mean() > errors[1].mean() > errors[2].mean() >= errors[3].mean()


def test_two_small_codebooks_are_solved_almost_always():
    x, codes, books = problem(m=2)
    codes = encode(x, books, codes[:, :2], LocalSearch(16, 4, 2), generator())
    every = torch.stack(
        [
            squared_errors(x, torch.tensor([pair]).expand(300, 2), books)
            for pair in itertools.product(range(8), repeat=2)
        ]
    )
    best = every.amin(dim=0)
    assert (squared_errors(x, codes, books) <= best + 1e-3).float().mean() > 0.99


def test_vectors_are_encoded_in_bounded_pieces(monkeypatch):
    largest = 0

    def spy(vectors: Tensor, codebooks: Tensor) -> Tensor:
        nonlocal largest
        largest = max(largest, len(vectors))
        return unary_terms(vectors, codebooks)

    monkeypatch.setattr(encoding, "CHUNK", 50)
    monkeypatch.setattr(encoding, "unary_terms", spy)
    x, codes, books = problem()
    assert encode(x, books, codes, LIGHT, generator()).shape == codes.shape
    assert largest == 50


def test_one_codebook_is_k_means():
    x = correlated(400, 6)
    found = train(x, Recipe(1, 8, 30, "none", search=LIGHT))
    distance = torch.cdist(x, found.codebooks[0])
    means = torch.stack([x[found.codes[:, 0] == k].mean(dim=0) for k in range(8)])
    torch.testing.assert_close(means, found.codebooks[0], rtol=1e-3, atol=1e-3)
    assert (distance.argmin(dim=1) == found.codes[:, 0]).float().mean() > 0.98


def test_without_relaxation_training_never_gets_worse():
    errors = train(correlated(500, 12), Recipe(3, 16, 10, "none", search=LIGHT)).errors
    assert all(later <= earlier * (1 + 1e-5) for earlier, later in itertools.pairwise(errors))


def test_the_noise_cools_to_nothing():
    recipe = Recipe(iterations=4)
    assert [temperature(i, recipe) for i in (1, 2, 3, 4)] == pytest.approx([0.75**0.5, 0.5**0.5, 0.5, 0])


@pytest.mark.parametrize("relaxation", ["data", "codebooks"])
def test_noise_has_the_spread_of_the_paper(relaxation):
    x = correlated(4000, 6) * torch.tensor([1, 2, 3, 4, 5, 6.0])
    codes = random_codes(4000, 4, 64, generator())
    clean = fit_codebooks(x, codes, 64)
    noisy = fit_relaxed(x, codes, Recipe(4, 64, relaxation=relaxation), 0.5, generator(3))
    if relaxation == "codebooks":
        expected = 0.5 * clean.flatten(0, 1).std(dim=0) / 4
        torch.testing.assert_close((noisy - clean).flatten(0, 1).std(dim=0), expected, rtol=0.15, atol=0)
    else:
        noise = 0.5 * x.std(dim=0) * torch.randn(x.shape, generator=generator(3))
        torch.testing.assert_close(noisy, fit_codebooks(x + noise, codes, 64))


def test_relaxed_training_ends_with_a_smaller_error_on_clusters():
    x = clustered(1000, 16)
    recipes = [
        Recipe(4, 16, 20, name, search=LocalSearch(3, 3, 3), seed=seed)
        for name in ("none", "data", "codebooks")
        for seed in (0, 1)
    ]
    errors = [train(x, recipe).errors[-1] for recipe in recipes]
    assert sum(errors[2:4]) < sum(errors[:2]) and max(errors[4:]) < min(errors[:2])


def test_the_last_fit_does_not_raise_the_error():
    for relaxation in ("data", "codebooks"):
        errors = train(correlated(500, 8), Recipe(2, 16, 5, relaxation, search=LIGHT)).errors
        assert errors[-1] <= errors[-2] * (1 + 1e-5)


@pytest.mark.parametrize("begin", ["random", "opq", "chain"])
def test_a_seed_decides_everything(begin):
    x = correlated(300, 8)
    first, again, other = (
        train(x, Recipe(3, 8, 3, begin=begin, search=LIGHT, seed=seed)) for seed in (5, 5, 6)
    )
    assert torch.equal(first.codebooks, again.codebooks) and torch.equal(first.codes, again.codes)
    assert not torch.equal(first.codes, other.codes)


def test_opq_is_a_rotated_product_code_and_each_start_beats_the_one_before():
    x = correlated(1500, 13)
    begins = {name: starts.start(x, name, 4, 16, generator()) for name in ("random", "opq", "chain")}
    errors = []
    for begin in begins.values():
        torch.testing.assert_close(begin.rotation @ begin.rotation.T, torch.eye(13), rtol=0, atol=1e-5)
        turned = x @ begin.rotation
        errors.append(
            float(squared_errors(turned, begin.codes, fit_codebooks(turned, begin.codes, 16)).mean())
        )
    assert errors[0] > errors[1] > errors[2]


def test_codebooks_come_back_from_the_rotation():
    found = train(correlated(500, 8), Recipe(3, 16, 3, begin="chain", search=LIGHT))
    rest = squared_errors(correlated(500, 8), found.codes, found.codebooks).mean()
    assert (
        found.errors[-1] == pytest.approx(float(rest))
        and rest < 0.5 * correlated(500, 8).square().sum(1).mean()
    )


def test_a_chain_is_encoded_exactly():
    x, codes, _ = problem(n=60, d=7)
    books = starts.fit_chain(x, codes, 8)
    assert books[0, :, 4:].abs().max() == 0 and books[2, :, :4].abs().max() == 0
    every = torch.stack(
        [
            squared_errors(x, torch.tensor([t]).expand(60, 3), books)
            for t in itertools.product(range(8), repeat=3)
        ]
    )
    found = squared_errors(x, starts.encode_chain(x, books), books)
    torch.testing.assert_close(found, every.amin(dim=0), rtol=1e-4, atol=1e-4)


def test_vectors_that_cannot_be_trained_on_are_refused():
    small = Recipe(2, 16, 2)
    with pytest.raises(UserError, match="16 entries need as many vectors"):
        train(normal(15, 4), small)
    with pytest.raises(UserError, match="NaN"):
        train(torch.full((20, 4), float("nan")), small)
    with pytest.raises(UserError, match="2, 4, 8"):
        train(normal(20, 4), Recipe(2, 12))
    with pytest.raises(UserError, match="at least 1"):
        train(normal(20, 4), Recipe(2, 16, 0))
    with pytest.raises(UserError, match="dimension for each"):
        train(normal(20, 4), Recipe(5, 16, 2, begin="opq"))


def test_recall_by_hand():
    found = torch.tensor([[3, 1, 2], [0, 2, 1], [2, 0, 1], [1, 0, 3]])
    true = torch.tensor([3, 2, 1, 2])
    assert [recall(found, true, first) for first in (1, 2, 3)] == [0.25, 0.5, 0.75]


def test_exact_neighbours_by_hand():
    base = torch.tensor([[0.0, 0.0], [10.0, 0.0], [0.0, 10.0]])
    queries = torch.tensor([[9.0, 1.0], [1.0, 1.0], [4.0, 7.0]])
    assert exact_neighbours(queries, base).tolist() == [1, 0, 2]


def codec_by_hand() -> AdditiveCodec:
    books = torch.tensor([[[0.0, 0.0], [10.0, 0.0]], [[0.0, 0.0], [0.0, 3.0]]])
    return AdditiveCodec(books, torch.arange(256.0))


def test_a_codec_stores_codes_and_the_nearest_level_of_the_norm():
    codec = codec_by_hand()
    stored = codec.encode(torch.tensor([[0.1, 0.0], [9.0, 2.8], [0.0, 4.0], [11.0, 0.0]]))
    assert stored.codes.tolist() == [[0, 0], [1, 1], [0, 1], [1, 0]]
    assert stored.norms.tolist() == [0, 109, 9, 100]
    assert codec.decode(stored).tolist() == [[0, 0], [10, 3], [0, 3], [10, 0]]
    assert codec.bits == 2 * 1 + 8


def test_64_bits_hold_the_norm():
    codec = AdditiveCodec(torch.zeros(7, 256, 4), torch.arange(256.0))
    stored = codec.stored(torch.zeros(5, 7, dtype=torch.long))
    assert codec.bits == 64
    assert stored.codes.numel() + stored.norms.numel() == 5 * 64 // 8


def test_search_uses_what_is_stored_and_nothing_else():
    codec, queries = codec_by_hand(), torch.tensor([[8.0, 1.0], [1.0, 2.0]])
    stored = StoredVectors(
        torch.tensor([[0, 0], [1, 1], [0, 1], [1, 0]], dtype=torch.uint8),
        torch.tensor([0, 109, 9, 100], dtype=torch.uint8),
    )
    assert nearest(codec, stored, queries, 2).tolist() == [[3, 1], [2, 0]]
    wrong = StoredVectors(stored.codes, torch.tensor([0, 109, 9, 255], dtype=torch.uint8))
    assert nearest(codec, wrong, queries, 2).tolist() == [[1, 0], [2, 0]]


def test_look_ups_order_like_the_decoded_vectors():
    x, queries = correlated(600, 8), correlated(20, 8, seed=4)
    codec, trained = train_codec(x, Recipe(3, 16, 4, search=LIGHT))
    stored = codec.encode(x)
    decoded = codec.decode(stored)
    plain = -2 * queries @ decoded.T + codec.norms[stored.norms.long()]
    assert torch.equal(nearest(codec, stored, queries, 5), plain.topk(5, largest=False).indices)
    squares = decoded.square().sum(dim=1)
    error = (codec.norms[stored.norms.long()] - squares).square().mean()
    assert codec.search.rounds == 8 and error < 1e-3 * squares.var()
    assert squared_errors(x, stored.codes.long(), codec.codebooks).mean() < 1.1 * trained.errors[-1]


@pytest.mark.parametrize("entries", [16, 256])
def test_faiss_ranks_additive_codes_as_we_do(entries):
    faiss = pytest.importorskip("faiss")
    vectors, queries = correlated(600, 8), correlated(5, 8, seed=1)
    codec, _ = train_codec(vectors, Recipe(3, entries, 2, search=LIGHT))
    stored = codec.encode(vectors)
    index = additive_index(codec, stored)
    assert (index.ntotal, 8 * index.sa_code_size()) == (600, -(-codec.bits // 8) * 8)
    assert torch.allclose(torch.from_numpy(index.reconstruct_n(0, 600)), codec.decode(stored), atol=1e-5)
    again = faiss.deserialize_index(faiss.serialize_index(index))
    distances, places = again.search(queries.numpy(), 600)
    ours = queries.square().sum(dim=1)[:, None] - 2 * queries @ codec.decode(stored).T
    ours = ours + codec.norms[stored.norms.long()]
    best, noise = ours.gather(1, nearest(codec, stored, queries, 600)), 1e-5 * float(ours.abs().max())
    assert torch.allclose(torch.from_numpy(distances), best, atol=noise)
    assert torch.allclose(ours.gather(1, torch.from_numpy(places)), best, atol=noise)


def test_a_coded_weight_is_read_from_what_is_stored_and_counted_to_the_byte():
    weight = normal(96, 52) * 0.1
    coded = encode_weight(weight, 8, Recipe(2, 16, 5, search=LIGHT))
    assert coded.packed.dtype == torch.uint8
    assert coded.codebooks.dtype == coded.scales.dtype == torch.float16
    pieces = 96 * 7
    assert coded.bytes == pieces * 2 * 4 // 8 + 2 * 16 * 8 * 2 + 96 * 2
    again = CodedWeight(coded.packed.clone(), coded.codebooks.clone(), coded.scales.clone(), (96, 52))
    assert torch.equal(again.values(), coded.values()) and coded.values().shape == weight.shape
    assert (coded.values() - weight).square().sum() < 0.6 * weight.square().sum()


def test_correlated_weights_are_closer_than_uniform_ones_of_as_many_bytes():
    weight = correlated(256 * 32, 8).view(256, 256) * torch.logspace(-1, 1, 256)[:, None]
    coded = encode_weight(weight, 8, Recipe(2, 32, 6, search=LIGHT))
    uniform = UniformWeightQuantizer.fitted(weight, 2)
    assert coded.bytes < 0.8 * uniform.quantize(weight).bytes
    ours, theirs = ((w - weight).square().sum() for w in (coded.values(), uniform(weight)))
    assert ours < 0.8 * theirs


def test_a_row_of_zeros_stays_zero():
    weight = normal(64, 32)
    weight[3] = 0
    assert encode_weight(weight, 8, Recipe(1, 16, 2, search=LIGHT)).values()[3].abs().max() == 0


def test_weights_that_cannot_be_coded_are_refused():
    with pytest.raises(UserError, match="too few for 256 entries"):
        encode_weight(normal(10, 16))
    with pytest.raises(UserError, match="pieces of at least 1"):
        encode_weight(normal(4, 4, 3, 3))
    assert recipe_for(2).codebooks == 2 and recipe_for(3.9).codebooks == 3
    with pytest.raises(UserError, match="takes more than"):
        recipe_for(0.5)

"""Retrieval: codes, soft quantization, losses, scores and mean average precision."""

import itertools
import math

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from amc.errors import UserError
from amc.retrieval import (
    Code,
    asymmetric_scores,
    asymmetric_triplet_loss,
    hard_codes,
    leave_one_out,
    mean_average_precision,
    said,
    soft_assignment,
)
from amc.retrieval.code import Said, code_of_bits, code_of_outputs
from amc.retrieval.losses import float_triplet_loss, symmetric_triplet_loss, triplet_loss
from amc.retrieval.quantize import decode, soft_vectors

CODE = Code(3, words=8, size=4)


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def unit_vectors(*shape: int, seed: int = 0) -> Tensor:
    return F.normalize(torch.randn(*shape, generator=generator(seed), dtype=torch.float64), dim=-1)


def table_of(vectors: Tensor, words: Tensor) -> Tensor:
    return torch.einsum("nms,mks->nmk", vectors, words)


@pytest.fixture(scope="module")
def words() -> Tensor:
    return unit_vectors(3, 8, 4)


@pytest.fixture(scope="module")
def vectors() -> Tensor:
    return unit_vectors(10, 3, 4, seed=1)


# ---- codes and outputs ----------------------------------------------------------------------------------


def test_bits_and_outputs_name_the_same_code():
    for bits in (12, 24, 36, 48):
        code = code_of_bits(bits)
        assert code.bits == bits
        assert code_of_outputs(code.outputs) == code
    assert (code_of_bits(48).subspaces, code_of_bits(48).dimensions) == (12, 144)
    assert code_of_outputs(10) is None and code_of_outputs(0) is None


@pytest.mark.parametrize("bits", [0, 10, 132])
def test_impossible_lengths_are_refused(bits):
    with pytest.raises(UserError, match="4 bits for each"):
        code_of_bits(bits)


def test_outputs_are_taken_apart_and_sub_vectors_have_length_one(words, vectors):
    lengths = torch.rand(10, 3, 1, generator=generator(), dtype=torch.float64) + 0.5
    raw = vectors * lengths
    outputs = torch.cat([table_of(raw, words).flatten(1), raw.flatten(1)], dim=1)
    found = said(outputs, CODE)
    assert torch.allclose(found.vectors, vectors)
    assert torch.allclose(found.table, table_of(vectors, words))


def test_a_zero_embedding_stays_finite():
    outputs = torch.zeros(2, CODE.outputs, requires_grad=True)
    loss = asymmetric_triplet_loss(said(outputs, CODE), torch.tensor([0, 1]))
    loss.backward()
    assert outputs.grad is not None and torch.isfinite(outputs.grad).all()


# ---- soft quantization ----------------------------------------------------------------------------------


def test_shares_follow_the_distances_and_sum_to_one(words, vectors):
    distances = (vectors[:, :, None] - words[None]).square().sum(-1)
    shares = soft_assignment(table_of(vectors, words), alpha=3.0)
    assert torch.allclose(shares, torch.softmax(-3.0 * distances, dim=-1))
    assert torch.allclose(shares.sum(-1), torch.ones(10, 3, dtype=torch.float64))


def test_a_sharp_assignment_is_the_hard_one_and_a_flat_one_the_mean(words, vectors):
    table = table_of(vectors, words)
    sharp = soft_vectors(soft_assignment(table, 1e4), words)
    assert torch.allclose(sharp, decode(hard_codes(table), words), atol=1e-6)
    flat = soft_vectors(soft_assignment(table, 0.0), words)
    assert torch.allclose(flat, words.mean(1).expand(10, -1, -1))


def test_soft_quantization_comes_nearer_to_the_hard_one_with_alpha(words, vectors):
    table = table_of(vectors, words)
    hard = decode(hard_codes(table), words)
    gaps = [
        float((soft_vectors(soft_assignment(table, alpha), words) - hard).norm()) for alpha in (1, 5, 20, 80)
    ]
    assert gaps == sorted(gaps, reverse=True)


def test_gradients_of_soft_quantization_are_those_on_paper():
    x = torch.randn(1, 4, generator=generator(), dtype=torch.float64, requires_grad=True)
    words = torch.randn(8, 4, generator=generator(1), dtype=torch.float64, requires_grad=True)
    upstream, alpha = torch.randn(4, generator=generator(2), dtype=torch.float64), 0.7
    distances = (x[:, None] - words[None]).square().sum(-1)
    shares = torch.softmax(-alpha * distances, dim=-1)[0]
    quantized = shares @ words
    (quantized * upstream).sum().backward()
    with torch.no_grad():
        # u_k = -alpha |x - c_k|^2; dl/du_k = a_k (<g, c_k> - <g, s>).
        inner = shares * (words @ upstream - quantized @ upstream)
        by_words = shares[:, None] * upstream + 2 * alpha * inner[:, None] * (x - words)
        by_x = -2 * alpha * (inner[:, None] * (x - words)).sum(0)
    assert torch.allclose(words.grad, by_words)
    assert torch.allclose(x.grad[0], by_x)


# ---- losses ---------------------------------------------------------------------------------------------


def test_triplet_loss_against_values_by_hand():
    labels = torch.tensor([0, 0, 1])
    similarity = torch.tensor([[9.0, 2.0, 1.0], [0.5, 9.0, 0.5], [3.0, 4.0, 9.0]])
    # Two triplets: anchor 0 (2 against 1) and anchor 1 (0.5 against 0.5); image 2 has no positive.
    wanted = (1 / (1 + math.exp(1.0)) + 0.5) / 2
    assert float(triplet_loss(similarity, labels)) == pytest.approx(wanted)
    assert float(triplet_loss(similarity, torch.zeros(3, dtype=torch.long))) == 0


def test_losses_do_not_depend_on_the_length_of_the_code(words, vectors):
    labels, table = torch.arange(10) % 3, table_of(vectors, words)
    short, long = Said(table, vectors), Said(table.repeat(1, 4, 1), vectors.repeat(1, 4, 1))
    assert torch.allclose(asymmetric_triplet_loss(short, labels), asymmetric_triplet_loss(long, labels))
    assert torch.allclose(float_triplet_loss(short, labels), float_triplet_loss(long, labels))
    plain = [
        symmetric_triplet_loss(*each)
        for each in ((short, labels, words), (long, labels, words.repeat(4, 1, 1)))
    ]
    assert torch.allclose(*plain)


def test_the_asymmetric_loss_compares_floats_with_soft_codes(words, vectors):
    outputs = Said(table_of(vectors, words), vectors)
    labels = torch.arange(10) % 3
    quantized = soft_vectors(soft_assignment(outputs.table, 5.0), words).flatten(1)
    wanted = triplet_loss(4 * vectors.flatten(1) @ quantized.T, labels)  # a reach of 12 for 3 sub-vectors
    assert torch.allclose(asymmetric_triplet_loss(outputs, labels, 5.0), wanted)
    symmetric = symmetric_triplet_loss(outputs, labels, words, 5.0)
    assert torch.allclose(symmetric, triplet_loss(4 * quantized @ quantized.T, labels))
    plain = float_triplet_loss(outputs, labels)
    assert len({round(float(value), 6) for value in (wanted, symmetric, plain)}) == 3


def test_the_asymmetric_loss_has_the_gradient_of_finite_differences():
    outputs = torch.randn(6, CODE.outputs, generator=generator(), dtype=torch.float64, requires_grad=True)
    labels = torch.tensor([0, 0, 1, 1, 2, 2])
    assert torch.autograd.gradcheck(lambda o: asymmetric_triplet_loss(said(o, CODE), labels), outputs)


# ---- scores and average precision -----------------------------------------------------------------------


def test_looked_up_scores_are_inner_products_with_what_codes_stand_for(words, vectors):
    queries = unit_vectors(4, 3, 4, seed=2)
    codes = hard_codes(table_of(vectors, words))
    scores = asymmetric_scores(table_of(queries, words), codes)
    assert torch.allclose(scores, queries.flatten(1) @ decode(codes, words).flatten(1).T)


def test_leaving_one_out_drops_the_diagonal():
    pairs = torch.arange(9).reshape(3, 3)
    assert leave_one_out(pairs).tolist() == [[1, 2], [3, 5], [6, 7]]


def test_average_precision_against_values_by_hand():
    scores = torch.tensor([[0.9, 0.8, 0.7, 0.6, 0.5], [0.1, 0.2, 0.3, 0.4, 0.5]])
    relevant = torch.tensor([[1, 0, 1, 0, 1], [1, 0, 0, 0, 0]]).bool()
    first = (1 / 1 + 2 / 3 + 3 / 5) / 3
    assert mean_average_precision(scores, relevant) == pytest.approx((first + 1 / 5) / 2)


def test_ties_are_averaged_over_all_orders():
    scores = torch.tensor([[3.0, 2.0, 2.0, 2.0, 2.0, 1.0]])
    relevant = torch.tensor([[0, 1, 0, 1, 0, 1]]).bool()
    found = []
    for middle in itertools.permutations(range(1, 5)):
        ranked = [bool(relevant[0, place]) for place in (0, *middle, 5)]
        precisions = [sum(ranked[: rank + 1]) / (rank + 1) for rank in range(6) if ranked[rank]]
        found.append(sum(precisions) / 3)
    assert mean_average_precision(scores, relevant) == pytest.approx(sum(found) / len(found))


def test_queries_without_a_relevant_item_do_not_count():
    scores = torch.tensor([[2.0, 1.0], [2.0, 1.0]])
    relevant = torch.tensor([[False, True], [False, False]])
    assert mean_average_precision(scores, relevant) == pytest.approx(0.5)
    assert mean_average_precision(scores, relevant & False) == 0


def test_long_rankings_are_cut_into_chunks(monkeypatch):
    scores = torch.rand(7, 20, generator=generator())
    relevant = torch.rand(7, 20, generator=generator(1)) < 0.3
    whole = mean_average_precision(scores, relevant)
    monkeypatch.setattr("amc.retrieval.average_precision.CHUNK", 45)
    assert mean_average_precision(scores, relevant) == pytest.approx(whole)


def test_average_precision_of_scikit_learn_without_ties():
    metrics = pytest.importorskip("sklearn.metrics")
    scores = torch.rand(5, 50, generator=generator(), dtype=torch.float64)
    relevant = torch.rand(5, 50, generator=generator(1)) < 0.2
    each = [metrics.average_precision_score(r, s) for r, s in zip(relevant, scores, strict=True)]
    assert mean_average_precision(scores, relevant) == pytest.approx(sum(each) / 5)

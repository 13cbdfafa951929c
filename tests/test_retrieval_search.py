"""Search through faiss with our codebooks, and plain product quantization behind a trained embedding."""

import sys

import pytest
import torch
from torch.nn import functional as F

from amc.errors import UserError
from amc.retrieval import asymmetric_scores, hard_codes
from amc.retrieval.faiss_index import faiss_index, nearest_words, require_faiss, trained_codebooks
from amc.retrieval.quantize import decode


def unit(*shape: int, seed: int = 0) -> torch.Tensor:
    return F.normalize(torch.randn(*shape, generator=torch.Generator().manual_seed(seed)), dim=-1)


@pytest.mark.parametrize(("parts", "count"), [(3, 16), (2, 8), (1, 16)])
def test_faiss_finds_what_our_scores_say(parts, count):
    pytest.importorskip("faiss")
    words, vectors, queries = unit(parts, count, 12), unit(200, parts, 12, seed=1), unit(9, parts, 12, seed=2)
    codes = hard_codes(torch.einsum("nms,mks->nmk", vectors, words))
    ours = asymmetric_scores(torch.einsum("nms,mks->nmk", queries, words), codes)
    index = faiss_index(words, codes)
    scores, places = index.search(queries.flatten(1).numpy(), 200)
    assert index.ntotal == 200
    best = ours.sort(dim=1, descending=True).values
    assert torch.allclose(torch.from_numpy(scores), best, atol=1e-5)
    assert torch.allclose(ours.gather(1, torch.from_numpy(places)), best, atol=1e-5)


def test_faiss_encodes_unit_vectors_as_we_do():
    pytest.importorskip("faiss")
    words, vectors = unit(3, 16, 12), unit(100, 3, 12, seed=1)
    codes = hard_codes(torch.einsum("nms,mks->nmk", vectors, words))
    index = faiss_index(words, codes[:1])
    index.add(vectors.flatten(1).numpy())
    decoded = torch.from_numpy(index.reconstruct_n(1, 100))
    assert torch.allclose(decoded, decode(codes, words).flatten(1), atol=1e-6)
    assert torch.equal(nearest_words(vectors, words), codes)


def test_plain_codebooks_fit_the_vectors_better_than_random_ones():
    pytest.importorskip("faiss")
    vectors = unit(1000, 3, 12)
    words = trained_codebooks(vectors.flatten(1), 3, 16)
    assert words.shape == (3, 16, 12)

    def error(codebooks):
        return float((decode(nearest_words(vectors, codebooks), codebooks) - vectors).square().sum())

    assert error(words) < 0.9 * error(unit(3, 16, 12, seed=3))


def test_a_missing_faiss_is_one_sentence(monkeypatch):
    monkeypatch.setitem(sys.modules, "faiss", None)
    with pytest.raises(UserError, match=r"pip install 'amc-compress\[retrieval\]'"):
        require_faiss()

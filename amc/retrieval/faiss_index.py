"""Search through faiss with a network's own codebooks."""

from types import ModuleType
from typing import Any

import numpy as np
import torch
from torch import Tensor

from amc.errors import UserError

INSTALL = "pip install 'amc-compress[retrieval]'"


def require_faiss() -> ModuleType:
    """The library.

    Raises:
        UserError: it is not installed.
    """
    try:
        import faiss
    except ImportError as error:
        raise UserError(f"Search through faiss needs an extra: {INSTALL}.") from error
    return faiss


def faiss_index(words: Tensor, codes: Tensor) -> Any:
    """An `IndexPQ` of inner products that holds given codebooks and codes; nothing is trained.

    Its search gives what `asymmetric_scores` gives, tied items in any order.

    Args:
        words: [M, K, S].
        codes: of the database, int64 [N, M].

    Raises:
        UserError: faiss is not installed.
    """
    faiss = require_faiss()
    parts, count, size = words.shape
    bits = (count - 1).bit_length()
    index = faiss.IndexPQ(parts * size, parts, bits, faiss.METRIC_INNER_PRODUCT)
    centroids = np.ascontiguousarray(words.detach().float().cpu().numpy()).ravel()
    faiss.copy_array_to_vector(centroids, index.pq.centroids)
    index.is_trained = True
    index.add_sa_codes(faiss.pack_bitstrings(codes.cpu().numpy().astype(np.int32), bits))
    return index


def trained_codebooks(vectors: Tensor, parts: int, words: int, seed: int = 0) -> Tensor:
    """Plain product quantization of embeddings: faiss's k-means in every subspace; words [M, K, S].

    Args:
        vectors: embeddings to learn from, [N, M S].
        parts: M.
        words: K, a power of two.
        seed: of the k-means.

    Raises:
        UserError: faiss is not installed.
    """
    faiss = require_faiss()
    quantizer = faiss.ProductQuantizer(vectors.shape[1], parts, (words - 1).bit_length())
    quantizer.cp.seed = seed
    quantizer.train(np.ascontiguousarray(vectors.float().cpu().numpy()))
    found = faiss.vector_to_array(quantizer.centroids).reshape(parts, words, -1)
    return torch.from_numpy(found.copy())


def nearest_words(vectors: Tensor, words: Tensor) -> Tensor:
    """The word at the least Euclidean distance for every sub-vector, int64 [N, M].

    Args:
        vectors: [N, M, S].
        words: [M, K, S].
    """
    distances = torch.cdist(vectors.transpose(0, 1), words)
    return distances.argmin(dim=2).T

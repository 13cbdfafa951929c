"""Faiss's quantizers at the same bits: PQ, OPQ and LSQ; needs the extra `retrieval`.

Product codes need no norm, as their blocks are orthogonal: 64 bits are 8 codes. Additive codes store the
squared norm in a byte (Faiss's "cqint8", 256 levels from clustering): 64 bits are 7 codes and the norm.
"""

from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from amc.codecs.training import Recipe
from amc.errors import UserError
from amc.retrieval.faiss_index import require_faiss

BaselineName = Literal["pq", "opq", "faiss-lsq"]


class Baseline:
    """One of Faiss's quantizers with as many bits as a recipe and its norm byte.

    Args:
        name: pq, opq, or faiss-lsq.
        dimensions: d.
        recipe: codes, entries, seed, and for LSQ the iterations and the effort of its search.

    Raises:
        UserError: Faiss is not installed, or product codes do not divide the dimensions.
    """

    def __init__(self, name: BaselineName, dimensions: int, recipe: Recipe):
        self._faiss = require_faiss()
        bits = recipe.entries.bit_length() - 1
        product = recipe.codebooks + 8 // bits
        if name != "faiss-lsq" and (dimensions % product or 8 % bits):
            raise UserError(
                f"{name.upper()} of {product} codes of {bits} bits does not fit {dimensions} dimensions and "
                "a norm of 8 bits."
            )
        self._index = self._made(name, dimensions, product, bits, recipe)

    def _made(self, name: str, dimensions: int, product: int, bits: int, recipe: Recipe) -> Any:
        faiss = self._faiss
        if name == "faiss-lsq":
            kept = faiss.AdditiveQuantizer.ST_norm_cqint8
            index = faiss.IndexLocalSearchQuantizer(dimensions, recipe.codebooks, bits, faiss.METRIC_L2, kept)
            set_search(index.lsq, recipe)
            return index
        index = faiss.IndexPQ(dimensions, product, bits)
        index.pq.cp.seed = 1234 + recipe.seed
        if name == "pq":
            return index
        rotation, fitted = (
            faiss.OPQMatrix(dimensions, product),
            faiss.ProductQuantizer(dimensions, product, bits),
        )
        rotation.pq = fitted
        # Referenced by the index, so Python must not free them.
        self._parts = (rotation, fitted, index)
        return faiss.IndexPreTransform(rotation, index)

    @property
    def bits(self) -> int:
        """Bits stored of a vector."""
        return 8 * int(self._index.sa_code_size())

    def train(self, vectors: Tensor) -> None:
        """Learn from vectors [n, d]."""
        self._index.train(_rows(vectors))

    def add(self, vectors: Tensor) -> None:
        """Code vectors [n, d] and search among them from now on."""
        self._index.add(_rows(vectors))

    def decoded(self, vectors: Tensor) -> Tensor:
        """Vectors [n, d] after coding."""
        codes = self._index.sa_encode(_rows(vectors))
        return torch.from_numpy(self._index.sa_decode(codes))

    def nearest(self, queries: Tensor, count: int) -> Tensor:
        """Rows of the added vectors that are nearest to each query, int64 [queries, count]."""
        return torch.from_numpy(self._index.search(_rows(queries), count)[1])


def set_search(quantizer: Any, recipe: Recipe) -> None:
    """Give Faiss's local search the effort of a recipe, and no relaxation where the recipe has none."""
    quantizer.train_iters = recipe.iterations
    quantizer.train_ils_iters = recipe.search.rounds
    quantizer.encode_ils_iters = 4 * recipe.search.rounds
    quantizer.icm_iters = recipe.search.sweeps
    quantizer.nperts = recipe.search.perturbations
    quantizer.lambd = recipe.ridge
    quantizer.random_seed = 0x12345 + recipe.seed
    # Faiss has no switch for its relaxation; its noise is gone where the power of the cooling is huge.
    quantizer.p = 1e6 if recipe.relaxation == "none" else recipe.power


def _rows(vectors: Tensor) -> np.ndarray:
    return np.ascontiguousarray(vectors.float().numpy())

"""Search among additive codes through faiss, with the codec's own codebooks, codes and norms."""

from typing import Any

import numpy as np

from amc.codecs.additive import NORM_BITS, AdditiveCodec, StoredVectors
from amc.retrieval.faiss_index import require_faiss


def additive_index(codec: AdditiveCodec, stored: StoredVectors) -> Any:
    """An `IndexLocalSearchQuantizer` of Euclidean distances with a codec and its vectors; nothing is trained.

    Its search gives the distances of `amc.codecs.nearest` and |q|^2 beside: the norm's byte of a code names
    a level, and faiss takes our levels in the place of its own. Vectors that are added later are coded by
    faiss's local search with the same codebooks.

    Args:
        codec: a trained codec; its codebooks have a power of two entries, at most 256.
        stored: the database, coded by it.

    Raises:
        UserError: faiss is not installed.
    """
    faiss = require_faiss()
    count, entries, size = codec.codebooks.shape
    bits = entries.bit_length() - 1
    kept = faiss.AdditiveQuantizer.ST_norm_cqint8
    index = faiss.IndexLocalSearchQuantizer(size, count, bits, faiss.METRIC_L2, kept)
    codebooks = np.ascontiguousarray(codec.codebooks.float().numpy()).ravel()
    faiss.copy_array_to_vector(codebooks, index.lsq.codebooks)
    index.lsq.qnorm.add(np.ascontiguousarray(codec.norms.float().numpy())[:, None])
    index.lsq.is_trained = index.is_trained = True
    columns = np.concatenate([stored.codes.numpy(), stored.norms.numpy()[:, None]], axis=1)
    index.add_sa_codes(faiss.pack_bitstrings(columns.astype(np.int32), [bits] * count + [NORM_BITS]))
    return index

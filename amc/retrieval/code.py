"""What a retrieval network gives, and what it means.

The embedding x of an image consists of M sub-vectors x_m; each has a codebook of K words c_mk of length 1. A
code names one word for each sub-vector: M log2(K) bits. The network's output for one image is

| entries | meaning |
|---|---|
| 0 .. M K - 1 | inner products of x_m with all words of its codebook, subspace by subspace |
| M K .. M K + M S - 1 | the embedding x, M sub-vectors of S entries |

A search needs no more than that: the products are the table in which a query looks up every code, their
largest entries are the code of an image in the database, and the loss is a function of them. So the codebooks
travel in the network through compression, fine-tuning and export like any other layer. Sub-vectors are
brought to length 1 here, outside the network, where no runtime has to take a root.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from amc.errors import UserError

WORDS, SUBSPACE = 16, 12
"""Words of a codebook and entries of a word: GPQ's (Jang and Cho 2020), so a code of 4 M bits has M parts."""
WORD_BITS = (WORDS - 1).bit_length()
"""Bits of a code for each sub-vector."""


@dataclass(frozen=True)
class Code:
    """The shape of a code.

    Attributes:
        subspaces: M, sub-vectors of an embedding.
        words: K, words of a codebook; a power of two.
        size: S, entries of a word.
    """

    subspaces: int
    words: int = WORDS
    size: int = SUBSPACE

    @property
    def bits(self) -> int:
        """Length of a code."""
        return self.subspaces * (self.words - 1).bit_length()

    @property
    def dimensions(self) -> int:
        """Entries of an embedding."""
        return self.subspaces * self.size

    @property
    def outputs(self) -> int:
        """Entries of the network's output."""
        return self.subspaces * (self.words + self.size)


def code_of_bits(bits: int) -> Code:
    """The code of that many bits.

    Raises:
        UserError: it cannot be made of codebooks of 16 words.
    """
    if bits % WORD_BITS or not WORD_BITS <= bits <= 32 * WORD_BITS:
        raise UserError(f"A code has 4 bits for each of 1 to 32 sub-vectors, so it cannot have {bits} bits.")
    return Code(bits // WORD_BITS)


def code_of_outputs(outputs: int) -> Code | None:
    """The code of a network with that many outputs; None if there is none."""
    subspaces, rest = divmod(outputs, WORDS + SUBSPACE)
    return Code(subspaces) if subspaces and not rest else None


@dataclass(frozen=True)
class Said:
    """The output for N images, taken apart.

    Attributes:
        table: inner products of unit sub-vectors and words, [N, M, K].
        vectors: unit sub-vectors, [N, M, S].
    """

    table: Tensor
    vectors: Tensor


def said(outputs: Tensor, code: Code | None = None) -> Said:
    """Take outputs [N, M (K + S)] apart; differentiable.

    Args:
        outputs: of a retrieval network.
        code: its shape; by default what the number of outputs says.

    Raises:
        ValueError: no code has that many outputs.
    """
    code = code or code_of_outputs(outputs.shape[1])
    if code is None:
        raise ValueError(f"{outputs.shape[1]} outputs are no table and embedding")
    products = outputs[:, : code.subspaces * code.words].unflatten(1, (code.subspaces, code.words))
    raw = outputs[:, code.subspaces * code.words :].unflatten(1, (code.subspaces, code.size))
    length = raw.norm(dim=2, keepdim=True).clamp(min=1e-12)
    return Said(products / length, F.normalize(raw, dim=2))


def words_of(outputs: Said) -> Tensor:
    """The words [M, K, S] that a network multiplies its sub-vectors with, as its outputs tell them.

    By least squares, so that it does not matter where the network keeps them, nor what has been done to it;
    exact where sub-vectors are not quantized in between. Of directions that no image has nothing is known.
    """
    vectors, table = (part.double().transpose(0, 1) for part in (outputs.vectors, outputs.table))
    return torch.linalg.lstsq(vectors, table, driver="gelsd").solution.mT.float()

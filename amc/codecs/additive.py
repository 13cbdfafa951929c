"""A trained codec: what it stores of a vector, to the byte."""

import math
from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import Tensor

from amc.codecs.encoding import LocalSearch, decode, encode, random_codes
from amc.codecs.training import Recipe, Trained, train
from amc.quantization.kmeans import fit_codebook

NORM_BITS = 8


@dataclass(frozen=True)
class StoredVectors:
    """What is kept of vectors.

    Attributes:
        codes: uint8 [n, M].
        norms: uint8 [n], which of the codec's norms the decoded vector has.
    """

    codes: Tensor
    norms: Tensor


@dataclass(frozen=True)
class AdditiveCodec:
    """Codebooks, and levels for the squared norms of what they decode to.

    Asymmetric distances need that norm, |q - x|^2 = |q|^2 - 2<q, x> + |x|^2, so its byte is a part of the
    code: 64 bits are 7 codes of 8 bits and the norm.

    Attributes:
        codebooks: float32 [M, K, d].
        norms: squared norms, ascending, float32 [256].
        search: effort of encoding; the paper's is four times that of training.
        seed: of the random codes that encoding starts from, and of its perturbations.
    """

    codebooks: Tensor
    norms: Tensor
    search: LocalSearch = field(default_factory=lambda: LocalSearch(rounds=32))
    seed: int = 0

    @property
    def bits(self) -> int:
        """Bits stored of a vector, its norm included."""
        return len(self.codebooks) * int(math.log2(self.codebooks.shape[1])) + NORM_BITS

    def encode(self, vectors: Tensor) -> StoredVectors:
        """Codes of vectors [n, d]; depends on their order, as the perturbations are drawn in it."""
        generator = torch.Generator().manual_seed(self.seed)
        count, entries, _ = self.codebooks.shape
        begin = random_codes(len(vectors), count, entries, generator)
        codes = encode(vectors.float(), self.codebooks, begin, self.search, generator)
        return self.stored(codes)

    def stored(self, codes: Tensor) -> StoredVectors:
        """What is kept of vectors with these codes [n, M]."""
        squares = decode(self.codebooks, codes).square().sum(dim=1)
        levels = torch.bucketize(squares, (self.norms[1:] + self.norms[:-1]) / 2)
        return StoredVectors(codes.to(torch.uint8), levels.to(torch.uint8))

    def decode(self, stored: StoredVectors) -> Tensor:
        """The vectors [n, d] that codes stand for."""
        return decode(self.codebooks, stored.codes.long())


def train_codec(
    vectors: Tensor, recipe: Recipe | None = None, on_iteration: Callable[[int], None] = lambda _: None
) -> tuple[AdditiveCodec, Trained]:
    """Train a codec for vectors [n, d] and return it with the figures of its training.

    Raises:
        UserError: the vectors or the recipe cannot be used.
    """
    recipe = recipe or Recipe()
    found = train(vectors, recipe, on_iteration)
    squares = decode(found.codebooks, found.codes).square().sum(dim=1)
    norms = fit_codebook(squares, 2**NORM_BITS).float()
    search = LocalSearch(4 * recipe.search.rounds, recipe.search.sweeps, recipe.search.perturbations)
    return AdditiveCodec(found.codebooks, norms, search, recipe.seed), found

"""Additive codes of the weights of a large linear layer: short pieces of rows share codebooks.

With pieces of 8 weights and 2 codes of 8 bits a weight takes 2 bits, and the codebooks 8 KB a layer; so a
layer must be large for it to pay. Each row is divided by its root mean square first, so that no row loses
more of itself than another.
"""

from dataclasses import dataclass, replace

import torch
from torch import Tensor
from torch.nn import functional as F

from amc.codecs.encoding import decode
from amc.codecs.training import Recipe, train
from amc.errors import UserError
from amc.quantization.bit_packing import pack, unpack

WEIGHT_RECIPE = Recipe(codebooks=2, entries=256, iterations=10)


@dataclass(frozen=True)
class CodedWeight:
    """What is stored of a weight.

    Attributes:
        packed: the codes without gaps, uint8 [bytes].
        codebooks: float16 [M, K, length].
        scales: of the rows, float16 [out].
        shape: of the weight, [out, in].
    """

    packed: Tensor
    codebooks: Tensor
    scales: Tensor
    shape: tuple[int, int]

    @property
    def bytes(self) -> int:
        """Bytes of codes, codebooks and scales; the shape is the layer's and not counted."""
        parts = (self.packed, self.codebooks, self.scales)
        return sum(part.numel() * part.element_size() for part in parts)

    def codes(self) -> Tensor:
        """The codes of every piece, uint8 [pieces, M]."""
        rows, columns = self.shape
        count, entries, length = self.codebooks.shape
        pieces = rows * -(-columns // length)
        return unpack(self.packed, entries.bit_length() - 1, pieces * count).view(pieces, count)

    def values(self) -> Tensor:
        """The weight that the codes stand for, float32 [out, in]."""
        rows, columns = self.shape
        decoded = decode(self.codebooks.float(), self.codes().long()).view(rows, -1)[:, :columns]
        return decoded * self.scales.float()[:, None]


def encode_weight(weight: Tensor, length: int = 8, recipe: Recipe = WEIGHT_RECIPE) -> CodedWeight:
    """Code the weight [out, in] of a linear layer.

    Args:
        weight: its rows are cut into pieces; the last piece of a row is filled with zeros.
        length: weights a piece.
        recipe: codes a piece, entries of a codebook, and how they are trained.

    Raises:
        UserError: the weight is no matrix, or has fewer pieces than a codebook has entries.
    """
    if weight.ndim != 2 or length < 1:
        raise UserError(
            f"A weight [out, in] is cut into pieces of at least 1, not {list(weight.shape)} into {length}."
        )
    rows, columns = weight.shape
    weight = weight.detach().float()
    scales = weight.square().mean(dim=1).sqrt().half()
    # A row that is zero as float16 stays zero whatever its codes are.
    even = weight / scales.float().clamp_min(torch.finfo(torch.float16).tiny)[:, None]
    pieces = F.pad(even, (0, -columns % length)).view(-1, length)
    if len(pieces) < recipe.entries:
        raise UserError(
            f"A weight of {rows} x {columns} has {len(pieces)} pieces of {length}, too few for "
            f"{recipe.entries} entries; it stays as it is, or pieces get shorter."
        )
    found = train(pieces, recipe)
    packed = pack(found.codes.to(torch.uint8), recipe.entries.bit_length() - 1)
    return CodedWeight(packed, found.codebooks.half(), scales, (rows, columns))


def recipe_for(bits: float, length: int = 8, entries: int = 256) -> Recipe:
    """The recipe with the most codes that take no more than `bits` a weight, codebooks aside.

    Raises:
        UserError: not even one code does.
    """
    codes = int(bits * length / (entries.bit_length() - 1))
    if codes < 1:
        raise UserError(f"One code of {entries} entries takes more than {bits} bits a weight of {length}.")
    return replace(WEIGHT_RECIPE, codebooks=codes, entries=entries)

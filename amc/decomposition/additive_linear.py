"""Additive codes in the place of a large linear layer's weight: an operator that only lowers the file's size.

Pieces of 8 weights become sums of a few codewords (LSQ++, Martinez et al., ECCV 2018; `amc.codecs.weights`).
The codebooks take up to 4 KB for each code, so it pays for layers of many thousand weights, where it spends
fewer bits a weight than any uniform quantizer can: 1 for one code, 2 for two.
"""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from amc.codecs.encoding import decode
from amc.codecs.training import Recipe
from amc.codecs.weights import CodedWeight, encode_weight
from amc.decomposition.operator import Operator, OperatorCost, SelfPacking, spelled_out
from amc.decomposition.responses import Responses
from amc.errors import UserError
from amc.network import Layer
from amc.quantization.bit_packing import pack, unpack
from amc.quantization.protocol import FLOAT_BYTES

LENGTH = 8
"""Weights of a piece."""
MOST_ENTRIES = 256
LEAST_PIECES = 4 * MOST_ENTRIES
"""Of a layer: with fewer, codebooks are most of what is stored."""
HALF_BYTES = 2
ITERATIONS = 5
"""Fits of the codebooks; a search makes them for every policy."""


def pieces_of(inputs: int, outputs: int) -> int:
    """Pieces of a weight [outputs, inputs]; the last one of a row is filled up."""
    return outputs * -(-inputs // LENGTH)


def entries_of(pieces: int) -> int:
    """Entries of a codebook: 256, fewer where there are fewer pieces, always a power of two."""
    return int(min(MOST_ENTRIES, 1 << (pieces.bit_length() - 1)))


def stored_bytes(inputs: int, outputs: int, codes: int) -> int:
    """Bytes of a coded weight: packed codes, fp16 codebooks, one fp16 scale a row; `CodedWeight.bytes`."""
    pieces = pieces_of(inputs, outputs)
    entries = entries_of(pieces)
    packed = -(-pieces * codes * (entries.bit_length() - 1) // 8)
    return packed + HALF_BYTES * (codes * entries * LENGTH + outputs)


class AdditiveLinear(nn.Linear, SelfPacking):
    """A linear layer whose weight is a scale a row times sums of codewords.

    `weight` is no parameter: it is rebuilt at every use, and gradients reach the codebooks and the scales,
    which are rounded to fp16 at every use, as they are stored.

    Attributes:
        codebooks: parameter [M, K, 8].
        scales: parameter [out].
        codes: uint8 buffer [pieces, M].
    """

    codebooks: nn.Parameter
    scales: nn.Parameter
    codes: Tensor

    @property
    def weight(self) -> Tensor:  # type: ignore[override]
        """The weight that runs, [out, in]."""
        pieces = decode(_rounded(self.codebooks), self.codes.long())
        rows = pieces.view(self.out_features, -1)[:, : self.in_features]
        return rows * _rounded(self.scales)[:, None]

    @property
    def code_bits(self) -> int:
        """Bits of one code."""
        return self.codebooks.shape[1].bit_length() - 1

    def packed(self) -> dict[str, Tensor]:
        """Codes without gaps, and codebooks and scales in fp16."""
        halves = torch.cat([part.detach().reshape(-1) for part in (self.codebooks, self.scales)]).half()
        if not bool(halves.isfinite().all()):
            raise UserError("A codebook or a scale of the additive codes does not fit into 16 bits.")
        return {"codes": pack(self.codes, self.code_bits), "float16": halves}

    def unpack(self, parts: Mapping[str, Tensor]) -> None:
        """Fill a layer of the same shape."""
        codes = unpack(parts["codes"], self.code_bits, self.codes.numel())
        self.codes.copy_(codes.reshape(self.codes.shape))
        size = self.codebooks.numel()
        self.codebooks.data = parts["float16"][:size].float().reshape(self.codebooks.shape)
        self.scales.data = parts["float16"][size:].float()

    def plain(self) -> nn.Linear:
        """The linear layer that it computes, its weight spelled out; shares the bias."""
        return spelled_out(self, nn.Linear)


def _rounded(values: Tensor) -> Tensor:
    """Values as fp16 holds them; the rounding has the gradient 1, which may be too small for fp16 itself."""
    return values + (values.half().to(values.dtype) - values).detach()


def additive(linear: nn.Linear, coded: CodedWeight) -> AdditiveLinear:
    """A linear layer (sharing its bias) with a coded weight."""
    new = AdditiveLinear.__new__(AdditiveLinear)
    new.__dict__.update(linear.__dict__)
    device = linear.weight.device
    books, scales = (part.float().to(device) for part in (coded.codebooks, coded.scales))
    bias = linear._parameters["bias"]
    new._parameters = {"codebooks": nn.Parameter(books), "scales": nn.Parameter(scales), "bias": bias}
    new._buffers, new._modules = {"codes": coded.codes().to(device)}, {}
    return new


class AdditiveCodes(Operator):
    """A large linear layer's weight as sums of `amount` codewords for every 8 weights."""

    name = "additive-codes"
    lowers = frozenset({"size"})
    quantizes = False
    uses_responses = False
    choices = (1, 2, 3, 4)

    def obstacle(self, module: nn.Module) -> str | None:
        """Only large linear layers: others would pay more for the codebooks than for their weights."""
        if not isinstance(module, nn.Linear):
            return f"a {type(module).__name__} is no linear layer"
        if pieces_of(module.in_features, module.out_features) < LEAST_PIECES:
            return f"it has fewer than {LEAST_PIECES * LENGTH:,} weights"
        return None

    def amounts(self, conv: nn.Module) -> tuple[int, ...]:
        """One to four codes a piece where those need less than the 32-bit weights; 1 to 4 bits a weight."""
        assert isinstance(conv, nn.Linear)
        whole, shape = FLOAT_BYTES * conv.weight.numel(), (conv.in_features, conv.out_features)
        return tuple(codes for codes in self.choices if stored_bytes(*shape, codes) < whole)

    def cost(self, layer: Layer, amount: int, inputs: int, outputs: int) -> OperatorCost:
        """MACs of the layer itself; the size of codes, codebooks and scales."""
        bias = outputs * layer.has_bias
        params = amount * entries_of(pieces_of(inputs, outputs)) * LENGTH + outputs + bias
        size = stored_bytes(inputs, outputs, amount) + FLOAT_BYTES * bias
        return OperatorCost(inputs * outputs * layer.out_size, params, size)

    def fit(
        self, conv: nn.Module, amount: int, responses: Responses | None = None, start: Any = None
    ) -> AdditiveLinear:
        """Code the weight of one layer; responses do not enter."""
        assert isinstance(conv, nn.Linear)
        entries = entries_of(pieces_of(conv.in_features, conv.out_features))
        recipe = Recipe(codebooks=amount, entries=entries, iterations=ITERATIONS)
        return additive(conv, encode_weight(conv.weight, LENGTH, recipe))

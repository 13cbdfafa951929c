"""Weight sharing: the weights of a layer take one of 2^b learned values.

Han, Mao and Dally, ICLR 2016, "Deep Compression", section 3; also the size mode of HAQ (CVPR 2019).
Clustering is Lloyd's algorithm on the sorted weights, from evenly spaced values (the paper's choice) and from
evenly spaced quantiles; the better result is kept. A layer stores codes and a codebook, and as some codes are
far more frequent than others, a Huffman code makes them shorter yet; see `huffman_bytes`.
"""

from typing import TypeVar

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from amc.quantization import huffman
from amc.quantization.protocol import FLOAT_BYTES, NOT_QUANTIZED, Coded, WeightQuantizer, packed_bytes
from amc.quantization.sorted_rows import SortedRows, midpoints

MOST_STEPS = 200

Count = TypeVar("Count", int, np.ndarray)


def entries(elements: Count, bits: Count) -> Count:
    """Entries of a codebook: 2^bits, but no more than there are weights."""
    return np.minimum(2**bits, elements)


def lloyd(rows: SortedRows, codebook: Tensor) -> tuple[Tensor, float]:
    """Move every entry to the mean of the numbers nearest to it until the error settles.

    Args:
        rows: numbers [1, n].
        codebook: ascending [entries], float64; an entry without numbers stays where it is.

    Returns:
        The codebook and its squared error, which no step has raised.
    """
    levels, error = codebook[None], float("inf")
    for _ in range(MOST_STEPS):
        counts, sums = rows.cells(midpoints(levels))
        now = float(rows.error(levels, counts, sums))
        if error - now <= 1e-9 * now:
            break
        means = torch.where(counts > 0, sums / counts.clamp_min(1), levels)
        levels, error = means.sort(dim=1).values, now
    return levels[0], now


def fit_codebook(values: Tensor, count: int) -> Tensor:
    """Ascending codebook [count] of values of any shape, float64; exact where they are no more than that.

    Values that are exactly zero were pruned: one entry is then zero, and only the others are clustered, as in
    HAQ.
    """
    flat = values.reshape(-1)
    rest = flat[flat != 0]
    if count > 1 and 0 < len(rest) < len(flat):
        return F.pad(_clustered(rest, count - 1), (1, 0)).sort().values
    return _clustered(flat, count)


def _clustered(values: Tensor, count: int) -> Tensor:
    """Ascending codebook [count] of values [n]."""
    rows = SortedRows(values.reshape(1, -1))
    numbers = rows.values[0]
    distinct = numbers.unique()
    if len(distinct) <= count:
        return F.pad(distinct[None], (0, count - len(distinct)), mode="replicate")[0]
    places = torch.linspace(0, 1, count, dtype=torch.float64, device=numbers.device)
    even = numbers[0] + (numbers[-1] - numbers[0]) * places
    quantiles = numbers[(places * (len(numbers) - 1)).round().long()]
    return min((lloyd(rows, start) for start in (even, quantiles)), key=lambda found: found[1])[0]


def huffman_bytes(coded: Coded) -> int:
    """Bytes of a weight whose codes are Huffman-coded: codebook, one length byte an entry, stream."""
    codebook = coded.parts["codebook"]
    counts = torch.bincount(coded.codes.reshape(-1).long(), minlength=len(codebook))
    return huffman.stream_bytes(counts.tolist()) + (1 + FLOAT_BYTES) * len(codebook)


class KmeansWeightQuantizer(WeightQuantizer):
    """One codebook a layer; state: `codebook` [entries], ascending.

    The budget is charged for codes of `bits` bits, which no weights exceed.
    """

    name = "kmeans"
    codebook: Tensor

    def __init__(self, bits: int, elements: int):
        super().__init__(bits)
        self.register_buffer("codebook", torch.zeros(int(entries(elements, bits))))

    @classmethod
    def empty(cls, weight: Tensor, bits: int) -> WeightQuantizer:
        """A quantizer with a codebook for as many weights."""
        return cls(bits, weight.numel())

    @classmethod
    def stored_bytes(cls, elements: np.ndarray, channels: np.ndarray, bits: np.ndarray) -> np.ndarray:
        """Packed codes and a float32 codebook."""
        return packed_bytes(elements, bits) + FLOAT_BYTES * entries(elements, bits)

    @staticmethod
    def operand_bits(bits: int) -> float:
        """Shared weights are floats."""
        return NOT_QUANTIZED

    def fit(self, x: Tensor) -> None:
        """Cluster the weights."""
        self.codebook.copy_(fit_codebook(x.detach(), len(self.codebook)))

    def quantize(self, x: Tensor) -> Coded:
        """Positions in the codebook, and the codebook."""
        codes = torch.bucketize(x.detach(), midpoints(self.codebook))
        return Coded(codes.to(torch.uint8), self.bits, {"codebook": self.codebook})

    def dequantize(self, coded: Coded) -> Tensor:
        """The entries that the codes point to."""
        return coded.parts["codebook"][coded.codes.long()]

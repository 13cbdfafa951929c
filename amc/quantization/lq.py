"""LQ-Nets: levels that are sums of a learned basis (Zhang, Yang, Ye and Hua, ECCV 2018, arXiv:1807.10029).

A value is v^T e with a basis v of K numbers and K binary digits e: -1 or +1 for weights and for whatever has
negative values, 0 or 1 for what ReLU leaves. So a dot product of quantized vectors is a sum of K_w K_a counts
of equal digits. Both half-steps of min || B^T v - x ||^2 have a closed form, so the error never rises:

    codes: the nearest of the 2^K levels, a number halfway goes to the lower one
    basis: v <- (B B^T + d I)^-1 (B x + d v), d = 1e-4, which stays solvable where a digit never changes

Training takes one sweep a batch: it quantizes with the running basis, then moves it towards the basis that is
best for these codes. The authors' program uses TensorFlow's moving average with its bias correction, so that
after the first batch the running basis is that batch's and the initial one is forgotten; so does this one.
"""

import numpy as np
import torch
from torch import Tensor

from amc.quantization.protocol import (
    FLOAT_BYTES,
    NOT_QUANTIZED,
    Coded,
    PointQuantizer,
    WeightQuantizer,
    even_sample,
    packed_bytes,
    straight_through,
)
from amc.quantization.sorted_rows import SortedRows, midpoints

DAMPING = 1e-4
MOMENTUM = 0.9
"""Share of the old basis in the moving average."""
QUARTILE = 0.6745
"""75 % quantile of the normal distribution; scales the initial basis."""
STARTS = (0.5, 0.75, 1.0, 1.25, 1.5, 2.0, 2.5, 3.0, 4.0)
"""Scales of the initial basis that are tried; the paper's is 1."""
SWEEPS = 100
LEARNED_FROM = 65536
"""Activations of a batch that its basis is fitted to: a million take as long as all else that quantizes them,
and say within 1 % the same."""
BFLOAT16_NUMBERS = 2**16
MOST_COMPARISONS = 8
"""Up to so many levels comparing with one threshold after the other is faster than searching."""


def digits(bits: int, signed: bool, like: Tensor) -> Tensor:
    """All codes as rows of digits, [2^K, K]: code c has digit i in column i."""
    codes = torch.arange(2**bits, device=like.device)[:, None]
    table = (codes >> torch.arange(bits, device=like.device)).bitwise_and(1).to(like.dtype)
    return 2 * table - 1 if signed else table


def levels_of(basis: Tensor, signed: bool) -> Tensor:
    """What the codes 0..2^K - 1 mean under bases [rows, K]; [rows, 2^K].

    Added up one by one: a matrix product may round in another way in another process, and codes that were
    read from a file must mean what they meant.
    """
    table = digits(basis.shape[1], signed, basis)
    levels = torch.zeros(len(basis), len(table), dtype=basis.dtype, device=basis.device)
    for number, digit in zip(basis.T, table.T, strict=True):
        levels += number[:, None] * digit
    return levels


def sorted_levels(basis: Tensor, signed: bool) -> tuple[Tensor, Tensor]:
    """Levels of bases [rows, K] in ascending order and the codes that mean them, both [rows, 2^K]."""
    levels, codes = levels_of(basis, signed).sort(dim=1, stable=True)
    return levels, codes


def first_basis(rows: SortedRows, bits: int, signed: bool) -> Tensor:
    """The initial basis [rows, K]: uniform levels under the best of several scales of each row.

    The paper scales by the standard deviation of He's initialisation for weights and by 1 for activations; a
    trained network's own spread takes their place. Where the levels end matters more the more bits there
    are, as the descent only finds a local optimum.
    """
    factor = 1 / 2 ** (bits - 1) if signed else 2 / (2**bits - 1)
    power = rows.squares / rows.values.shape[1]
    spread = (power if signed else 2 * power).sqrt()  # rectified, unit variance has a mean square of 1/2
    basis = QUARTILE * factor * spread[:, None] * 2.0 ** torch.arange(bits, device=spread.device)
    candidates = [scale * basis for scale in STARTS]
    errors = torch.stack([error_of(rows, candidate, signed) for candidate in candidates])
    return torch.stack(candidates).gather(0, errors.argmin(dim=0)[None, :, None].expand(1, -1, bits))[0]


def error_of(rows: SortedRows, basis: Tensor, signed: bool) -> Tensor:
    """Squared error [rows] of numbers [rows, n] under bases [rows, K]."""
    levels, _ = sorted_levels(basis, signed)
    return rows.error(levels, *rows.cells(midpoints(levels)))


def basis_step(basis: Tensor, signed: bool, counts: Tensor, sums: Tensor) -> Tensor:
    """The least-squares basis of given codes, near `basis` where they leave it open.

    B B^T and B x only depend on how many numbers have each code and what they sum to.

    Args:
        basis: [rows, K], float64.
        signed: whether digits are -1 and 1.
        counts, sums: of the numbers at each level in ascending order, [rows, 2^K].

    Returns:
        [rows, K], float64.
    """
    table = digits(basis.shape[1], signed, basis)[sorted_levels(basis, signed)[1]]
    gram = torch.einsum("rli,rl,rlj->rij", table, counts.double(), table)
    gram += DAMPING * torch.eye(basis.shape[1], device=basis.device, dtype=basis.dtype)
    wanted = torch.einsum("rli,rl->ri", table, sums) + DAMPING * basis
    return torch.linalg.solve(gram, wanted)


def fit_basis(rows: SortedRows, basis: Tensor, signed: bool, sweeps: int = SWEEPS) -> Tensor:
    """Block coordinate descent until the error settles.

    Args:
        rows: numbers [rows, n].
        basis: where to start, [rows, K].
        signed: whether digits are -1 and 1.
        sweeps: at most so many.

    Returns:
        [rows, K], float64.
    """
    basis, before = basis.double(), None
    for _ in range(sweeps):
        levels, _ = sorted_levels(basis, signed)
        counts, sums = rows.cells(midpoints(levels))
        error = rows.error(levels, counts, sums)
        if before is not None and bool((before - error <= 1e-7 * before).all()):
            break
        basis, before = basis_step(basis, signed, counts, sums), error
    return basis


def ranks(rows: Tensor, levels: Tensor) -> Tensor:
    """Which of the ascending levels [rows, L] each number [rows, n] is nearest to, int32 or int64."""
    thresholds = midpoints(levels).contiguous()
    if levels.shape[1] > MOST_COMPARISONS:
        if len(levels) == 1:
            return torch.bucketize(rows, thresholds[0])
        return torch.searchsorted(thresholds, rows)
    above = torch.zeros(rows.shape, dtype=torch.uint8, device=rows.device)
    for threshold in thresholds.split(1, dim=1):
        above += (rows > threshold).view(torch.uint8)
    return above.int()


def looked_up(row: Tensor, levels: Tensor) -> Tensor:
    """The nearest of the ascending levels [1, L] to bfloat16 numbers [1, n]; bfloat16 [1, n].

    To compare each such number that there is with the thresholds once, and to look the others up, is five
    times as fast as to compare a million.
    """
    half = BFLOAT16_NUMBERS // 2
    every = torch.arange(-half, half, dtype=torch.int16, device=row.device).view(torch.bfloat16)
    nearest = levels[0].index_select(0, ranks(every[None], levels)[0]).bfloat16()
    return nearest.index_select(0, row[0].view(torch.int16).int() + half)[None]


def in_memory_order(x: Tensor) -> tuple[Tensor, tuple[int, ...]]:
    """A tensor with its axes as they lie in memory, and the order of axes that undoes it.

    Flattened in another order it is copied, and what is computed from the copy is in that order.
    """
    if x.dim() == 4 and x.is_contiguous(memory_format=torch.channels_last):
        return x.permute(0, 2, 3, 1), (0, 3, 1, 2)
    return x, tuple(range(x.dim()))


def cells_of(rows: Tensor, rank: Tensor, cells: int) -> tuple[Tensor, Tensor]:
    """How many numbers [rows, n] have each rank, and their sums; both float64 [rows, cells]."""
    flat = (rank + cells * torch.arange(len(rows), device=rows.device)[:, None]).reshape(-1)
    total = cells * len(rows)
    counts = torch.bincount(flat, minlength=total)
    sums = torch.bincount(flat, weights=rows.reshape(-1).double(), minlength=total)
    return counts.double().reshape(-1, cells), sums.reshape(-1, cells)


class _RunningBasis:
    """A basis [rows, K] and what the forward passes of training do to it."""

    def __init__(self, basis: Tensor, updates: Tensor):
        self.basis, self.updates = basis, updates

    def values(self, rows: Tensor, signed: bool) -> Tensor:
        """The nearest levels of numbers [rows, n]."""
        levels, _ = sorted_levels(self.basis, signed)
        if rows.dtype == torch.bfloat16 and len(rows) == 1 and rows.shape[1] > BFLOAT16_NUMBERS:
            return looked_up(rows, levels)
        rank = ranks(rows, levels)
        if len(levels) == 1:
            return levels[0].index_select(0, rank.reshape(-1)).reshape(rank.shape)
        return levels.gather(1, rank.long())

    def learn(self, rows: Tensor, signed: bool) -> None:
        """Move towards the basis that is best for the codes of numbers [rows, n]."""
        levels, _ = sorted_levels(self.basis, signed)
        cells = cells_of(rows, ranks(rows, levels), levels.shape[1])
        self._move(basis_step(self.basis.double(), signed, *cells))

    def start(self, basis: Tensor) -> None:
        """Replace the basis; the next one that is learned makes it forgotten."""
        self.basis.copy_(basis)
        self.updates.zero_()

    def codes(self, rows: Tensor, signed: bool) -> Tensor:
        """Digits of the nearest levels as one number below 2^K, uint8 [rows, n]."""
        levels, codes = sorted_levels(self.basis, signed)
        return codes.gather(1, ranks(rows, levels).long()).to(torch.uint8)

    def _move(self, best: Tensor) -> None:
        """The bias-corrected moving average, written as a step whose length falls from 1 to 0.1."""
        self.updates += 1
        step = (1 - MOMENTUM) / (1 - MOMENTUM ** int(self.updates))
        self.basis += step * (best.to(self.basis.dtype) - self.basis)


class LqWeightQuantizer(WeightQuantizer):
    """One basis a channel, digits -1 and 1; state: `basis` [out, K], and `updates`, how often it moved."""

    name = "lq"
    follows = True
    absorbs = True
    keeps_zeros = False  # its levels are sums of basis numbers, of which none need be zero
    basis: Tensor
    updates: Tensor

    def __init__(self, bits: int, channels: int):
        super().__init__(bits)
        self.register_buffer("basis", torch.zeros(channels, bits))
        self.register_buffer("updates", torch.zeros((), dtype=torch.int64))

    @classmethod
    def empty(cls, weight: Tensor, bits: int) -> WeightQuantizer:
        """A quantizer with one basis a channel."""
        return cls(bits, weight.shape[0])

    @classmethod
    def stored_bytes(cls, elements: np.ndarray, channels: np.ndarray, bits: np.ndarray) -> np.ndarray:
        """Packed codes and K float32 numbers a channel."""
        return packed_bytes(elements, bits) + FLOAT_BYTES * channels * bits

    def fit(self, x: Tensor) -> None:
        """Descend from uniform levels."""
        rows = SortedRows(x.flatten(1))
        self._running.start(fit_basis(rows, first_basis(rows, self.bits, True), signed=True))

    def quantize(self, x: Tensor) -> Coded:
        """Digits and bases."""
        codes = self._running.codes(x.detach().flatten(1), signed=True)
        return Coded(codes.reshape(x.shape), self.bits, {"basis": self.basis})

    def dequantize(self, coded: Coded) -> Tensor:
        """The sum of the basis numbers with the signs that the digits say."""
        levels = levels_of(coded.parts["basis"], signed=True)
        return levels.gather(1, coded.codes.long().flatten(1)).reshape(coded.codes.shape)

    def absorb(self, weight: Tensor, factor: Tensor) -> Tensor:
        """A basis times a factor has the levels times that factor, whatever its sign."""
        coded = self.quantize(weight)
        self.basis.mul_(factor[:, None])  # what was coded refers to it
        return self.dequantize(coded)

    def values(self, weight: Tensor) -> Tensor:
        """The quantized weight; in training the bases learn from it."""
        rows, running = weight.flatten(1), self._running
        values = running.values(rows, signed=True).reshape(weight.shape)
        if self.training:
            running.learn(rows, signed=True)
        return values

    @property
    def _running(self) -> _RunningBasis:
        return _RunningBasis(self.basis, self.updates)


class LqActivationQuantizer(PointQuantizer):
    """One basis for a tensor; digits 0 and 1, or -1 and 1 where it has negative values.

    State: `basis` [1, K], `updates`, and `signed`. Gradients pass up to the largest level, and down to the
    smallest where there are negative values.
    """

    name = "lq"
    follows = True
    basis: Tensor
    updates: Tensor
    signed: Tensor

    def __init__(self, bits: int = NOT_QUANTIZED):
        super().__init__(bits)
        self.register_buffer("basis", torch.zeros(1, bits if bits != NOT_QUANTIZED else 0))
        self.register_buffer("updates", torch.zeros((), dtype=torch.int64))
        self.register_buffer("signed", torch.zeros((), dtype=torch.int32))

    def fit(self, x: Tensor) -> None:
        """Descend from uniform levels on an even sample of a batch."""
        rows = SortedRows(even_sample(x)[None])
        self.signed.fill_(int(rows.values[0, 0] < 0))
        signed = bool(self.signed)
        self._running.start(fit_basis(rows, first_basis(rows, self.bits, signed), signed))

    def quantize(self, x: Tensor) -> Coded:
        """Digits, basis and which digits they are."""
        codes = self._running.codes(x.detach().reshape(1, -1), bool(self.signed))
        return Coded(codes.reshape(x.shape), self.bits, {"basis": self.basis, "signed": self.signed})

    def dequantize(self, coded: Coded) -> Tensor:
        """The sum of the basis numbers that the digits pick."""
        return levels_of(coded.parts["basis"], bool(coded.parts["signed"]))[0][coded.codes.long()]

    def quantized(self, x: Tensor) -> Tensor:
        """The nearest levels; in training the basis learns from an even sample of the batch."""
        signed, running = bool(self.signed), self._running
        with torch.no_grad():
            levels, _ = sorted_levels(self.basis, signed)
            stored, axes = in_memory_order(x)
            rows = stored.reshape(1, -1)
            values = running.values(rows, signed).reshape(stored.shape).permute(axes)
            passes = x <= levels[0, -1]
            if signed:
                passes &= x >= levels[0, 0]
            if self.training:
                running.learn(even_sample(stored, LEARNED_FROM).contiguous()[None], signed)
        return straight_through(x, values.to(x.dtype), passes)

    @property
    def _running(self) -> _RunningBasis:
        return _RunningBasis(self.basis, self.updates)

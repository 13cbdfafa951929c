"""Arithmetic of networks that are trained or scored: float32, or bfloat16 where the CPU computes in it.

Products of bfloat16 numbers are added up in float32, and parameters, their gradients, losses and batch-norm
statistics stay in float32 (Micikevicius et al., ICLR 2018, "Mixed Precision Training", section 3.1).
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Literal

import torch
from torch import Tensor, nn

from amc.targets.machine import cpu_features

Precision = Literal["auto", "float32", "bfloat16"]
NATIVE = frozenset({"avx512_bf16", "amx_bf16"})
"""CPU features with which PyTorch's kernels multiply bfloat16 numbers faster than float32 ones."""


def computes_in_bfloat16(precision: Precision, device: torch.device | str) -> bool:
    """Whether `precision` means bfloat16 on a device: "auto" does on a CPU that has instructions for it."""
    if precision == "auto":
        return torch.device(device).type == "cpu" and bool(NATIVE & cpu_features())
    return precision == "bfloat16"


def arithmetic(precision: Precision, device: torch.device | str) -> Precision:
    """What `precision` means on a device: "float32" or "bfloat16"."""
    return "bfloat16" if computes_in_bfloat16(precision, device) else "float32"


@contextmanager
def bfloat16(enabled: bool, device: torch.device | str = "cpu") -> Iterator[None]:
    """Convolutions and linear layers inside compute in bfloat16, unless it is not wanted."""
    with torch.autocast(torch.device(device).type, torch.bfloat16, enabled=enabled):
        yield


@contextmanager
def rounded_products(enabled: bool) -> Iterator[None]:
    """Matrix products inside round their float32 factors to bfloat16, unless it is not wanted; CPU only."""
    products = torch.backends.mkldnn.matmul  # type: ignore[attr-defined] # torch makes it at import
    before = products.fp32_precision
    products.fp32_precision = "bf16" if enabled else before
    try:
        yield
    finally:
        products.fp32_precision = before


def loss_in_bfloat16(
    loss: Callable[[nn.Module, Tensor, Tensor], Tensor], wanted: bool
) -> Callable[[nn.Module, Tensor, Tensor], Tensor]:
    """The same loss, the networks in it passed in bfloat16 if that is wanted."""

    def computed(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
        with bfloat16(wanted, x.device):
            return loss(model, x, y)

    return computed

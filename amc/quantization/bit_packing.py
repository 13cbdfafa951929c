"""Codes of less than 8 bits, one behind the other without gaps."""

import torch
from torch import Tensor


def pack(codes: Tensor, bits: int) -> Tensor:
    """Codes below 2^bits as ceil(n bits / 8) bytes, the lowest bit first.

    Args:
        codes: uint8 of any shape, n elements.
        bits: 1 to 8.

    Returns:
        uint8 [bytes], on the same device.
    """
    places = torch.arange(bits, device=codes.device, dtype=torch.uint8)
    stream = (codes.reshape(-1, 1) >> places).bitwise_and_(1).reshape(-1)
    full = stream.new_zeros(-(-stream.numel() // 8) * 8)
    full[: stream.numel()] = stream
    weights = 2 ** torch.arange(8, device=codes.device, dtype=torch.uint8)
    return (full.reshape(-1, 8) * weights).sum(dim=1, dtype=torch.uint8)


def unpack(packed: Tensor, bits: int, count: int) -> Tensor:
    """The `count` codes, uint8 [count], that `pack` made into bytes."""
    places = torch.arange(8, device=packed.device, dtype=torch.uint8)
    stream = (packed.reshape(-1, 1) >> places).bitwise_and_(1).reshape(-1)
    weights = 2 ** torch.arange(bits, device=packed.device, dtype=torch.uint8)
    return (stream[: count * bits].reshape(-1, bits) * weights).sum(dim=1, dtype=torch.uint8)

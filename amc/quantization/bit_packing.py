"""Codes of a few bits each, one behind the other without gaps."""

import torch
from torch import Tensor


def pack(codes: Tensor, bits: int) -> Tensor:
    """Codes below 2^bits as ceil(n bits / 8) bytes, the lowest bit first.

    Args:
        codes: whole numbers of any shape, n elements.
        bits: 1 to 16; more than 8 for codes of a wider type than uint8.

    Returns:
        uint8 [bytes], on the same device.
    """
    places = torch.arange(bits, device=codes.device, dtype=codes.dtype)
    stream = (codes.reshape(-1, 1) >> places).bitwise_and_(1).reshape(-1).to(torch.uint8)
    full = stream.new_zeros(-(-stream.numel() // 8) * 8)
    full[: stream.numel()] = stream
    weights = 2 ** torch.arange(8, device=codes.device, dtype=torch.uint8)
    return (full.reshape(-1, 8) * weights).sum(dim=1, dtype=torch.uint8)


def unpack(packed: Tensor, bits: int, count: int) -> Tensor:
    """The `count` codes, uint8 [count] of up to 8 bits and int32 of more, that `pack` made into bytes."""
    places = torch.arange(8, device=packed.device, dtype=torch.uint8)
    stream = (packed.reshape(-1, 1) >> places).bitwise_and_(1).reshape(-1)
    kind = torch.uint8 if bits <= 8 else torch.int32
    weights = 2 ** torch.arange(bits, device=packed.device, dtype=kind)
    return (stream[: count * bits].reshape(-1, bits) * weights).sum(dim=1, dtype=kind)

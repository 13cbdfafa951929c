"""Whole numbers of a few bits each as bytes, without gaps."""

import numpy as np
import torch
from torch import Tensor


def pack_indices(index: Tensor, bits: int) -> Tensor:
    """Whole numbers below 2^bits as ceil(n bits / 8) bytes, the highest bit first; uint8."""
    places = np.arange(bits - 1, -1, -1)
    stream = (index.numpy().astype(np.int64)[:, None] >> places) & 1
    return torch.from_numpy(np.packbits(stream.astype(np.uint8)))


def unpack_indices(packed: Tensor, bits: int, count: int) -> Tensor:
    """The `count` numbers, int32 [count], that `pack_indices` made into bytes."""
    stream = np.unpackbits(packed.numpy(), count=count * bits).reshape(count, bits)
    numbers = stream.astype(np.int64) @ (1 << np.arange(bits - 1, -1, -1))
    return torch.from_numpy(numbers.astype(np.int32))

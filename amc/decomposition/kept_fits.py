"""Fitted modules that are kept for policies that decide the same again, up to a limit of bytes."""

from collections import OrderedDict
from collections.abc import Callable, Hashable
from itertools import chain

from torch import nn


class KeptFits:
    """The fits that were asked for last.

    Args:
        limit: bytes of parameters and buffers that are kept at most; a larger fit is not kept at all.
    """

    def __init__(self, limit: int):
        self.limit, self.size = limit, 0
        self._fits: OrderedDict[Hashable, tuple[nn.Module, int]] = OrderedDict()

    def __contains__(self, key: Hashable) -> bool:
        return key in self._fits

    def of(self, key: Hashable, fit: Callable[[], nn.Module]) -> nn.Module:
        """The fit of this key, made now if it is not kept."""
        if key in self._fits:
            self._fits.move_to_end(key)
            return self._fits[key][0]
        module = fit()
        size = _bytes(module)
        self._fits[key] = module, size
        self.size += size
        while self.size > self.limit:
            self.size -= self._fits.popitem(last=False)[1][1]
        return module


def _bytes(module: nn.Module) -> int:
    tensors = chain(module.parameters(), module.buffers())
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)

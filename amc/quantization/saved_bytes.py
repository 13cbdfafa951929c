"""How many bytes a forward pass keeps for the backward pass."""

from collections.abc import Iterable

from torch import Tensor
from torch.autograd.graph import saved_tensors_hooks


class SavedBytes(saved_tensors_hooks):
    """Counts every tensor that is saved for a backward pass while it is entered, and changes nothing.

    A storage counts once, however many functions keep it or a view of it.

    Args:
        owned: tensors that are there anyway, such as parameters and buffers; they do not count.

    Attributes:
        bytes: of all storages seen so far.
    """

    def __init__(self, owned: Iterable[Tensor] = ()):
        super().__init__(self.count, lambda kept: kept)
        self.bytes = 0
        self._seen = {tensor.untyped_storage().data_ptr() for tensor in owned}

    def __enter__(self) -> "SavedBytes":  # type: ignore[override] # torch's own gives nothing back
        super().__enter__()
        return self

    def count(self, saved: Tensor) -> Tensor:
        """Count a tensor and give it back; only valid while the graph that keeps it is alive."""
        storage = saved.untyped_storage()
        if storage.data_ptr() not in self._seen:
            self._seen.add(storage.data_ptr())
            self.bytes += storage.nbytes()
        return saved

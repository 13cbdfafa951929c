"""What a file holds of a module that nothing else is known of."""

from torch import Tensor, nn

COUNTER = "num_batches_tracked"
"""Of batch norms; for training only."""


def own_tensors(module: nn.Module) -> list[Tensor]:
    """Parameters and stored buffers of one module, without those of its children and without counters."""
    temporary = {*module._non_persistent_buffers_set, COUNTER}
    buffers = [buffer for name, buffer in module._buffers.items() if name not in temporary]
    return [tensor.detach() for tensor in (*module._parameters.values(), *buffers) if tensor is not None]

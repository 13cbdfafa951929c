"""Which form a training keeps its activations in until the backward pass, to choose on a command line."""

from typing import Literal

from torch import Tensor, nn

from amc.errors import UserError
from amc.precision import Precision
from amc.quantization.saved_activations import ValueAwareStorage
from amc.training import Loss

SavedActivations = Literal["float", "value-aware", "relu-aware"]
"""As they are; by V-Quant; by RV-Quant, whose codes spare the mask of a ReLU."""


class TrainingMemory:
    """Lets losses store activations value-aware: 3 bits, and the largest 2 % as 16-bit floats.

    Args:
        relu_aware: RV-Quant instead of V-Quant.

    Attributes:
        bytes: what the last forward pass kept for its backward pass.
        plain_bytes: what it would have kept in floats.
    """

    def __init__(self, relu_aware: bool = False):
        self.relu_aware = relu_aware
        self.bytes = self.plain_bytes = 0

    def storing(self, loss: Loss) -> Loss:
        """The same loss; of the gradients only those of weights see stored activations."""

        def stored(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
            owned = (*model.parameters(), *model.buffers())
            with ValueAwareStorage(relu_aware=self.relu_aware, owned=owned) as storage:
                value = loss(model, x, y)
            self.bytes, self.plain_bytes = storage.all_bytes, storage.plain_bytes + storage.rest.bytes
            return value

        return stored

    def __str__(self) -> str:
        """What was kept, in a sentence."""
        return (
            f"A step kept {self.bytes / 1e6:.1f} MB for its backward pass, in the place of "
            f"{self.plain_bytes / 1e6:.1f} MB."
        )


def training_memory(choice: SavedActivations, precision: Precision) -> TrainingMemory | None:
    """What stores activations as chosen; None where they stay as they are.

    Raises:
        UserError: bfloat16 is asked for as well, whose activations are stored as they are.
    """
    if choice == "float":
        return None
    if precision == "bfloat16":
        raise UserError(
            f"--saved-activations {choice} stores float32 activations: drop --precision bfloat16."
        )
    return TrainingMemory(choice == "relu-aware")

"""What a runtime has to offer inside the measuring process."""

from collections.abc import Callable
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    import numpy as np


class Session(Protocol):
    """One loaded model.

    Attributes:
        shape: of the input, None where it is not fixed.
    """

    shape: tuple[int | None, ...]

    def bind(self, inputs: "np.ndarray") -> "Callable[[], np.ndarray]":
        """Return a call that runs the model on these inputs and returns its first output.

        What the call returns may be overwritten by the next call. Binding is not part of what is timed.
        """


Load = Callable[[str, int], Session]
"""`load(path, batch)`: load a model for one thread; a free batch dimension is fixed to `batch` if need be."""

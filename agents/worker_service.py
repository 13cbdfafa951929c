"""What goes to a worker and what comes back: an evaluator once, then policies and answers."""

import io
import pickle
import traceback
from typing import Any

from torch import Tensor

from amc.errors import UserError
from amc.evaluate import Evaluator
from amc.policy import CompressionPolicy

LARGE_BYTES = 1 << 16
"""Tensors from this size on are shared with the workers instead of copied."""

Message = tuple[bytes, list[Tensor]]
"""An evaluator's bytes, and the large tensors that were left out of them."""
Answer = tuple[str, Any]
"""What became of a policy, "done", "refused" or "failed", and the figures or the sentence."""


def packed(evaluator: Evaluator) -> Message:
    """An evaluator for another process: its bytes, and the large tensors in memory that can be shared.

    Raises:
        UserError: a part of it cannot be sent.
    """
    file = io.BytesIO()
    pickler = _Pickler(file)
    try:
        pickler.dump(evaluator)
    except (pickle.PicklingError, AttributeError, TypeError) as error:
        raise UserError(
            f"This search cannot use --workers, as a part of it cannot be sent to another process: {error}."
        ) from error
    return file.getvalue(), [tensor.share_memory_() for tensor in pickler.large]


def unpacked(message: Message) -> Evaluator:
    """The evaluator that `packed` took apart."""
    evaluator: Evaluator = _Unpickler(*message).load()
    return evaluator


def answer(evaluator: Evaluator, policy: dict[str, Any]) -> Answer:
    """Score one policy, given as JSON; whatever goes wrong is an answer too."""
    try:
        evaluation = evaluator([CompressionPolicy.from_json(policy, "a proposal")])[0]
    except UserError as error:
        return "refused", str(error)
    except Exception:
        return "failed", traceback.format_exc()
    return "done", (evaluation.score, evaluation.seconds)


def score_of(reply: Answer) -> tuple[float, float]:
    """Score and seconds of an answer.

    Raises:
        UserError, RuntimeError: what the worker met.
    """
    kind, value = reply
    if kind == "refused":
        raise UserError(value)
    if kind == "failed":
        raise RuntimeError(f"an evaluation failed in its worker process:\n{value}")
    score, seconds = value
    return score, seconds


class _Pickler(pickle.Pickler):
    """Leaves large tensors out, to be shared: each shared one takes a file descriptor, so not all are."""

    def __init__(self, file: io.BytesIO):
        super().__init__(file)
        self.large: list[Tensor] = []

    def persistent_id(self, value: object) -> int | None:
        if type(value) is not Tensor or value.nbytes < LARGE_BYTES:
            return None
        self.large.append(value)
        return len(self.large) - 1


class _Unpickler(pickle.Unpickler):
    """Puts the shared tensors back in."""

    def __init__(self, content: bytes, large: list[Tensor]):
        super().__init__(io.BytesIO(content))
        self.large = large

    def persistent_load(self, index: int) -> Tensor:
        return self.large[index]

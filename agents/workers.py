"""Evaluation in worker processes, one torch thread each: several episodes at once on several cores.

Results are given back in the order of the policies, however long each took, so that a search with the same
seed and the same number of workers has the same log. Another number of workers is another search: N policies
are proposed before the rewards of any of them are known, where a single process learns after each. A worker's
single thread may also add up floats in another order than several threads, which can turn a tie.

Whatever else evaluates policies, a pool on other machines say, has to offer `Evaluating` and no more.
"""

import io
import pickle
import signal
import traceback
from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from multiprocessing.connection import Connection, wait
from typing import Any, Protocol

import torch
import torch.multiprocessing
from torch import Tensor

from amc.errors import UserError
from amc.evaluate import Evaluation, Evaluator
from amc.policy import CompressionPolicy

LARGE_BYTES = 1 << 16
"""Tensors from this size on are shared with the workers instead of copied."""


class Evaluating(Protocol):
    """What a search asks of whoever evaluates its policies."""

    def __call__(self, policies: Sequence[CompressionPolicy]) -> list[Evaluation]:
        """The evaluations of policies, in their order."""


@contextmanager
def evaluating_with(evaluator: Evaluator, workers: int) -> Iterator[Evaluating]:
    """The evaluator itself for one worker, a pool of processes for more; they end with the context."""
    if workers == 1:
        yield evaluator
        return
    pool = WorkerPool(evaluator, workers)
    try:
        yield pool
    finally:
        pool.close()


class WorkerPool:
    """Processes that score policies of one evaluator.

    Costs, and latencies where the evaluator measures them, are added here in the parent when every worker is
    idle again: nothing may run beside a timing.

    Args:
        evaluator: what they evaluate with; it remembers their results.
        workers: how many.

    Raises:
        UserError: the networks are scored on a GPU, or the task cannot be sent to another process.
    """

    def __init__(self, evaluator: Evaluator, workers: int):
        if evaluator.device.type != "cpu":
            raise UserError("--workers are processes for a CPU's cores: use --device cpu with them.")
        self._evaluator = evaluator
        self._message = _pack(evaluator.alone())
        self._workers: list[_Worker] = []
        try:
            for _ in range(workers):
                self._workers.append(_Worker(self._message))
        except BaseException:
            self.close()
            raise

    def __call__(self, policies: Sequence[CompressionPolicy]) -> list[Evaluation]:
        """The evaluations of policies, in their order; a policy that was executed before costs nothing.

        Raises:
            UserError: a policy does not belong to this network, or its worker died twice.
        """
        remembered = [self._evaluator.remembered(policy) for policy in policies]
        new = {
            policy.digest(): policy
            for policy, known in zip(policies, remembered, strict=True)
            if known is None
        }
        found = dict(zip(new, self._score(list(new.values())), strict=True))
        evaluations = []
        for policy, known in zip(policies, remembered, strict=True):
            if known is None:
                known = self._evaluator.remembered(policy)  # its first place in this list completed it
            evaluations.append(known or self._evaluator.complete(policy, *found[policy.digest()]))
        return evaluations

    def close(self) -> None:
        """End every process at once, busy or not."""
        for worker in self._workers:
            worker.stop()
        self._workers = []

    def _score(self, policies: list[CompressionPolicy]) -> list[tuple[float, float]]:
        """Score and seconds of each policy."""
        results: dict[int, tuple[float, float]] = {}
        open_, idle = deque(range(len(policies))), deque(range(len(self._workers)))
        busy: dict[int, int] = {}
        died: set[int] = set()
        while len(results) < len(policies):
            while open_ and idle:
                busy[idle[0]] = open_[0]
                self._workers[idle.popleft()].send(policies[open_.popleft()])
            for place in self._ready(busy):
                index = busy.pop(place)
                try:
                    results[index] = self._workers[place].receive()
                except EOFError:
                    self._replace(place, last=index in died)
                    died.add(index)
                    open_.appendleft(index)
                idle.append(place)
        return [results[index] for index in range(len(policies))]

    def _ready(self, busy: dict[int, int]) -> list[int]:
        """Places of the workers that have answered or died; waits for one."""
        places = {self._workers[place].pipe: place for place in busy}
        return [places[pipe] for pipe in wait(list(places)) if isinstance(pipe, Connection)]

    def _replace(self, place: int, last: bool) -> None:
        code = self._workers[place].stop()
        if last:
            raise UserError(
                f"Two worker processes died over the same policy, the second with exit code {code}: fewer "
                "--workers need less memory, and a script that calls compress() with workers needs "
                "`if __name__ == '__main__':` around its call."
            )
        self._workers[place] = _Worker(self._message)


class _Worker:
    """One process and the pipe to it."""

    def __init__(self, message: tuple[bytes, list[Tensor]]):
        context = torch.multiprocessing.get_context("spawn")
        self.pipe, theirs = context.Pipe()
        self.process = context.Process(target=_serve, args=(theirs, *message), daemon=True)
        try:
            self.process.start()
        finally:
            theirs.close()  # only the worker holds its end now: its death ends our reading

    def send(self, policy: CompressionPolicy) -> None:
        """Give it something to do; a dead worker is noticed by `receive`."""
        with suppress(BrokenPipeError):
            self.pipe.send(policy.to_json())

    def receive(self) -> tuple[float, float]:
        """Score and seconds of the policy sent.

        Raises:
            EOFError: the process has died.
            UserError, RuntimeError: what it met there.
        """
        try:
            kind, value = self.pipe.recv()
        except ConnectionResetError as error:
            raise EOFError from error
        if kind == "refused":
            raise UserError(value)
        if kind == "failed":
            raise RuntimeError(f"an evaluation failed in its worker process:\n{value}")
        score, seconds = value
        return score, seconds

    def stop(self) -> int | None:
        """End the process; its exit code."""
        self.pipe.close()
        self.process.kill()  # it ignores what is milder, and has nothing to tidy up
        self.process.join()
        return self.process.exitcode


def _serve(pipe: Connection, content: bytes, large: list[Tensor]) -> None:
    """What a worker does: policy in, score and seconds out, until the pipe closes."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches every process; the parent ends this one
    torch.set_num_threads(1)
    evaluator: Evaluator = _Unpickler(content, large).load()
    try:
        while True:
            policy = CompressionPolicy.from_json(pipe.recv(), "a proposal")
            pipe.send(_answer(evaluator, policy))
    except (EOFError, BrokenPipeError):
        return  # the parent is gone


def _answer(evaluator: Evaluator, policy: CompressionPolicy) -> tuple[str, Any]:
    try:
        evaluation = evaluator([policy])[0]
    except UserError as error:
        return "refused", str(error)
    except Exception:
        return "failed", traceback.format_exc()
    return "done", (evaluation.score, evaluation.seconds)


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


def _pack(evaluator: Evaluator) -> tuple[bytes, list[Tensor]]:
    """An evaluator for another process: its bytes, and the large tensors in memory that can be shared."""
    file = io.BytesIO()
    pickler = _Pickler(file)
    try:
        pickler.dump(evaluator)
    except (pickle.PicklingError, AttributeError, TypeError) as error:
        raise UserError(
            f"This search cannot use --workers, as a part of it cannot be sent to another process: {error}."
        ) from error
    return file.getvalue(), [tensor.share_memory_() for tensor in pickler.large]

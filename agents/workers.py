"""Evaluation by workers, one torch thread each: several episodes at once on several cores or machines.

Results are given back in the order of the policies, however long each took, so that a search with the same
seed and the same number of workers has the same log. Another number of workers is another search: N policies
are proposed before the rewards of any of them are known, where a single process learns after each. A worker's
single thread may also add up floats in another order than several threads, which can turn a tie.

Workers are processes of this machine, or Ray actors (`agents.ray_workers`); the pool knows neither.
"""

import signal
import sys
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager, suppress
from multiprocessing.connection import Connection, wait
from typing import Any, Protocol, TypeVar

import torch
import torch.multiprocessing

from agents.ray_session import check_ray, ray_session
from agents.worker_service import Message, answer, packed, score_of, unpacked
from amc.errors import UserError
from amc.evaluate import Evaluation, Evaluator
from amc.policy import CompressionPolicy


class Evaluating(Protocol):
    """What a search asks of whoever evaluates its policies."""

    def __call__(self, policies: Sequence[CompressionPolicy]) -> list[Evaluation]:
        """The evaluations of policies, in their order."""


class Worker(Protocol):
    """Scores one policy at a time, somewhere else."""

    def send(self, policy: CompressionPolicy) -> None:
        """Give it something to do; that it is dead is noticed by `receive`."""

    def receive(self) -> tuple[float, float]:
        """Score and seconds of the policy sent.

        Raises:
            EOFError: it has died.
            UserError, RuntimeError: what it met there.
        """

    def dismiss(self) -> None:
        """Tell it to end, and do not wait."""

    def stop(self) -> str:
        """End it, busy or not; says in a few words how it ended."""


PATIENCE = 8.0
"""Seconds in which workers that are to end may tidy up; on a busy machine they need some."""
W = TypeVar("W", bound=Worker)


class Crew(Protocol[W]):
    """Where workers come from."""

    def start(self) -> W:
        """A new worker."""

    def ready(self, workers: Sequence[W]) -> Sequence[W]:
        """Those of these busy workers that have answered or died; waits for one."""


@contextmanager
def evaluating_with(evaluator: Evaluator, workers: int, address: str | None = None) -> Iterator[Evaluating]:
    """The evaluator itself for one worker, a pool for more, which ends with the context.

    Args:
        evaluator: what scores policies.
        workers: how many.
        address: of the Ray cluster whose actors are the workers; None: processes of this machine.

    Raises:
        UserError: see `WorkerPool`; or the cluster cannot be reached, or never has so many cores.
    """
    if address is not None:
        with _actors(evaluator, workers, address) as pool:
            yield pool
    elif workers == 1:
        yield evaluator
    else:
        with closing(WorkerPool(evaluator, workers)) as pool:
            yield pool


@contextmanager
def _actors(evaluator: Evaluator, workers: int, address: str) -> Iterator["WorkerPool"]:
    from agents.ray_workers import RayActors

    check_ray("--address")
    with ray_session(address) as ray:
        cores = int(ray.cluster_resources().get("CPU", 0))
        if workers > cores:
            raise UserError(
                f"--workers {workers} is more than the {cores} cores of the cluster at {address}."
            )
        with closing(WorkerPool(evaluator, workers, lambda message: RayActors(ray, message))) as pool:
            yield pool


class WorkerPool:
    """Workers that score policies of one evaluator.

    Costs, and latencies where the evaluator measures them, are added here in the parent when every worker is
    idle again: nothing may run beside a timing.

    Args:
        evaluator: what they evaluate with; it remembers their results.
        workers: how many.
        crew: from the packed evaluator to where they come from.

    Raises:
        UserError: the networks are scored on a GPU, or the task cannot be sent to another process.
    """

    def __init__(
        self, evaluator: Evaluator, workers: int, crew: Callable[[Message], Crew[Any]] | None = None
    ):
        if evaluator.device.type != "cpu":
            raise UserError("--workers are processes for a CPU's cores: use --device cpu with them.")
        self._evaluator = evaluator
        self._crew: Crew[Any] = (crew or LocalProcesses)(packed(evaluator.alone()))
        self._workers: list[Worker] = []
        try:
            for _ in range(workers):
                self._workers.append(self._crew.start())
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
        """End every worker at once, busy or not."""
        for worker in self._workers:
            worker.dismiss()  # all of them first: each may take its time
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
        ready = self._crew.ready([self._workers[place] for place in busy])
        return [place for place in busy if self._workers[place] in ready]

    def _replace(self, place: int, last: bool) -> None:
        end = self._workers[place].stop()
        if last:
            raise UserError(
                f"Two workers died over the same policy, the second with {end}: fewer "
                "--workers need less memory, and a script that calls compress() with workers needs "
                "`if __name__ == '__main__':` around its call."
            )
        self._workers[place] = self._crew.start()


class LocalProcesses:
    """Starts workers as processes of this machine.

    Args:
        message: the packed evaluator.
    """

    def __init__(self, message: Message):
        self._message = message

    def start(self) -> "LocalWorker":
        """A new process."""
        return LocalWorker(self._message)

    def ready(self, workers: Sequence["LocalWorker"]) -> list["LocalWorker"]:
        """Those that have answered or died; waits for one."""
        by_pipe: dict[object, LocalWorker] = {worker.pipe: worker for worker in workers}
        return [by_pipe[pipe] for pipe in wait([worker.pipe for worker in workers])]


class LocalWorker:
    """One process and the pipe to it."""

    def __init__(self, message: Message):
        context = torch.multiprocessing.get_context("spawn")
        self.pipe, theirs = context.Pipe()
        self.process = context.Process(target=_serve, args=(theirs, message), daemon=True)
        self._killed_at = 0.0
        try:
            self.process.start()
        finally:
            theirs.close()  # only the worker holds its end now: its death ends our reading

    def send(self, policy: CompressionPolicy) -> None:
        """Give it something to do; a dead worker is noticed by `receive`."""
        with suppress(BrokenPipeError):
            self.pipe.send(policy.to_json())

    def receive(self) -> tuple[float, float]:
        """Score and seconds of the policy sent; see `Worker`."""
        try:
            reply = self.pipe.recv()
        except ConnectionResetError as error:
            raise EOFError from error
        return score_of(reply)

    def dismiss(self) -> None:
        """Tell the process to end, once; its time runs from here."""
        if not self.pipe.closed:
            self._killed_at = time.monotonic() + PATIENCE
            self.pipe.close()
            self.process.terminate()

    def stop(self) -> str:
        """End the process; its exit code."""
        self.dismiss()
        self.process.join(max(0.0, self._killed_at - time.monotonic()))
        self.process.kill()  # in the middle of a computation it hears nothing
        self.process.join()
        return f"exit code {self.process.exitcode}"


def _serve(pipe: Connection, message: Message) -> None:
    """What a worker does: policy in, score and seconds out, until the pipe closes."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches every process; the parent ends this one
    # Libraries hold semaphores, of which Python says that they have leaked where nothing gives them back.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit())
    try:
        torch.set_num_threads(1)
        evaluator = unpacked(message)
        while True:
            pipe.send(answer(evaluator, pipe.recv()))
    except (EOFError, BrokenPipeError):
        return  # the parent is gone
    finally:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)  # it is ending: whoever says so now disturbs it

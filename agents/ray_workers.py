"""Workers of a search as Ray actors, on this machine or others; they score as local processes do."""

from collections.abc import Sequence
from contextlib import suppress
from types import ModuleType
from typing import Any

import torch

from agents.worker_service import Answer, Message, answer, score_of, unpacked
from amc.evaluate import Evaluator
from amc.policy import CompressionPolicy


class RayActors:
    """Starts workers on a cluster, and waits for them.

    Args:
        ray: the module, connected.
        message: the packed evaluator; it is sent to each machine once.
    """

    def __init__(self, ray: ModuleType, message: Message):
        self._ray, self._message = ray, ray.put(message)
        # An actor that dies is started again by the pool, which counts how often.
        self._actor = ray.remote(num_cpus=1, max_restarts=0)(_Scorer)

    def start(self) -> "RayWorker":
        """A new worker; it may have to wait for a core of the cluster."""
        return RayWorker(self._ray, self._actor.remote(self._message))

    def ready(self, workers: Sequence["RayWorker"]) -> list["RayWorker"]:
        """Those that have answered or died; waits for one."""
        by_answer = {worker.answer: worker for worker in workers}
        done, _ = self._ray.wait(list(by_answer), num_returns=1)
        return [by_answer[each] for each in done]


class RayWorker:
    """One actor."""

    def __init__(self, ray: ModuleType, actor: Any):
        self._ray, self._actor = ray, actor
        self._end = "its actor gone"
        self.answer: Any = None

    def send(self, policy: CompressionPolicy) -> None:
        """Give it something to do; a dead actor is noticed by `receive`."""
        self.answer = self._actor.score.remote(policy.to_json())

    def receive(self) -> tuple[float, float]:
        """Score and seconds of the policy sent; see `agents.workers.Worker`."""
        try:
            reply: Answer = self._ray.get(self.answer)
        except self._ray.exceptions.RayActorError as error:
            self._end = str(error).strip().splitlines()[-1]
            raise EOFError from error
        return score_of(reply)

    def dismiss(self) -> None:
        """End the actor."""
        with suppress(Exception):  # it may be dead, or the cluster gone
            self._ray.kill(self._actor)

    def stop(self) -> str:
        """End the actor; what is known of its end."""
        self.dismiss()
        return self._end


class _Scorer:
    """What an actor does: policy in, answer out."""

    def __init__(self, message: Message):
        torch.set_num_threads(1)
        self._evaluator: Evaluator = unpacked(message)

    def score(self, policy: dict[str, Any]) -> Answer:
        """The answer to one policy, given as JSON."""
        return answer(self._evaluator, policy)

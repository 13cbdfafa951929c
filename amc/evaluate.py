"""From a policy to its measured outcome: compress, calibrate, score, cost; each policy once."""

import copy
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor, fx

from amc.compress import RENORMALIZED, ChannelPruning, Compressor, Watch, apply, unwatched
from amc.costs.symbolic import Cost
from amc.inference import fold_norms, inference_form, take_calibration
from amc.network import Network
from amc.policy import CompressionPolicy
from amc.precision import Precision, bfloat16, computes_in_bfloat16
from amc.quantization.modules import quantizes
from amc.recovery.bias import correct_biases, output_means
from amc.recovery.brief_tuning import BriefTuning
from amc.recovery.calibrate import calibrate, has_norms
from amc.slicing import kept_positions
from amc.space import Space
from amc.targets.base import Timing
from amc.tasks.base import Task


class Latency(Protocol):
    """Measures compressed networks on a target; see `amc.targets.meter.LatencyMeter`."""

    original: float

    def timing(self, policy: CompressionPolicy, model: fx.GraphModule) -> Timing:
        """Latency of a policy's network; the ratio is to `original`."""


@dataclass(frozen=True)
class Evaluation:
    """One policy's measured outcome.

    Attributes:
        policy: what was evaluated.
        score: the task's score on the reward split, in [0, 1].
        costs: cost name to its absolute value; latency in milliseconds.
        seconds: wall time spent on it.
        cached: whether it had been evaluated before.
        latency_source: "measured", "unreliable" (measured, but the machine was too busy), "predicted", or ""
            where nobody asked for it.
    """

    policy: CompressionPolicy
    score: float
    costs: Mapping[str, float]
    seconds: float
    cached: bool = False
    latency_source: str = ""

    def to_json(self) -> dict[str, Any]:
        """The figures, without the policy."""
        return {"score": self.score, "costs": dict(self.costs), "seconds": round(self.seconds, 4)}


class Evaluator:
    """Scores policies of one network on one task; remembers every executed policy.

    Args:
        network: the traced network.
        space: its legal policies.
        task: data, loss and score.
        compressors: what carries a policy out.
        costs: closed-form costs by name.
        calibration: unlabeled batches, disjoint from the reward split.
        latency: measures milliseconds, where the search asks for them.
        device: where networks are calibrated and scored.
        precision: arithmetic in which a classifier is calibrated and scored whose activations are floats;
            with codes little time is saved, and ranges would be rounded.

    Attributes:
        predict_latency: from a policy's table to the latency expected of it, where nothing is measured.
        tuning: trains each network a little before it is scored, where the search asks for it.
        delivery: what carries out a policy whose network is to be kept, where that takes more time than a
            search has for each; made when it is first needed.
        watch: hears which part of an evaluation is at work; for whoever asks where the time goes.
    """

    def __init__(
        self,
        network: Network,
        space: Space,
        task: Task,
        compressors: Sequence[Compressor],
        costs: Mapping[str, Cost],
        calibration: Sequence[Tensor],
        latency: Latency | None = None,
        device: str = "cpu",
        precision: Precision = "float32",
    ):
        self.network, self.space, self.task = network, space, task
        self.compressors, self.costs, self.latency = tuple(compressors), dict(costs), latency
        self.device = torch.device(device)
        self.precision: Precision = precision
        self.calibration = [batch.to(self.device) for batch in calibration]
        self.predict_latency: Callable[[np.ndarray], float] | None = None
        self.tuning: BriefTuning | None = None
        self.delivery: Callable[[], Sequence[Compressor]] | None = None
        self.watch: Watch = unwatched
        self._known: dict[str, Evaluation] = {}
        self._wanted: dict[str, Tensor] | None = None

    def __call__(self, policies: Sequence[CompressionPolicy]) -> list[Evaluation]:
        """Evaluate policies in order; a policy that was executed before costs nothing."""
        return [self._evaluate(policy) for policy in policies]

    def compressed(self, policy: CompressionPolicy) -> fx.GraphModule:
        """The policy's network as it is delivered: compressed and calibrated, in evaluation mode.

        Raises:
            UserError: the policy does not belong to this network.
        """
        return self._calibrated(policy, self._delivering)[0]

    def searched(self, policy: CompressionPolicy) -> fx.GraphModule:
        """The policy's network as a search scores it, which differs from `compressed` in its numbers only.

        Raises:
            UserError: the policy does not belong to this network.
        """
        return self._calibrated(policy, self.compressors)[0]

    @cached_property
    def _delivering(self) -> tuple[Compressor, ...]:
        return self.compressors if self.delivery is None else tuple(self.delivery())

    def _calibrated(
        self, policy: CompressionPolicy, compressors: Sequence[Compressor]
    ) -> tuple[fx.GraphModule, fx.GraphModule]:
        """The policy's network, and the same in the form that is scored."""
        model = apply(policy, self.network, compressors, self.watch).to(self.device)
        fast = self._inference_form(model)
        if not model.meta.get(RENORMALIZED):
            with self.watch("calibration"):
                with self._arithmetic(fast):
                    calibrate(fast, self.calibration)
                take_calibration(model, fast)
        if has_norms(model):
            with self.watch("fold norms"):
                fold_norms(fast)
        elif self.calibration:
            with self.watch("bias correction"):
                correct_biases(model, self._wanted_means(policy), self.calibration[:1])
            fast = self._inference_form(model)
        return model.eval(), fast

    def _inference_form(self, model: fx.GraphModule) -> fx.GraphModule:
        with self.watch("inference form"):
            return inference_form(model)

    def _arithmetic(self, fast: fx.GraphModule) -> AbstractContextManager[None]:
        """In what the form that is scored computes."""
        rounds = computes_in_bfloat16(self.precision, self.device)
        return bfloat16(rounds and self.task.distillable and not quantizes(fast), self.device)

    def costs_of(self, policy: CompressionPolicy) -> dict[str, float]:
        """Every closed-form cost of a policy."""
        table = self.space.table(policy)
        return {name: cost.of(table) for name, cost in self.costs.items()}

    def alone(self) -> "Evaluator":
        """A new evaluator of the same policies for another process: no costs, nothing remembered.

        Of the data it holds the reward split only.
        """
        task, data = copy.copy(self.task), self.task.data
        data.normalised("reward")  # once here instead of in every process
        one = data.reward.take(torch.arange(1))
        kept = {key: images for key, images in data._normalised.items() if key[0] == "reward"}
        task.data = replace(data, train=one, test=one, _normalised=kept)
        other = Evaluator(
            self.network,
            self.space,
            task,
            self.compressors,
            {},
            self.calibration,
            None,
            str(self.device),
            self.precision,
        )
        other.tuning = self.tuning
        return other

    def remembered(self, policy: CompressionPolicy) -> Evaluation | None:
        """The evaluation of a policy that was executed before, at no cost."""
        known = self._known.get(policy.digest())
        return None if known is None else replace(known, seconds=0.0, cached=True)

    def complete(
        self, policy: CompressionPolicy, score: float, seconds: float, model: fx.GraphModule | None = None
    ) -> Evaluation:
        """Add the costs to a policy's score, and remember the evaluation.

        Args:
            policy: what was scored.
            score: on the reward split.
            seconds: that scoring took.
            model: its network, `searched(policy)`; made again where a latency is measured on it.
        """
        start = time.perf_counter()
        costs, source = self.costs_of(policy), ""
        if self.latency is not None:
            timing = self.latency.timing(policy, self.searched(policy) if model is None else model)
            costs["latency"] = timing.ratio * self.latency.original
            source = "measured" if timing.reliable else "unreliable"
        elif self.predict_latency is not None:
            costs["latency"], source = self.predict_latency(self.space.table(policy)), "predicted"
        seconds += time.perf_counter() - start
        evaluation = Evaluation(policy, score, costs, seconds, latency_source=source)
        self._known[policy.digest()] = evaluation
        return evaluation

    def _evaluate(self, policy: CompressionPolicy) -> Evaluation:
        known = self.remembered(policy)
        if known is not None:
            return known
        start = time.perf_counter()
        model, fast = self._calibrated(policy, self.compressors)
        if self.tuning is not None:
            with self.watch("brief tuning"):
                self.tuning(model)
            fast = self._inference_form(model)
        with self.watch("scoring"), self._arithmetic(fast):
            score = self.task.score(fast, "reward")
        return self.complete(policy, score, time.perf_counter() - start, model)

    def _wanted_means(self, policy: CompressionPolicy) -> dict[str, Tensor]:
        """The original's mean outputs at the channels that a policy keeps; layer path to [kept channels]."""
        if self._wanted is None:
            original = self.network.copy().to(self.device)
            self._wanted = output_means(original, self.calibration[:1])
        kept: dict[str, Tensor] = {}
        for compressor in self.compressors:
            if isinstance(compressor, ChannelPruning):
                kept = compressor.kept(self.network, policy)
        positions = kept_positions(self.network.groups, kept, self.network.sizes)
        outputs = {name: keep for (name, side), keep in positions.items() if side != "in"}
        return {
            name: mean[outputs[name].to(mean.device)] if name in outputs else mean
            for name, mean in self._wanted.items()
        }

"""From a target to a fitted predictor: sampled once per network, space and machine, then remembered."""

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from amc.compress import Compressor
from amc.costs.latency.features import LatencyFeatures
from amc.costs.latency.predictor import LatencyPredictor, Sample
from amc.costs.latency.sampling import LEAST_SAMPLES, Progress, Sampler
from amc.decomposition.knobs import OperatorKnob
from amc.network import Network
from amc.space import Space
from amc.targets.base import Target
from amc.targets.cache import JsonCache, default_cache_directory, identity

SAMPLING_VERSION = 2
"""Raised whenever other policies are drawn or measured in another way; part of the cache key."""


def sample_latencies(
    network: Network,
    space: Space,
    compressors: Sequence[Compressor],
    target: Target,
    reference: Path,
    progress: Progress = lambda done, total: None,
    cache: JsonCache | None = None,
) -> list[Sample]:
    """Latencies of random legal policies, from the cache or measured now.

    Args:
        network, space, compressors: what policies mean.
        target: the runtime.
        reference: the uncompressed network as a file of the target.
        progress: hears of every few samples; not called where the cache knows them.
        cache: where they are kept; default `predictors` in `default_cache_directory()`.

    Raises:
        UserError: the target cannot measure enough of them.
    """
    cache = cache or JsonCache(default_cache_directory() / "predictors")
    key = {"sampling": SAMPLING_VERSION, **identity(_name(network, space), target)}
    known = _cached(cache, key, space)
    if known is not None:
        return known
    samples = Sampler(network, space, compressors, target, reference).collect(progress)
    cache.put(key, {"samples": [sample.to_json() for sample in samples]})
    return samples


def _cached(cache: JsonCache, key: dict[str, Any], space: Space) -> list[Sample] | None:
    """The samples of an entry that is whole, or None."""
    try:
        samples = [Sample.from_json(sample) for sample in (cache.get(key) or {})["samples"]]
    except (KeyError, TypeError, ValueError):
        return None
    whole = all(sample.table.shape == space.smallest.shape for sample in samples)
    return samples if whole and len(samples) >= LEAST_SAMPLES else None


def make_predictor(space: Space, target: Target, samples: Sequence[Sample]) -> LatencyPredictor:
    """Fit a predictor with the target's channel steps in its features."""
    steps = (target.profile.multiple_for(8), target.profile.multiple_for(32))
    return LatencyPredictor(LatencyFeatures(space, steps), samples)


def _name(network: Network, space: Space) -> str:
    """What a latency depends on besides the target: the architecture, its input and the legal values."""
    legal: list[Any] = [
        [space.legal(row, column) for column in range(len(space.knobs))] for row in range(len(space.points))
    ]
    text = f"{network.fingerprint} {tuple(network.example.shape)} {legal} {space.decider.tolist()}"
    if isinstance(space.choice, OperatorKnob):
        text += f" {space.choice.names} {space.choice.amounts}"
    return hashlib.sha256(text.encode()).hexdigest()[:16]

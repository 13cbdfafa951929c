"""Do this CPU's int8 convolutions give exact sums?

x86 CPUs without VNNI multiply unsigned activations with signed weights by `vpmaddubsw`, which adds two
products in 16 bits and clips the sum at 32,767. That is exact while `2 * largest activation code * largest
weight code <= 32,767`. With activations up to 255 and weights up to 127 it is not: the worst case is off by
half the output range. Weight codes within +-64 are always exact, and so are 7-bit activations (127) with
8-bit weights (127). Depthwise convolutions use other instructions and are exact.
"""

import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from amc.targets.cache import JsonCache, default_cache_directory
from amc.targets.machine import cpu_model

if TYPE_CHECKING:
    from torch import fx

    from amc.quantization.modules import ActivationQuantizer
    from amc.targets.base import Target

CHANNELS, SIDE, KERNEL = 64, 8, 3
WEIGHT_SCALE = 2.0**-10
CHECK_VERSION = 2


def weight_bits_exact(target: "Target", cache: JsonCache | None = None) -> int:
    """Return 8 if the target's int8 convolutions are exact at full range, otherwise 7.

    Args:
        target: it exports and runs one small convolution unless the answer is cached.
        cache: where the answer is kept; default `targets` in `default_cache_directory()`.
    """
    cache = cache or JsonCache(default_cache_directory() / "targets")
    identity = {
        "check": f"saturation {CHECK_VERSION}",
        "target": target.name,
        "cpu": cpu_model(),
        "runtime": target.runtime_version,
    }
    found = cache.get(identity)
    if found is None or found.get("weight_bits_exact") not in (7, 8):
        found = {"weight_bits_exact": 8 if saturation_error(target) <= 1.0 else 7}
        cache.put(identity, found)
    return found["weight_bits_exact"]


def saturation_error(target: "Target") -> float:
    """Return the largest error of a full-range int8 convolution, in steps of its 8-bit output."""
    import torch  # the measuring process does without

    weight = full_range_weight()
    step = output_step(weight)
    inputs = np.full((1, CHANNELS, SIDE, SIDE), 255.0, np.float32)
    with tempfile.TemporaryDirectory(prefix="amc-check-") as directory:
        file = Path(directory) / f"full_range{target.file_suffix}"
        target.export(full_range_network(weight, step), torch.from_numpy(inputs), file)
        found = target.run(file, inputs) / step
    return float(np.abs(found - np.clip(np.rint(exact_sums(weight) * WEIGHT_SCALE / step), 0, 255)).max())


def full_range_weight() -> np.ndarray:
    """Return `[64, 64, 3, 3]` int8 weights of +-127, mostly positive: neighbouring products add up."""
    index = np.arange(CHANNELS)
    negative = (index[:, None] + index[None, :]) % 5 == 0
    weight = np.where(negative, -127, 127).astype(np.int8)
    return np.broadcast_to(weight[:, :, None, None], (CHANNELS, CHANNELS, KERNEL, KERNEL)).copy()


def exact_sums(weight: np.ndarray) -> np.ndarray:
    """Return the integer sums of the valid convolution of all-255 inputs: `[1, 64, 6, 6]`, all alike."""
    sums = 255 * weight.astype(np.int64).sum(axis=(1, 2, 3))
    side = SIDE - KERNEL + 1
    return np.broadcast_to(sums[None, :, None, None], (1, CHANNELS, side, side))


def output_step(weight: np.ndarray) -> float:
    """Return the output's quantization step: the largest exact sum is the last of 256 levels."""
    return float(np.float32(exact_sums(weight).max() * WEIGHT_SCALE / 255))


def full_range_network(weight: np.ndarray, step: float) -> "fx.GraphModule":
    """Return a convolution of 8-bit activations and weights, one level of the input being 1."""
    import torch
    from torch import nn

    from amc.graph import trace_graph
    from amc.quantization.modules import UniformWeightQuantizer, with_quantized_weight

    layer = nn.Conv2d(CHANNELS, CHANNELS, KERNEL, bias=False)
    layer.weight = nn.Parameter(torch.from_numpy(weight * WEIGHT_SCALE).float(), requires_grad=False)
    quantizer = UniformWeightQuantizer(8, CHANNELS)
    quantizer.scale.fill_(WEIGHT_SCALE)
    quantized = with_quantized_weight(layer, quantizer)
    return trace_graph(nn.Sequential(_levels(1.0), quantized, _levels(step)))


def _levels(scale: float) -> "ActivationQuantizer":
    from amc.quantization.modules import ActivationQuantizer

    point = ActivationQuantizer(8)
    point.calibrating = False
    point.scale.fill_(scale)
    return point

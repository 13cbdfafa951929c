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
    from amc.targets.base import Target

CHANNELS, SIDE, KERNEL = 64, 8, 3
WEIGHT_SCALE = 2.0**-10
CHECK_VERSION = 1


def weight_bits_exact(target: "Target", cache: JsonCache | None = None) -> int:
    """Return 8 if the target's int8 convolutions are exact at full range, otherwise 7.

    Args:
        target: runs ONNX files; it runs one small convolution unless the answer is cached.
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
    weight = full_range_weight()
    step = output_step(weight)
    inputs = np.full((1, CHANNELS, SIDE, SIDE), 255.0, np.float32)
    with tempfile.TemporaryDirectory(prefix="amc-check-") as directory:
        file = Path(directory) / "full_range.onnx"
        file.write_bytes(full_range_model(weight, step))
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


def full_range_model(weight: np.ndarray, step: float) -> bytes:
    """Return an ONNX file: QDQ convolution, U8 activations, S8 per-channel weights."""
    from onnx import TensorProto, helper, numpy_helper

    constants = {
        "one": np.float32(1),
        "zero": np.uint8(0),
        "weight": weight,
        "weight_scale": np.full(CHANNELS, WEIGHT_SCALE, np.float32),
        "weight_zero": np.zeros(CHANNELS, np.int8),
        "step": np.float32(step),
    }
    nodes = [
        helper.make_node("QuantizeLinear", ["x", "one", "zero"], ["x_codes"]),
        helper.make_node("DequantizeLinear", ["x_codes", "one", "zero"], ["x_values"]),
        helper.make_node("DequantizeLinear", ["weight", "weight_scale", "weight_zero"], ["w_values"], axis=0),
        helper.make_node("Conv", ["x_values", "w_values"], ["sums"], kernel_shape=[KERNEL, KERNEL]),
        helper.make_node("QuantizeLinear", ["sums", "step", "zero"], ["y_codes"]),
        helper.make_node("DequantizeLinear", ["y_codes", "step", "zero"], ["y"]),
    ]
    side = SIDE - KERNEL + 1
    graph = helper.make_graph(
        nodes,
        "full_range",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, CHANNELS, SIDE, SIDE])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [1, CHANNELS, side, side])],
        [numpy_helper.from_array(np.asarray(value), name) for name, value in constants.items()],
    )
    # IR version 9 with opset 17: every runtime of the supported range reads it.
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    return model.SerializeToString()

"""The scattering stage in an ONNX file: fixed convolutions, each filter stored once for all inputs."""

import torch

from amc.export.graph import OnnxGraph
from amc.export.registry import Call, handles
from amc.export.value import Value
from amc.scattering import ANGLES, Scattering, Taps, make_plan, split_taps


@handles(Scattering)
def scattering(g: OnnxGraph, call: Call) -> Value:
    """Order 0, and for each scale: waves, modulus, low-pass filter."""
    stage = call.module
    assert isinstance(stage, Scattering)
    _, channels, height, width = call.x.shape
    plan, x = make_plan(height, width, stage.scales), g.operand(call.x)
    parts = [_smoothed(g, x, plan.order0, channels)]
    for waves, smooth in zip(plan.waves, plan.smooth, strict=True):
        parts.append(_smoothed(g, _modulus(g, x, waves, channels), smooth, channels * ANGLES))
    return g.add("Concat", *parts, axis=1)


def _modulus(g: OnnxGraph, x: Value, waves: Taps, channels: int) -> Value:
    """Magnitude of the waves, sqrt(re^2 + im^2), of each input by itself; [N, channels * 8, h, w]."""
    x, weight = _pixels(g, x, waves), g.constant(waves.weight.numpy())
    inputs = g.add_many("Split", x, g.integers(*[1] * channels), outputs=channels, axis=1)
    results = []
    for one in inputs:
        wave = g.add("Conv", one, weight, kernel_shape=waves.weight.shape[2:], strides=[waves.stride] * 2)
        parts = g.add_many("Split", g.add("Mul", wave, wave), g.integers(ANGLES, ANGLES), outputs=2, axis=1)
        results.append(g.add("Sqrt", g.add("Add", *parts)))
    return g.add("Concat", *results, axis=1) if channels > 1 else results[0]


def _smoothed(g: OnnxGraph, x: Value, taps: Taps, channels: int) -> Value:
    x = _pixels(g, x, taps)
    column, row = split_taps(taps, channels)
    return _strided(g, _strided(g, x, column, (taps.stride, 1)), row, (1, taps.stride))


def _strided(g: OnnxGraph, x: Value, weight: torch.Tensor, strides: tuple[int, int]) -> Value:
    constant, kernel = g.constant(weight.numpy()), tuple(weight.shape[2:])
    return g.add("Conv", x, constant, kernel_shape=kernel, strides=strides, group=len(weight))


def _pixels(g: OnnxGraph, x: Value, taps: Taps) -> Value:
    rows = g.add("Gather", x, g.integers(*taps.rows.tolist()), axis=2)
    return g.add("Gather", rows, g.integers(*taps.columns.tolist()), axis=3)

"""What the measured milliseconds may be trusted for: equal is called equal, slower is called slower."""

import functools
import os
import platform
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from torch import fx, nn

from amc.compress import ActivationQuantization, ChannelPruning, WeightQuantization, apply
from amc.graph import trace_graph
from amc.knobs import BitsKnob, WidthKnob
from amc.network import Network
from amc.pruning.importance import rank_channels
from amc.quantization.modules import ActivationQuantizer
from amc.recovery.calibrate import calibrate
from amc.space import Space
from amc.targets import get_target
from amc.targets.repeats import Summary, measure_in_fresh_processes, summarize
from tests.test_export import images, prepared, quantize

TIMED = ("onnxruntime", "openvino", "litert")
BUSY = "import numpy as np\nx = np.ones((512, 512))\nwhile True: x @ x"
X86 = platform.machine().lower() in ("x86_64", "amd64")


@pytest.fixture(params=TIMED)
def target(request: pytest.FixtureRequest) -> str:
    """The name of a target that measures milliseconds."""
    if request.param == "litert":
        pytest.importorskip("ai_edge_litert")
    return request.param


def chain(width: int) -> nn.Module:
    """Five convolutions of one width, with quantization points that are off."""
    point = ActivationQuantizer
    layers: list[nn.Module] = [point(32)]
    for inputs in (3, width, width, width, width):
        layers += [nn.Conv2d(inputs, width, 3, padding=1), nn.ReLU(), point(32)]
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), point(32), nn.Flatten(), nn.Linear(width, 10))


def macs(width: int) -> int:
    """Multiplications of the chain's convolutions a pixel."""
    return 9 * (3 * width + 4 * width * width)


def export_chain(width: int, bits: int, name: str, folder: Path) -> Path:
    """Write a chain as a file of the named target."""
    net = prepared(functools.partial(chain, width))
    target = get_target(name)
    path = folder / f"{width}{target.file_suffix}"
    return target.export(trace_graph(quantize(net) if bits == 8 else net), images(1), path).path


def measured(target: str, original: Path, candidate: Path, processes: int) -> Summary:
    create = functools.partial(get_target, target)
    timings = measure_in_fresh_processes(create, [original, candidate], processes)
    first, second = zip(*timings, strict=True)
    return summarize(second, first)


def test_two_identical_networks_are_no_difference(target: str, tmp_path: Path) -> None:
    first = export_chain(32, 32, target, tmp_path)
    second = first.with_stem("second")
    second.write_bytes(first.read_bytes())
    # Where a process puts a file's buffers can cost 3.5 % on some CPUs: four processes may all do the same.
    found = measured(target, first, second, processes=6)
    assert found.verdict == "no difference", found


@pytest.mark.skipif(not X86, reason="these steps are those of ONNX Runtime's kernels for x86")
@pytest.mark.parametrize("bits", [8, 32])
def test_odd_widths_are_slower_although_they_multiply_less(bits: int, tmp_path: Path) -> None:
    """Float kernels work on blocks of 8 or 16 channels and int8 ones on groups of 4; 31 fits neither."""
    assert macs(31) < 0.95 * macs(32)
    even, odd = (export_chain(width, bits, "onnxruntime", tmp_path) for width in (32, 31))
    found = measured("onnxruntime", even, odd, processes=4)
    assert found.verdict == "slower", found


@contextmanager
def background_load(processes: int) -> Iterator[None]:
    one_thread = {**os.environ, "OPENBLAS_NUM_THREADS": "1", "OMP_NUM_THREADS": "1"}
    busy = [subprocess.Popen([sys.executable, "-c", BUSY], env=one_thread) for _ in range(processes)]
    try:
        yield
    finally:
        for process in busy:
            process.kill()
            process.wait()


def half_int8(network: Network) -> fx.GraphModule:
    """Every width halved, every layer in int8."""
    weights, activations = (BitsKnob(f"{kind}_bits", network, (8,)) for kind in ("weight", "activation"))
    space = Space(network, (WidthKnob(multiple=8), weights, activations))
    pruning = ChannelPruning(rank_channels(network))
    policy = space.policy(space.at_fraction([0.5, 0, 0]))
    model = apply(
        policy, network, [pruning, WeightQuantization(weights), ActivationQuantization(activations)]
    )
    calibrate(model, [torch.randn(20, *network.example.shape[1:])])
    return model


@pytest.mark.slow
def test_the_ratio_repeats_on_a_busy_machine(
    target: str, traced: Callable[[str], Network], tmp_path: Path
) -> None:
    network = traced("resnet20")
    with get_target(target) as exporter:
        original, candidate = (tmp_path / f"{name}{exporter.file_suffix}" for name in ("original", "int8"))
        exporter.export(network.module, network.example, original)
        exporter.export(half_int8(network), network.example, candidate)
    with background_load(processes=6):
        found = measured(target, original, candidate, processes=12)
    print(target, found)
    assert found.verdict == "faster" and found.ratio_cv <= 0.03, found

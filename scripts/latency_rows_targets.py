"""Rows of the latency results that take no search: predictors, profiles and the emulated core."""

import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from scipy.stats import pearsonr, spearmanr
from torch import fx

from amc.compress import ActivationQuantization, ChannelPruning, Compressor, WeightQuantization, apply
from amc.costs.latency.fitting import make_predictor, sample_latencies
from amc.costs.latency.predictor import Sample
from amc.costs.latency.sampling import random_table
from amc.models import build_model
from amc.network import Network, trace
from amc.pruning.importance import rank_channels
from amc.quantization.uniform import NOT_QUANTIZED
from amc.recovery.calibrate import calibrate
from amc.space import Space
from amc.targets import Target, get_target
from envs.bits import make_knobs
from envs.problem_config import ProblemConfig
from scripts.latency_rows import LatencyResults, Spec
from scripts.profile_target import describe
from scripts.progress import MeasuringProgress

Figures = dict[str, Any]
SIDE = 32
"""Height and width of the images, in pixels."""
ARM_POLICIES, ARM_NETWORK, ARM_TARGET = 30, "resnet20", "arm-instructions"
FILES_AT_ONCE = 7
"""As many as a measuring process keeps loaded beside the reference."""


@dataclass(frozen=True)
class Subject:
    """A network with random weights and its legal policies on a target."""

    network: Network
    space: Space
    compressors: Sequence[Compressor]


def subject(name: str, target: Target, bits: tuple[int, ...] = ()) -> Subject:
    """Build what a latency budget would search; `bits` instead of those that pay off on the target."""
    torch.manual_seed(0)
    network = trace(build_model(name), torch.zeros(1, 3, SIDE, SIDE))
    config = ProblemConfig(
        budget=("latency=0.5",), target=target.name, weight_bits=bits, activation_bits=bits
    )
    knobs, _ = make_knobs(config, network, target)
    ranking = rank_channels(network)  # latency hears of widths only
    compressors: list[Compressor] = [
        ChannelPruning(ranking, knobs[0]),
        WeightQuantization(knobs[1]),
        ActivationQuantization(knobs[2]),
    ]
    return Subject(network, Space(network, knobs), compressors)


def predictor_row(options: LatencyResults, spec: Spec) -> Figures:
    """How well latencies of unseen policies are predicted."""
    with get_target(spec.target) as target, tempfile.TemporaryDirectory() as folder:
        about = subject(spec.network, target)
        reference = Path(folder) / f"original{target.file_suffix}"
        target.export(about.network.module, about.network.example, reference)
        heard: list[int] = []
        started = time.perf_counter()
        with MeasuringProgress("measuring random policies") as bar:

            def progress(done: int, total: int) -> None:
                heard.append(done)
                bar(done, total)

            samples = sample_latencies(*_parts(about), target, reference, progress)
        sampling = time.perf_counter() - started
        started = time.perf_counter()
        predictor = make_predictor(about.space, target, samples)
        fitting = time.perf_counter() - started
        return {
            "mape": predictor.mape,
            **by_format(about.space, samples, predictor.errors),
            "margin": predictor.margin,
            "policies": len(samples),
            # Samples that were remembered took their time in an earlier call.
            "sampling_seconds": round(sampling, 1) if heard else None,
            "fitting_seconds": round(fitting, 2),
            "bits": weight_bits_of(about.space),
            "runtime": target.runtime_version,
        }


def _parts(about: Subject) -> tuple[Network, Space, Sequence[Compressor]]:
    return about.network, about.space, about.compressors


def by_format(space: Space, samples: Sequence[Sample], errors: np.ndarray) -> Figures:
    """Mean absolute errors and counts by the bits of the policies; None where there are no such policies."""
    integer = np.array([_bits(space, sample.table) < NOT_QUANTIZED for sample in samples])
    groups = {"int8": integer.all(axis=1), "float": ~integer.any(axis=1)}
    groups["mixed"] = ~(groups["int8"] | groups["float"])
    found: Figures = {}
    for name, chosen in groups.items():
        found[f"mape_{name}"] = float(np.abs(errors[chosen]).mean()) if chosen.any() else None
        found[f"policies_{name}"] = int(chosen.sum())
    return found


def weight_bits_of(space: Space) -> list[int]:
    """Bits that some layer may have; 32 alone where int8 brings nothing."""
    column = space.column("weight_bits")
    return np.union1d(space.smallest[:, column], space.largest[:, column]).tolist()


def _bits(space: Space, table: np.ndarray) -> np.ndarray:
    """The more accurate of weight and activation bits of every layer, int64 [points]."""
    columns = [space.column("weight_bits"), space.column("activation_bits")]
    most: np.ndarray = table[:, columns].max(axis=1)
    return most


def profile_row(options: LatencyResults, spec: Spec) -> Figures:
    """What the target gains from fewer channels and bits; the page draws its curves."""
    with get_target(spec.target) as target, MeasuringProgress(f"calibrating {spec.target}") as bar:
        target.on_calibration = bar
        profile = target.profile
        found = describe(target, profile)
    return {name: value for name, value in found.items() if name not in ("machine", "target")}


def arm_row(options: LatencyResults, spec: Spec) -> Figures:
    """Instructions on the emulated core against latencies here, of the same random policies.

    Raises:
        UserError: the emulator is not prepared.
    """
    with get_target(ARM_TARGET) as target:
        version = target.runtime_version
        about = subject(ARM_NETWORK, target, (8, NOT_QUANTIZED))
    generator = np.random.default_rng(1)
    tables = [random_table(about.space, generator) for _ in range(ARM_POLICIES)]
    models = [_compressed(about, table) for table in tables]
    ratios = {
        name: measured_ratios(name, about.network, models) for name in (ARM_TARGET, "litert", "openvino")
    }
    counted = ratios.pop(ARM_TARGET)
    return {
        "of": ARM_NETWORK,
        "core": version,
        "policies": len(tables),
        "correlation": {name: correlations(counted, found) for name, found in ratios.items()},
        "instructions": counted,
        "latency": ratios,
        "int8_share": [float((_bits(about.space, table) < NOT_QUANTIZED).mean()) for table in tables],
    }


def _compressed(about: Subject, table: np.ndarray) -> fx.GraphModule:
    model = apply(about.space.policy(table), about.network, about.compressors)
    # Scales fitted to noise: neither counts nor latencies depend on them.
    noise = torch.randn(2, 3, SIDE, SIDE, generator=torch.Generator().manual_seed(0))
    calibrate(model, [noise])
    return model


def measured_ratios(name: str, network: Network, models: Sequence[fx.GraphModule]) -> list[float]:
    """Costs of networks on a target as fractions of the original's."""
    ratios: list[float] = []
    with get_target(name) as target, tempfile.TemporaryDirectory() as folder:
        reference = Path(folder) / f"original{target.file_suffix}"
        target.export(network.module, network.example, reference)
        for start in range(0, len(models), FILES_AT_ONCE):
            files = []
            for index, model in enumerate(models[start : start + FILES_AT_ONCE], start):
                files.append(Path(folder) / f"{index}{target.file_suffix}")
                target.export(model, network.example, files[-1])
            ratios += [timing.ratio for timing in target.measure([reference, *files])[1:]]
    return ratios


def correlations(counted: Sequence[float], latencies: Sequence[float]) -> dict[str, float]:
    """Pearson correlation of the logarithms, and Spearman's of the ranks."""
    return {
        "pearson_log": float(pearsonr(np.log(counted), np.log(latencies)).statistic),
        "spearman": float(spearmanr(counted, latencies).statistic),
    }

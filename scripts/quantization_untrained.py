"""Rows of the quantization results without training: errors of weights, stored activations, accuracy."""

from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from amc.data import load_data
from amc.quantization.kmeans import KmeansWeightQuantizer, huffman_bytes
from amc.quantization.protocol import NOT_QUANTIZED, WeightQuantizer
from amc.quantization.registry import WEIGHT_QUANTIZERS, weight_quantizer
from amc.quantization.saved_activations import ValueAwareStorage
from amc.quantization.uniform import dequantize_weight, fit_weight_scale, quantize_weight
from amc.quantization.value_aware import SHARE, quantized_weight
from scripts.quantization_rows import CHOICES, QuantizationResults, Spec
from scripts.quantization_searches import traced
from scripts.quantizer_results import Bench, QuantizerResults, quantized_layers

LAPLACE_VALUES = 100_000
STORED_BITS = (3, 4)
BATCH = 128


def error_row(options: QuantizationResults, spec: Spec) -> dict[str, Any]:
    """Signal to quantization noise of all weights together, in dB, by quantizer and bits."""
    layers = traced(options, spec.network).layers
    module = traced(options, spec.network).module
    weights = [module.get_parameter(f"{layer.name}.weight").detach() for layer in layers[1:-1]]
    return {
        "elements": sum(weight.numel() for weight in weights),
        "bits": list(CHOICES),
        "sqnr": {
            name: [errors(weights, kind, bits) for bits in CHOICES]
            for name, kind in WEIGHT_QUANTIZERS.items()
        },
        "stored": {
            name: [round(stored_bits(weights, kind, bits), 3) for bits in CHOICES]
            for name, kind in WEIGHT_QUANTIZERS.items()
        },
    }


def errors(weights: list[Tensor], kind: type[WeightQuantizer], bits: int) -> float:
    """10 log10 of the squared weights over the squared errors."""
    values = [kind.fitted(weight, bits).eval()(weight) for weight in weights]
    noise = sum(float((value - weight).square().sum()) for value, weight in zip(values, weights, strict=True))
    return round(sqnr(sum(float(weight.square().sum()) for weight in weights), noise), 2)


def sqnr(power: float, noise: float) -> float:
    """Signal to quantization noise in dB."""
    return float(10 * np.log10(power / noise))


def stored_bits(weights: list[Tensor], kind: type[WeightQuantizer], bits: int) -> float:
    """Stored bits for each weight, everything included."""
    sizes = [kind.bits_per_element(weight.numel(), len(weight), bits) * weight.numel() for weight in weights]
    return sum(sizes) / sum(weight.numel() for weight in weights)


def memory_row(options: QuantizationResults, spec: Spec) -> dict[str, Any]:
    """Bytes of activations that a training step keeps, as floats and value-aware, and the paper's anchor."""
    data = load_data("cifar10", options.data_root)
    images, labels = data.normalised("train")[:BATCH], data.train.labels[:BATCH]
    found: dict[str, Any] = {"images": BATCH, "share": SHARE, "laplace_3_bits": laplace()}
    for bits in STORED_BITS:
        model = traced(options, spec.network).copy().train()
        with ValueAwareStorage(bits) as storage:
            loss = F.cross_entropy(model(images), labels)
        loss.backward()
        found[f"{bits} bits"] = {
            "bytes": storage.bytes,
            "plain_bytes": storage.plain_bytes,
            "ratio": round(storage.plain_bytes / storage.bytes, 2),
        }
    return found


def laplace() -> dict[str, float]:
    """The dB of 3-bit codes on Laplace data: max-abs, the best clipping, and the largest values apart."""
    values = torch.from_numpy(np.random.default_rng(0).laplace(size=(1, LAPLACE_VALUES))).float()
    scale = fit_weight_scale(values, 3)
    made = {
        "max-abs": quantized_weight(values, 3, 0.0),
        "clipped": dequantize_weight(quantize_weight(values, scale, 3), scale),
        "value-aware": quantized_weight(values, 3),
    }
    power = float(values.square().sum())
    return {name: round(sqnr(power, float((v - values).square().sum())), 2) for name, v in made.items()}


def untrained_row(options: QuantizationResults, spec: Spec) -> dict[str, Any]:
    """Accuracy as it is, and re-normalized from N images; the first and the last layer stay in floats."""
    bench = Bench(
        QuantizerResults(
            options.weights(spec.network), spec.network, data_root=options.data_root, threads=options.threads
        )
    )
    kind, bits = weight_quantizer(spec.quantizer), int(spec.budget)
    found = {"original": bench.score(bench.network.copy()), **bench.row(kind, bits)}
    if kind is KmeansWeightQuantizer:
        pairs = list(quantized_layers(bench.compressed(kind, bits)))
        coded = sum(huffman_bytes(quantizer.quantize(weight)) for weight, quantizer in pairs)
        found["huffman bits"] = round(8 * coded / sum(weight.numel() for weight, _ in pairs), 2)
    return {**found, "activation bits": NOT_QUANTIZED}

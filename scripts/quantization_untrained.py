"""Rows of the quantization results without training: errors of weights, stored activations, accuracy."""

from collections.abc import Iterator
from dataclasses import replace
from functools import cached_property, lru_cache
from typing import Any

import numpy as np
import torch
from torch import Tensor, fx
from torch.nn import functional as F

from amc.compress import ActivationQuantization, WeightQuantization, apply
from amc.data import load_data
from amc.data.images import ImageData
from amc.inference import fold_norms, inference_form
from amc.knobs import BITS, BitsKnob
from amc.network import Network
from amc.policy import CompressionPolicy, LayerDecision
from amc.pruning.asymmetric import AsymmetricReconstruction
from amc.quantization.kmeans import KmeansWeightQuantizer, huffman_bytes
from amc.quantization.modules import recalibrate
from amc.quantization.protocol import NOT_QUANTIZED, WeightQuantizer
from amc.quantization.registry import WEIGHT_QUANTIZERS, weight_quantizer
from amc.quantization.saved_activations import ValueAwareStorage
from amc.quantization.saved_bytes import SavedBytes
from amc.quantization.uniform import dequantize_weight, fit_weight_scale, quantize_weight
from amc.quantization.value_aware import SHARE, quantized_weight
from amc.recovery.calibrate import calibrate
from amc.recovery.restate import restate_norms
from amc.slicing import clone_module
from envs.pruning import REFIT_BATCHES
from scripts.quantization_rows import ALONE, CHOICES, PAIRED, QuantizationResults, Spec
from scripts.quantization_searches import traced

LAPLACE_VALUES = 1_000_000
"""As many as the anchor has: the largest of them decides the range of max-abs codes."""
LAPLACE_DRAWS = 5
STORED = (("3 bits", 3, False), ("4 bits", 4, False), ("3 bits, ReLU-aware", 3, True))
"""How activations are stored: the bits of V-Quant, or of RV-Quant."""
BATCH = 128
FEW_IMAGES = (10, 30, 100, 300, 1000)
"""Unlabeled images that the batch-norm statistics are re-estimated from."""


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
    """Bytes that a training step keeps, as floats and value-aware, and the paper's anchor.

    Counted are the activations that may be stored in fewer bits, and all that autograd saves.
    """
    data = load_data("cifar10", options.data_root)
    images, labels = data.normalised("train")[:BATCH].clone(), data.train.labels[:BATCH]  # no view of all
    model = traced(options, spec.network).copy().train()
    owned = [*model.parameters(), *model.buffers()]
    with SavedBytes(owned) as plain:
        F.cross_entropy(model(images), labels).backward()
    found: dict[str, Any] = {
        "images": BATCH,
        "share": SHARE,
        "laplace_3_bits": laplace(),
        "all_plain_bytes": plain.bytes,
    }
    for name, bits, relu_aware in STORED:
        with ValueAwareStorage(bits, relu_aware=relu_aware, owned=owned) as storage:
            F.cross_entropy(model(images), labels).backward()
        found[name] = {
            "bytes": storage.bytes,
            "plain_bytes": storage.plain_bytes,
            "ratio": round(storage.plain_bytes / storage.bytes, 2),
            "all_bytes": storage.all_bytes,
            "all_ratio": round(plain.bytes / storage.all_bytes, 2),
        }
    return found


def laplace() -> dict[str, float]:
    """The dB of 3-bit codes on Laplace data: max-abs, the best clipping, and the largest values apart.

    Each is the mean over some draws.
    """
    draws = [laplace_draw(seed) for seed in range(LAPLACE_DRAWS)]
    return {name: round(sum(draw[name] for draw in draws) / len(draws), 2) for name in draws[0]}


def laplace_draw(seed: int) -> dict[str, float]:
    """The dB of one draw."""
    values = torch.from_numpy(np.random.default_rng(seed).laplace(size=(1, LAPLACE_VALUES))).float()
    scale = fit_weight_scale(values, 3)
    made = {
        "max-abs": quantized_weight(values, 3, 0.0),
        "clipped": dequantize_weight(quantize_weight(values, scale, 3), scale),
        "value-aware": quantized_weight(values, 3),
    }
    power = float(values.square().sum())
    return {name: sqnr(power, float((v - values).square().sum())) for name, v in made.items()}


def untrained_row(options: QuantizationResults, spec: Spec) -> dict[str, Any]:
    """Accuracy as it is, and re-normalized from N images; the first and the last layer stay in floats."""
    bench = bench_of(options, spec.network)
    kind, bits = weight_quantizer(spec.quantizer), int(spec.budget)
    found = {"original": bench.original, **bench.row(kind, bits)}
    if kind is KmeansWeightQuantizer:
        pairs = list(quantized_layers(bench.compressed(kind, bits)))
        coded = sum(huffman_bytes(quantizer.quantize(weight)) for weight, quantizer in pairs)
        found["huffman bits"] = round(8 * coded / sum(weight.numel() for weight, _ in pairs), 2)
    return {**found, "activation bits": NOT_QUANTIZED}


def paired_row(options: QuantizationResults, spec: Spec) -> dict[str, Any]:
    """Accuracy re-normalized from N images, alone as in the paper, and with the original beside it."""
    bench = bench_of(options, spec.network)
    kind, bits = weight_quantizer(spec.quantizer), int(spec.budget)
    return {
        "original": bench.original,
        ALONE: bench.accuracies(bench.compressed(kind, bits)),
        PAIRED: bench.paired_accuracies(kind, bits),
    }


def activations_row(options: QuantizationResults, spec: Spec) -> dict[str, Any]:
    """Accuracy with quantized inputs of all layers but the first and the last; weights stay in floats."""
    bench = bench_of(options, spec.network)
    found = bench.activations_row(spec.quantizer, int(spec.budget))
    return {"original": bench.original, **found, "weight bits": NOT_QUANTIZED}


class Bench:
    """A network, its unlabeled images and the test images that it is scored on.

    Args:
        network: traced, with its weights.
        data: images and labels.
    """

    def __init__(self, network: Network, data: ImageData):
        self.network = network
        self.pool = torch.cat(data.calibration(max(FEW_IMAGES), augment=True))
        self.plain = torch.cat(data.calibration(max(FEW_IMAGES)))
        self.images, self.labels = data.normalised("test"), data.test.labels

    @cached_property
    def original(self) -> float:
        """Accuracy in percent of the network as it is."""
        return self.score(inference_form(self.network.copy()))

    def row(self, kind: type[WeightQuantizer], bits: int) -> dict[str, Any]:
        """Bits that are stored, relative error of the weights, and the accuracies in percent."""
        model = self.compressed(kind, bits)
        return {**weight_figures(model), **self.accuracies(model)}

    def activations_row(self, quantizer: str, bits: int) -> dict[str, float]:
        """The accuracies in percent; ranges are fitted on the first of the images, 200 at most."""
        knob = BitsKnob("activation_bits", self.network, BITS)
        policy = middle_policy(self.network, bits, "activation_bits")
        model = apply(policy, self.network, [ActivationQuantization(knob, quantizer)]).eval()
        with torch.no_grad():
            model(self.pool[:200])
        return self.accuracies(model)

    def accuracies(self, model: fx.GraphModule) -> dict[str, float]:
        """The accuracies in percent, as it is and re-normalized from so many images.

        Computed in the form that searches score, in which weights are quantized once and not for every batch.
        """
        fast = inference_form(model)
        found = {"raw": self.score(fast)}
        for count in FEW_IMAGES:
            recalibrate(fast)
            calibrate(fast, self.pool[:count].split(200))
            found[f"{count} images"] = self.score(fast)
        return found

    def paired_accuracies(self, kind: type[WeightQuantizer], bits: int) -> dict[str, float]:
        """The accuracies in percent with the original's norms in terms of the very same, plain images."""
        found = {}
        for count in FEW_IMAGES:
            batches = self.plain[:count].split(200)
            stated = replace(self.network, module=self.network.copy())
            restate_norms(stated.module, batches)
            fast = inference_form(self.compressed(kind, bits, stated))
            calibrate(fast, batches)
            found[f"{count} images"] = self.score(fast)
        return found

    @cached_property
    def refits(self) -> AsymmetricReconstruction:
        """What lets layers make up for those in front of them, from as many images as in a search."""
        return AsymmetricReconstruction.of(self.network, self.pool.split(200)[:REFIT_BATCHES], every=True)

    def compressed(
        self, kind: type[WeightQuantizer], bits: int, network: Network | None = None
    ) -> fx.GraphModule:
        """The network with the weights of every layer but the first and the last quantized."""
        network = network or self.network
        knob = BitsKnob("weight_bits", network, BITS)
        policy = middle_policy(network, bits)
        return apply(policy, network, [WeightQuantization(knob, kind.name)]).eval()

    @torch.no_grad()
    def score(self, model: fx.GraphModule) -> float:
        """Accuracy in percent, two digits, of a network in inference form."""
        folded = clone_module(model)
        fold_norms(folded)
        said = torch.cat([folded(batch).argmax(1) for batch in self.images.split(250)])
        return round(100 * float(said.eq(self.labels).float().mean()), 2)


@lru_cache(1)
def bench_of(options: QuantizationResults, network: str) -> Bench:
    """The bench of a network on CIFAR-10, kept for the rows that follow."""
    return Bench(traced(options, network), load_data("cifar10", options.data_root))


def middle_policy(network: Network, bits: int, knob: str = "weight_bits") -> CompressionPolicy:
    """Weights, or inputs, of all layers but the first and the last at the same bits; nothing is pruned."""
    ends = {network.layers[0].name, network.layers[-1].name}
    decisions = (
        LayerDecision(layer.name, {} if layer.name in ends else {knob: bits}) for layer in network.layers
    )
    return CompressionPolicy(network.fingerprint, tuple(decisions))


def weight_figures(model: fx.GraphModule) -> dict[str, float]:
    """Stored bits for each quantized weight, and the squared error relative to the weights' squares."""
    pairs = list(quantized_layers(model))
    elements = sum(weight.numel() for weight, _ in pairs)
    stored = sum(quantizer.quantize(weight).bytes for weight, quantizer in pairs)
    error = sum(float((quantizer(weight) - weight).square().sum()) for weight, quantizer in pairs)
    power = sum(float(weight.square().sum()) for weight, _ in pairs)
    return {"stored bits": round(8 * stored / elements, 2), "weight error": round(error / power, 4)}


def quantized_layers(model: fx.GraphModule) -> Iterator[tuple[Tensor, WeightQuantizer]]:
    """Weights with their quantizers."""
    for layer in model.modules():
        quantizer = getattr(layer, "quantizer", None)
        if isinstance(quantizer, WeightQuantizer) and isinstance(layer.weight, Tensor):
            yield layer.weight.detach(), quantizer

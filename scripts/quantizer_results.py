"""Compare weight quantizers without any training: accuracy as they are, and after re-normalization."""

import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

if not __package__:  # started as a file: Python then looks in scripts/ and not in the folder above it
    sys.path[0] = str(Path(__file__).resolve().parents[1])

import torch
from rich.table import Table
from torch import Tensor, fx

from amc.compress import ActivationQuantization, WeightQuantization, apply
from amc.data import load_data
from amc.errors import UserError
from amc.files import write_json
from amc.knobs import BITS, BitsKnob
from amc.models import build_model, load_weights
from amc.network import Network, trace
from amc.policy import CompressionPolicy, LayerDecision
from amc.quantization.protocol import NOT_QUANTIZED, WeightQuantizer
from amc.quantization.registry import WEIGHT_QUANTIZERS, activation_quantizer, weight_quantizer
from amc.recovery.calibrate import calibrate
from amc.tasks import ClassificationTask
from scripts.cli import run
from scripts.progress import print_table


@dataclass(frozen=True)
class QuantizerResults:
    """Options of the comparison."""

    weights: Path
    """Trained weights, .th, .pt or .safetensors."""
    model: str = "resnet20"
    """Network that the weights are of."""
    data: str = "cifar10"
    """Images: digits, cifar10, a folder, or package.module:factory."""
    data_root: Path = Path("data")
    """Folder that holds cifar-10-batches-py."""
    quantizers: tuple[str, ...] = tuple(WEIGHT_QUANTIZERS)
    """Weight quantizers to compare."""
    activation_quantizer: str = "uniform"
    """How activations are quantized, where they are."""
    bits: tuple[int, ...] = (4, 3, 2)
    """Bits of the weights of all layers but the first and the last."""
    activation_bits: int = NOT_QUANTIZED
    """Bits of what these layers read; 32 leaves it in floats."""
    images: tuple[int, ...] = (10, 30, 100, 300, 1000)
    """Unlabeled images to re-estimate the batch-norm statistics from."""
    test_images: int | None = None
    """First images of the test split to score on; all by default."""
    threads: int = 1
    """CPU threads."""
    out: Path | None = None
    """JSON file for the rows."""


def main(options: QuantizerResults) -> None:
    """Compare weight quantizers without any training: accuracy as they are, and after re-normalization."""
    kinds = [weight_quantizer(name) for name in options.quantizers]
    activation_quantizer(options.activation_quantizer)
    unknown = sorted({*options.bits, options.activation_bits} - set(BITS))
    if unknown or min(options.images, default=1) < 1:
        raise UserError("Bits must be 2 to 8, or 32 for not quantized, and images at least 1.")
    torch.set_num_threads(options.threads)
    bench = Bench(options)
    rows = [{"quantizer": "none", "bits": NOT_QUANTIZED, "raw": bench.score(bench.network.copy())}]
    for bits in options.bits:
        rows += [{"quantizer": kind.name, "bits": bits, **bench.row(kind, bits)} for kind in kinds]
    print_table(as_table(rows))
    if options.out is not None:
        write_json(options.out, {"activation bits": options.activation_bits, "rows": rows})


class Bench:
    """A network, its unlabeled images and the test images that it is scored on."""

    def __init__(self, options: QuantizerResults):
        data = load_data(options.data, options.data_root)
        model = build_model(options.model, data.classes, data.shape[0])
        load_weights(model, options.weights)
        task = ClassificationTask(data)
        self.options = options
        self.network = trace(model, task.example_input())
        self.pool = torch.cat(task.calibration(max(options.images, default=1)))
        self.images = data.normalised("test")[: options.test_images]
        self.labels = data.test.labels[: options.test_images]

    def row(self, kind: type[WeightQuantizer], bits: int) -> dict[str, Any]:
        """Bits that are stored, relative error of the weights, and the accuracies in percent."""
        model = self.compressed(kind, bits)
        found = {**weight_figures(model), "raw": self.score(model)}
        for count in self.options.images:
            calibrate(model, self.pool[:count].split(200))
            found[f"{count} images"] = self.score(model)
        return found

    def compressed(self, kind: type[WeightQuantizer], bits: int) -> fx.GraphModule:
        """The network with every layer but the first and the last quantized, activations calibrated."""
        policy = middle_policy(self.network, bits, self.options.activation_bits)
        weights, inputs = (BitsKnob(f"{what}_bits", self.network, BITS) for what in ("weight", "activation"))
        activations = ActivationQuantization(inputs, self.options.activation_quantizer)
        model = apply(policy, self.network, [WeightQuantization(weights, kind.name), activations]).eval()
        if self.options.activation_bits != NOT_QUANTIZED:
            with torch.no_grad():
                model(self.pool[:200])
        return model

    @torch.no_grad()
    def score(self, model: fx.GraphModule) -> float:
        """Accuracy in percent, two digits."""
        said = torch.cat([model(batch).argmax(1) for batch in self.images.split(250)])
        return round(100 * float(said.eq(self.labels).float().mean()), 2)


def middle_policy(network: Network, weight_bits: int, activation_bits: int) -> CompressionPolicy:
    """All layers but the first and the last at the same bits; no channel is pruned."""
    ends = {network.layers[0].name, network.layers[-1].name}
    values = {"weight_bits": weight_bits, "activation_bits": activation_bits}
    decisions = (LayerDecision(layer.name, {} if layer.name in ends else values) for layer in network.layers)
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


def as_table(rows: list[dict[str, Any]]) -> Table:
    """The rows; what one lacks is left empty."""
    columns = list(dict.fromkeys(name for row in [*rows[1:], rows[0]] for name in row))
    table = Table(*columns)
    for row in rows:
        table.add_row(*(str(row.get(name, "")) for name in columns))
    return table


if __name__ == "__main__":
    run(main)

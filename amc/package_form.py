"""The form in which a package holds a network: batch norms folded, weights what their codes stand for.

A batch norm that alone reads a layer becomes a bias and a factor a channel, y = f x + b. Where weights are
floats, and where their quantizer absorbs a factor a channel, f disappears in the layer; a codebook or a step
that a whole layer shares cannot take it, and there the norm stays, with mean 0 and variance 1, as f and b.

Folding adds up in another order, so logits differ by float noise from those of the network before; what is
saved and what is loaded is this form, bit for bit.
"""

import torch
from torch import Tensor, fx, nn

from amc.decomposition.chain import Chain
from amc.decomposition.operator import SelfPacking
from amc.export.folding import Affine, batch_norm_affine, float64, fold_bias, per_row
from amc.groups import NORMS
from amc.network import Layer, Network
from amc.quantization.modules import QuantizedConv2d, QuantizedLinear
from amc.slicing import clone_module

PLAIN, QUANTIZED = (nn.Conv2d, nn.Linear), (QuantizedConv2d, QuantizedLinear)
SETTLING = 10
"""Times that a weight is quantized again; two have always been enough."""


def packed_form(module: fx.GraphModule, network: Network) -> fx.GraphModule:
    """A copy on the CPU in evaluation mode, in the form of a package.

    Args:
        module: a compressed network; not changed.
        network: the original that it was made of.
    """
    packed = clone_module(module).cpu().eval()
    names = {name for name, _ in packed.named_modules()}
    for layer in network.layers:
        if layer.name in names and layer.norm in names:
            _fold(packed, layer)
    for name, part in list(packed.named_modules()):
        if isinstance(part, NORMS) and part.running_mean is not None:
            packed.set_submodule(name, _settled(part, batch_norm_affine(part, part.num_features)))
        elif isinstance(part, QUANTIZED):
            settle_weight(part)
    return packed


def _fold(model: nn.Module, layer: Layer) -> None:
    """Put a batch norm into the layer in front of it, as far as that goes, in place."""
    producer, norm = model.get_submodule(layer.name), model.get_submodule(str(layer.norm))
    producer = producer[-1] if isinstance(producer, Chain) else producer
    known = isinstance(producer, SelfPacking) or type(producer) in (*PLAIN, *QUANTIZED)
    if not known or not isinstance(norm, NORMS) or norm.running_mean is None:
        return
    assert isinstance(producer, nn.Conv2d | nn.Linear)
    affine = batch_norm_affine(norm, len(producer.weight))
    shift = fold_bias(producer.bias, affine)
    if isinstance(producer, SelfPacking) or (
        isinstance(producer, QUANTIZED) and not producer.quantizer.absorbs
    ):
        producer.bias = None
        model.set_submodule(str(layer.norm), _settled(norm, Affine(affine.factor, shift)))
        return
    producer.weight.data = _times(producer, affine)
    producer.bias = nn.Parameter(torch.from_numpy(shift).float())
    model.set_submodule(str(layer.norm), nn.Identity())


def _times(layer: nn.Conv2d | nn.Linear, affine: Affine) -> Tensor:
    """The weight [out, ...] times the factors of a norm; a quantizer absorbs them."""
    if isinstance(layer, QUANTIZED):
        return layer.quantizer.absorb(layer.weight.detach(), torch.from_numpy(affine.factor).float())
    weight = float64(layer.weight)
    return torch.from_numpy(weight * per_row(affine.factor, weight)).float()


def _settled(norm: nn.BatchNorm1d | nn.BatchNorm2d, affine: Affine) -> nn.Module:
    """A batch norm that computes exactly factor * x + shift."""
    settled = type(norm)(len(affine.factor), eps=0.0)
    settled.weight.data = torch.from_numpy(affine.factor).float()
    settled.bias.data = torch.from_numpy(affine.shift).float()
    return settled.eval()


def settle_weight(layer: QuantizedConv2d | QuantizedLinear) -> None:
    """Replace a weight by its quantized values, so that quantizing it again changes nothing, in place.

    Raises:
        RuntimeError: it never settles.
    """
    for _ in range(SETTLING):
        weight = layer.weight.detach()
        values = layer.quantizer.dequantize(layer.quantizer.quantize(weight))
        if torch.equal(values, weight):
            return
        layer.weight.data = values
    raise RuntimeError(f"a {layer.quantizer.name} weight changes whenever it is quantized")

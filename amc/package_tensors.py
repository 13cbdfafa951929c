"""The numbers of a package as flat tensors: packed codes, and everything else by its type.

Of a quantized layer come the codes, each layer from a new byte, and what it takes to read them (scales,
bases, a codebook, large values, a step); then the parameters of all modules, in the order of the module tree.
"""

from collections.abc import Iterator, Mapping
from pathlib import Path

import torch
from torch import Tensor, nn

from amc.decomposition.operator import SelfPacking
from amc.errors import UserError
from amc.graph import ChannelPad, FixedStage
from amc.groups import NORMS
from amc.own_tensors import own_tensors
from amc.package_form import QUANTIZED
from amc.quantization.bit_packing import pack, unpack
from amc.quantization.modules import QuantizedConv2d, QuantizedLinear
from amc.quantization.protocol import Coded, Quantizer

CODES = "codes"


def flat_tensors(packed: nn.Module) -> dict[str, Tensor]:
    """All numbers of a network in packed form.

    Returns:
        "codes" (uint8 [bytes]) and names of types ("float32", "float16"), each one flat tensor.
    """
    parts: dict[str, list[Tensor]] = {}
    for layer in _coded_layers(packed):
        coded = layer.quantizer.quantize(layer.weight)
        parts.setdefault(CODES, []).append(pack(coded.codes, coded.bits))
        for part in coded.parts.values():
            parts.setdefault(_type_name(part), []).append(part.reshape(-1))
    for module in _self_packing(packed):
        for name, tensor in module.packed().items():
            parts.setdefault(name, []).append(tensor)
    for tensor in _plain_tensors(packed):
        parts.setdefault(_type_name(tensor), []).append(tensor.reshape(-1))
    return {name: torch.cat(tensors) for name, tensors in parts.items()}


def fill(packed: nn.Module, tensors: Mapping[str, Tensor], path: Path) -> None:
    """Copy flat tensors into a network in packed form.

    Args:
        packed: as its policy made it; its numbers do not matter.
        tensors: what `flat_tensors` gave.
        path: where they come from, for errors.

    Raises:
        UserError: they do not fit the network, or are not finite.
    """
    _check(flat_tensors(packed), tensors, path)
    streams = _Streams(tensors)
    for layer in _coded_layers(packed):
        try:
            _fill_layer(layer, streams)
        except (IndexError, RuntimeError) as error:
            raise UserError(f"{path} is damaged: it holds codes that mean nothing.") from error
    for module in _self_packing(packed):
        sizes = {name: len(tensor) for name, tensor in module.packed().items()}
        try:
            module.unpack({name: streams.take(name, size) for name, size in sizes.items()})
        except ValueError as error:
            raise UserError(f"{path} is damaged: it holds codes that mean nothing.") from error
    for tensor in _plain_tensors(packed):
        tensor.copy_(streams.take(_type_name(tensor), tensor.numel()).reshape(tensor.shape))


class _Streams:
    """Flat tensors that are read from front to back."""

    def __init__(self, tensors: Mapping[str, Tensor]):
        self._tensors = tensors
        self._read = dict.fromkeys(tensors, 0)

    def take(self, name: str, count: int) -> Tensor:
        """The next numbers of a tensor, [count]."""
        start = self._read[name]
        self._read[name] += count
        return self._tensors[name][start : start + count]


def _fill_layer(layer: QuantizedConv2d | QuantizedLinear, streams: _Streams) -> None:
    quantizer, weight = layer.quantizer, layer.weight
    like = quantizer.quantize(weight)
    count = weight.numel()
    packed = streams.take(CODES, -(-count * like.bits // 8))
    parts = {
        name: streams.take(_type_name(part), part.numel()).reshape(part.shape)
        for name, part in like.parts.items()
    }
    for name in parts.keys() & quantizer._buffers.keys():
        quantizer.get_buffer(name).copy_(parts[name])
    values = quantizer.dequantize(
        Coded(unpack(packed, like.bits, count).reshape(weight.shape), like.bits, parts)
    )
    weight.data = values
    if not torch.equal(quantizer.dequantize(quantizer.quantize(values)), values):
        raise RuntimeError("codes that no weight has")


def _check(wanted: Mapping[str, Tensor], tensors: Mapping[str, Tensor], path: Path) -> None:
    for name in sorted({*wanted, *tensors}):
        flat, like = tensors.get(name), wanted.get(name)
        if flat is None or like is None or flat.dtype != like.dtype or flat.dim() != 1:
            raise UserError(
                f"{path} does not fit its policy: its numbers of type {name} are missing or foreign."
            )
        if len(flat) != len(like):
            raise UserError(f"{path} holds {len(flat)} {name} numbers where its policy needs {len(like)}.")
        if not bool(torch.isfinite(flat).all()):
            raise UserError(f"{path} is damaged: it holds NaN or infinite numbers.")


def _coded_layers(packed: nn.Module) -> Iterator[QuantizedConv2d | QuantizedLinear]:
    return (part for part in packed.modules() if isinstance(part, QUANTIZED))


def _self_packing(packed: nn.Module) -> Iterator[SelfPacking]:
    return (part for part in packed.modules() if isinstance(part, SelfPacking))


def _plain_tensors(packed: nn.Module) -> Iterator[Tensor]:
    """What is stored as it is; norms are settled, so that their statistics are 0 and 1."""
    inside = {part for whole in _self_packing(packed) for part in whole.children()}
    for module in packed.modules():
        if module in inside:
            continue
        if isinstance(module, SelfPacking):
            bias = module._parameters.get("bias")
            yield from () if bias is None else (bias.detach(),)
        elif isinstance(module, QUANTIZED):
            yield from () if module.bias is None else (module.bias.detach(),)
        elif isinstance(module, NORMS):
            yield from (parameter.detach() for parameter in module.parameters())
        elif not isinstance(module, ChannelPad | FixedStage | Quantizer):
            yield from own_tensors(module)


def _type_name(tensor: Tensor) -> str:
    return str(tensor.dtype).removeprefix("torch.")

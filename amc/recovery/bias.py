"""Bias correction: the stand-in for re-normalization in networks without batch norm."""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from amc.groups import COMPRESSIBLE


def output_means(model: nn.Module, batches: Sequence[Tensor]) -> dict[str, Tensor]:
    """Mean output of every channel of every layer over batches; layer path to [out].

    A layer that is called more than once adds up its calls.
    """
    sums: dict[str, Tensor] = {}
    handles = []
    for name, module in model.named_modules():
        if isinstance(module, COMPRESSIBLE):

            def add(module: nn.Module, _: object, output: Tensor, name: str = name) -> None:
                rows = output if isinstance(module, nn.Linear) else output.movedim(1, -1)
                mean = rows.flatten(0, -2).mean(dim=0)
                sums[name] = sums.get(name, torch.zeros_like(mean)) + mean / len(batches)

            handles.append(module.register_forward_hook(add))
    try:
        with torch.no_grad():
            for batch in batches:
                model(batch)
    finally:
        for handle in handles:
            handle.remove()
    return sums


def correct_biases(model: nn.Module, wanted: Mapping[str, Tensor], batches: Sequence[Tensor]) -> None:
    """Shift each layer's bias so that its mean output is what it was in the original, layer by layer.

    Layers without a bias are left alone.

    Args:
        model: a compressed network whose activation ranges are fitted.
        wanted: layer path to [kept channels], `output_means` of the original at the kept channels.
        batches: unlabeled images.
    """
    for name in wanted:
        module = model.get_submodule(name)
        if isinstance(module, COMPRESSIBLE) and module.bias is not None:
            current = output_means(model, batches)[name]
            module.bias.data += wanted[name] - current

"""The numbers of a package: entries of a state dict as one flat tensor a type, kept channels as bits."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from amc.errors import UserError
from amc.graph import ChannelPad
from amc.network import Network


def _stored(module: nn.Module) -> dict[str, Tensor]:
    """The entries of the state dict that a package holds."""
    pads = [f"{name}.weight" for name, part in module.named_modules() if isinstance(part, ChannelPad)]
    return {
        name: tensor
        for name, tensor in module.state_dict().items()
        if name not in pads and not name.endswith("num_batches_tracked")
    }


def flat_parts(module: nn.Module) -> dict[str, list[Tensor]]:
    """The entries that a package holds by name of their type; on the CPU they share the module's memory."""
    parts: dict[str, list[Tensor]] = {}
    for tensor in _stored(module).values():
        name = str(tensor.dtype).removeprefix("torch.")
        parts.setdefault(name, []).append(tensor.detach().cpu())
    return parts


def fill(module: nn.Module, tensors: Mapping[str, Tensor], path: Path) -> None:
    """Copy flat tensors into a module on the CPU.

    Args:
        module: as its policy made it.
        tensors: type name to all numbers of that type, [n].
        path: where they come from, for errors.

    Raises:
        UserError: they do not fit the module, or are not finite.
    """
    parts = flat_parts(module)
    for name in sorted({*parts, *tensors}):
        flat, sizes = tensors.get(name), [tensor.numel() for tensor in parts.get(name, [])]
        if flat is None or name not in parts or flat.dtype != parts[name][0].dtype or flat.dim() != 1:
            raise UserError(
                f"{path} does not fit its policy: its numbers of type {name} are missing or foreign."
            )
        if len(flat) != sum(sizes):
            raise UserError(f"{path} holds {len(flat)} {name} numbers where its policy needs {sum(sizes)}.")
        if not bool(torch.isfinite(flat).all()):
            raise UserError(f"{path} is damaged: it holds NaN or infinite numbers.")
        for target, values in zip(parts[name], flat.split(sizes), strict=True):
            target.copy_(values.reshape(target.shape))


def pack_kept(kept: Mapping[str, Tensor], network: Network) -> Tensor:
    """One bit a channel of these groups, in their order; uint8 [bytes]."""
    channels = {group.name: group.channels for group in network.groups}
    bits = [np.isin(np.arange(channels[name]), indices.cpu().numpy()) for name, indices in kept.items()]
    return torch.from_numpy(np.packbits(np.concatenate([np.zeros(0, bool), *bits])))


def unpack_kept(mask: Tensor | None, names: Sequence[str], network: Network, path: Path) -> dict[str, Tensor]:
    """Group name to the sorted indices of its kept channels, int64, from the bits of `pack_kept`.

    Raises:
        UserError: the bits or the groups do not fit the network; `path` is where they come from.
    """
    channels = {group.name: group.channels for group in network.groups}
    missing = [name for name in names if name not in channels]
    if missing:
        raise UserError(f"{path} prunes {missing[0]}, which is no channel group of this network.")
    sizes = [channels[name] for name in names]
    if mask is None or mask.dtype != torch.uint8 or mask.shape != (-(-sum(sizes) // 8),):
        raise UserError(f"{path} is damaged: its list of kept channels does not fit the network.")
    bits = torch.from_numpy(np.unpackbits(mask.numpy(), count=sum(sizes)))
    return {name: part.nonzero().squeeze(1) for name, part in zip(names, bits.split(sizes), strict=True)}

"""What a package says of its numbers, as short texts: decisions, kept channels, activation ranges.

All of it lies in the header of the file, whose length is reported apart from the numbers. Each text is
compressed and written in base 85; names that follow from the original network are left out.
"""

import base64
import json
import zlib
from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from amc.errors import UserError
from amc.network import Network
from amc.policy import FORMAT, VERSION, CompressionPolicy
from amc.quantization.protocol import PointQuantizer


def pack_decisions(policy: CompressionPolicy) -> str:
    """Operators and values of all layers, without their names."""
    rows = [[decision.operator, dict(decision.values)] for decision in policy.decisions]
    return _text(json.dumps(rows, separators=(",", ":")).encode())


def unpack_decisions(text: str | None, network: Network, path: Path) -> CompressionPolicy:
    """The policy that `pack_decisions` was given; `path` is where the text comes from.

    Raises:
        UserError: it is damaged.
    """
    try:
        rows = json.loads(_bytes(text, "decisions", path))
        decisions = [
            {"point": layer.name, "operator": operator, "values": values}
            for layer, (operator, values) in zip(network.layers, rows, strict=True)
        ]
    except (ValueError, TypeError) as error:
        raise UserError(f"{path} is damaged: its decisions do not fit the network.") from error
    said = {"format": FORMAT, "version": VERSION, "network": network.fingerprint, "decisions": decisions}
    return CompressionPolicy.from_json(said, f"the policy in {path}")


def pack_kept(kept: Mapping[str, Tensor], network: Network) -> str:
    """One bit a channel of every group in the network's order, 1 where it is kept.

    Args:
        kept: group name to the indices of its kept channels; absent groups are whole.
        network: the original.
    """
    masks = [np.ones(0, bool)]
    for group in network.groups:
        whole = np.arange(group.channels)
        masks.append(np.isin(whole, kept[group.name].cpu().numpy()) if group.name in kept else whole >= 0)
    return _text(np.packbits(np.concatenate(masks)).tobytes())


def unpack_kept(text: str | None, network: Network, path: Path) -> dict[str, Tensor]:
    """Group name to the sorted indices of its kept channels, int64, from the bits of `pack_kept`.

    Raises:
        UserError: they do not fit the network; `path` is where they come from.
    """
    sizes = [group.channels for group in network.groups]
    packed = _bytes(text, "kept channels", path)
    if len(packed) != -(-sum(sizes) // 8):
        raise UserError(f"{path} is damaged: its kept channels do not fit the network.")
    bits = torch.from_numpy(np.unpackbits(np.frombuffer(packed, np.uint8), count=sum(sizes)))
    return {
        group.name: part.nonzero().squeeze(1)
        for group, part in zip(network.groups, bits.split(sizes), strict=True)
    }


def pack_ranges(module: nn.Module, network: Network) -> str:
    """State of all quantization points in use: float32, and whole numbers of one byte behind them.

    Of the floats all lowest bytes come first and all highest last, which compresses better.
    """
    states = list(_point_states(module, network))
    floats = [state.reshape(-1).numpy() for state in states if state.is_floating_point()]
    whole = [int(state) for state in states if not state.is_floating_point()]
    numbers = np.concatenate([np.zeros(0, np.float32), *floats])
    return _text(numbers.view(np.uint8).reshape(-1, 4).T.tobytes() + bytes(whole))


def unpack_ranges(text: str | None, module: nn.Module, network: Network, path: Path) -> None:
    """Give the quantization points of a network the state that `pack_ranges` has written, in place.

    Raises:
        UserError: it does not fit the network, or is not finite; `path` is where it comes from.
    """
    states, said = list(_point_states(module, network)), _bytes(text, "ranges", path)
    floats = [state for state in states if state.is_floating_point()]
    whole = [state for state in states if not state.is_floating_point()]
    count = sum(state.numel() for state in floats)
    if len(said) != 4 * count + len(whole):
        raise UserError(f"{path} is damaged: its ranges of activations do not fit its policy.")
    planes = np.frombuffer(said, np.uint8, 4 * count).reshape(4, -1)
    numbers = torch.from_numpy(planes.T.copy().view(np.float32).reshape(-1))
    if not bool(torch.isfinite(numbers).all()):
        raise UserError(f"{path} is damaged: it holds NaN or infinite numbers.")
    for state, values in zip(floats, numbers.split([state.numel() for state in floats]), strict=True):
        state.copy_(values.reshape(state.shape))
    for state, value in zip(whole, said[4 * count :], strict=True):
        state.fill_(value)


def _point_states(module: nn.Module, network: Network) -> Iterator[Tensor]:
    """State of the quantization points that are in use; 64-bit counters are for training only.

    Those of the network come first, then those inside of what replaces layers.
    """
    parts = dict(module.named_modules())
    for name in dict.fromkeys((*(point.name for point in network.points), *parts)):
        part = parts.get(name)
        if isinstance(part, PointQuantizer) and part.enabled:
            yield from (buffer for buffer in part.buffers() if buffer.dtype != torch.int64)


def _text(data: bytes) -> str:
    return base64.b85encode(zlib.compress(data, 9)).decode()


def _bytes(text: str | None, what: str, path: Path) -> bytes:
    """What `_text` was given.

    Raises:
        UserError: the text is missing or damaged.
    """
    try:
        if text is None:
            raise ValueError("it is missing")
        return zlib.decompress(base64.b85decode(text))
    except (ValueError, zlib.error) as error:
        raise UserError(f"{path} is damaged: its {what} cannot be read ({error}).") from error

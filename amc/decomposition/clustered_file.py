"""The packed file of a network with clustered kernels, as safetensors.

| tensor | holds |
|---|---|
| `centroids.<i>` | float32 [K, k, k] of the i-th codebook, in the order in which layers meet them |
| `indices.<i>` | uint8: the indices of all of its layers in order, log2 (K poses) bits each, no gaps |
| `scales.<i>` | float16 [N] of all of its layers |
| `float32`, ... | all other numbers of that type, in the order of the state dict |

Counters of batch norms, which nothing but training asks for, are left out. So are the fixed weights of
channel pads. Whatever else a model needs to be rebuilt (its architecture) is not in the file.
"""

from collections.abc import Iterator
from pathlib import Path

import safetensors.torch
import torch
from torch import Tensor, nn

from amc.decomposition.clustered_conv import ClusteredConv2d, Codebook, clustered_layers, storage_bytes
from amc.decomposition.index_packing import pack_indices, unpack_indices
from amc.errors import UserError
from amc.graph import ChannelPad
from amc.models.weights import write_tensors

FORMAT, VERSION = "amc-clustered", "1"


def file_bytes(model: nn.Module) -> int:
    """Bytes of the numbers of a packed file by formula; its header comes on top."""
    total = sum(tensor.numel() * tensor.element_size() for tensor in _others(model).values())
    for codebook, layers in _by_codebook(model):
        centroids = codebook.centroids
        kernels = sum(layer.index.numel() for layer in layers)
        total += storage_bytes(kernels, centroids[0].numel(), len(centroids), codebook.poses)
    return total


def save_clustered(model: nn.Module, path: Path) -> int:
    """Write the packed file.

    Returns:
        Its size in bytes, header included.

    Raises:
        UserError: nothing is clustered, a scale is too large for fp16, or the file cannot be written.
    """
    tensors: dict[str, Tensor] = {}
    for number, (codebook, layers) in enumerate(_by_codebook(model)):
        index = torch.cat([layer.index.reshape(-1) for layer in layers]).cpu()
        scale = torch.cat([layer.scale.detach().reshape(-1) for layer in layers]).cpu().half()
        if not bool(scale.isfinite().all()):
            raise UserError("A scale of the clustered kernels does not fit into 16 bits.")
        tensors[f"centroids.{number}"] = codebook.centroids.detach().cpu().clone()
        tensors[f"indices.{number}"] = pack_indices(index, codebook.index_bits)
        tensors[f"scales.{number}"] = scale
    if not tensors:
        raise UserError("No layer has clustered kernels, so there is nothing to pack.")
    write_tensors(tensors | _flat(model), path, {"amc": FORMAT, "version": VERSION})
    return path.stat().st_size


def load_clustered(model: nn.Module, path: Path) -> None:
    """Fill a model whose layers are clustered alike; its numbers do not matter before.

    Raises:
        UserError: the file is missing, damaged, of another format, or does not fit the model.
    """
    tensors, expected = _read(path), {f"centroids.{i}" for i, _ in enumerate(_by_codebook(model))}
    parts: dict[str, list[Tensor]] = {}
    for tensor in _others(model).values():
        parts.setdefault(_type_name(tensor), []).append(tensor)
    expected |= {name.replace("centroids", kind) for name in expected for kind in ("indices", "scales")}
    if {*tensors} != expected | {*parts}:
        raise UserError(f"{path} does not fit this model: it holds {', '.join(sorted(tensors))}.")
    for number, (codebook, layers) in enumerate(_by_codebook(model)):
        _fill_codebook(tensors, number, codebook, layers, path)
    for name, targets in parts.items():
        _fill(targets, tensors[name], path)


def _by_codebook(model: nn.Module) -> Iterator[tuple[Codebook, list[ClusteredConv2d]]]:
    layers: dict[int, list[ClusteredConv2d]] = {}
    for layer in clustered_layers(model).values():
        layers.setdefault(id(layer.codebook), []).append(layer)
    yield from ((sharing[0].codebook, sharing) for sharing in layers.values())


def _others(model: nn.Module) -> dict[str, Tensor]:
    """Entries of the state dict that no codebook accounts for."""
    left_out = {f"{name}.{part}" for name in clustered_layers(model) for part in ("scale", "index")}
    left_out |= {f"{name}.codebook.centroids" for name in clustered_layers(model)}
    left_out |= {f"{name}.weight" for name, part in model.named_modules() if isinstance(part, ChannelPad)}
    return {
        name: tensor
        for name, tensor in model.state_dict().items()
        if name not in left_out and not name.endswith("num_batches_tracked")
    }


def _type_name(tensor: Tensor) -> str:
    return str(tensor.dtype).removeprefix("torch.")


def _flat(model: nn.Module) -> dict[str, Tensor]:
    parts: dict[str, list[Tensor]] = {}
    for tensor in _others(model).values():
        parts.setdefault(_type_name(tensor), []).append(tensor.detach().cpu().reshape(-1))
    return {name: torch.cat(tensors) for name, tensors in parts.items()}


def _read(path: Path) -> dict[str, Tensor]:
    if not path.is_file():
        raise UserError(f"There is no file {path}.")
    try:
        with safetensors.safe_open(path, "pt") as file:
            text = file.metadata() or {}
            tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 (it is no dict)
    except Exception as error:  # foreign bytes can fail in any way
        raise UserError(f"{path} cannot be read as a safetensors file ({type(error).__name__}).") from error
    if (text.get("amc"), text.get("version")) != (FORMAT, VERSION):
        raise UserError(f"{path} is no file of clustered kernels of this release.")
    return tensors


def _fill_codebook(
    tensors: dict[str, Tensor], number: int, codebook: Codebook, layers: list[ClusteredConv2d], path: Path
) -> None:
    sizes = [layer.index.numel() for layer in layers]
    packed, count = tensors[f"indices.{number}"], sum(sizes)
    if packed.numel() != -(-count * codebook.index_bits // 8) or packed.dtype != torch.uint8:
        raise UserError(f"{path} does not fit this model: its indices are of another length.")
    index = unpack_indices(packed, codebook.index_bits, count)
    if int(index.max()) >= codebook.poses * len(codebook.centroids):
        raise UserError(f"{path} is damaged: an index lies beyond its codebook.")
    _fill([codebook.centroids.data], tensors[f"centroids.{number}"].reshape(-1), path)
    _fill([layer.scale.data for layer in layers], tensors[f"scales.{number}"].float(), path)
    for layer, part in zip(layers, index.split(sizes), strict=True):
        layer.index.copy_(part.reshape(layer.index.shape))


def _fill(targets: list[Tensor], flat: Tensor, path: Path) -> None:
    sizes = [target.numel() for target in targets]
    if flat.dim() != 1 or len(flat) != sum(sizes):
        raise UserError(f"{path} does not fit this model: {len(flat)} numbers where {sum(sizes)} are needed.")
    if flat.is_floating_point() and not bool(flat.isfinite().all()):
        raise UserError(f"{path} is damaged: it holds NaN or infinite numbers.")
    for target, values in zip(targets, flat.split(sizes), strict=True):
        target.copy_(values.reshape(target.shape))

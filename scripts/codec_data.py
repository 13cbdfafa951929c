"""Vectors that codecs are compared on: SIFT descriptors, embeddings of a network, PCA of pixels."""

import hashlib
from dataclasses import dataclass
from pathlib import Path

import safetensors.torch
import torch
from rich.progress import track
from torch import Tensor

from amc.data import load_data
from amc.errors import UserError
from amc.models import build_model, load_weights
from amc.models.weights import read_weights, write_tensors
from amc.tasks import ClassificationTask
from scripts.cli import console

SIFT_SIZES = (40_000, 80_000, 2_000)
SIFT_SHARES = (0.4, 0.9)
"""Images up to the first share train, from there to the second are searched, the rest asks."""
EMBEDDING_SIZES = (20_000, 25_000, 2_000)
PIXELS, PIXEL_DIMENSIONS = 6_000, 64


@dataclass(frozen=True)
class VectorSets:
    """Vectors float32 [n, d] of three disjoint sets.

    Attributes:
        train: what a codec learns from.
        base: what it codes and searches; empty where only the training error is asked for.
        queries: never coded.
    """

    train: Tensor
    base: Tensor
    queries: Tensor


def sift_sets(path: Path) -> VectorSets:
    """SIFT descriptors, split by image: no image is in two sets.

    Args:
        path: what scripts/sift.py has written.

    Raises:
        UserError: the file is missing, of another kind or too small.
    """
    found = read_weights(path)
    if set(found) != {"descriptors", "images"}:
        raise UserError(f"{path} holds no SIFT descriptors: scripts/sift.py writes them.")
    sets = split_by_image(found["descriptors"].float(), found["images"].long())
    for part, size in zip((sets.train, sets.base, sets.queries), SIFT_SIZES, strict=True):
        if len(part) < size:
            raise UserError(
                f"{path} is too small: its images leave {len(part)} descriptors where {size} are needed."
            )
    return sets


def split_by_image(
    descriptors: Tensor, images: Tensor, sizes: tuple[int, int, int] = SIFT_SIZES
) -> VectorSets:
    """Three sets of descriptors [n, d] of different images; of each at most `sizes`, drawn at random.

    Args:
        descriptors: of all images.
        images: the number of the image of each, int64 [n].
        sizes: of train, base and queries.
    """
    generator = torch.Generator().manual_seed(0)
    order = torch.randperm(int(images.max()) + 1, generator=generator)
    places = torch.empty_like(order).scatter_(0, order, torch.arange(len(order)))[images]
    bounds = [0, *(round(share * len(order)) for share in SIFT_SHARES), len(order)]
    parts = []
    for low, high, size in zip(bounds, bounds[1:], sizes, strict=False):
        rows = ((places >= low) & (places < high)).nonzero()[:, 0]
        parts.append(descriptors[rows[torch.randperm(len(rows), generator=generator)[:size]]])
    return VectorSets(*parts)


def embedding_sets(weights: Path, data_root: Path, cache: Path) -> VectorSets:
    """What enters the classifier of ResNet-20, 64 numbers for each image of CIFAR-10.

    Codecs learn from some training images and search others; test images ask.

    Args:
        weights: of ResNet-20.
        data_root: folder that holds CIFAR-10.
        cache: folder where the embeddings are kept, by a hash of the weights.
    """
    if not weights.is_file():
        raise UserError(f"There is no weights file {weights}; --weights names one of ResNet-20 for CIFAR-10.")
    path = cache / f"embeddings-{hashlib.sha256(weights.read_bytes()).hexdigest()[:12]}.safetensors"
    if not path.exists():
        cache.mkdir(parents=True, exist_ok=True)
        write_tensors(embeddings(weights, data_root), path)
    found = safetensors.torch.load_file(path)
    train, base, _ = EMBEDDING_SIZES
    return VectorSets(found["train"][:train], found["train"][train : train + base], found["queries"])


def embeddings(weights: Path, data_root: Path) -> dict[str, Tensor]:
    """Embeddings [n, 64] of shuffled training images and of test images."""
    data = load_data("cifar10", data_root)
    model = build_model("resnet20", data.classes, data.shape[0])
    load_weights(model, weights)
    model.eval()
    task, generator = ClassificationTask(data), torch.Generator().manual_seed(0)
    counts = {"train": sum(EMBEDDING_SIZES[:2]), "test": EMBEDDING_SIZES[2]}
    found = []
    for split, count in counts.items():
        images = data.split(split).images
        chosen = images[torch.randperm(len(images), generator=generator)[:count]].split(250)
        progress = track(chosen, f"embedding {split} images", console=console(), transient=True)
        with torch.no_grad():
            found.append(torch.cat([task.features(model, data.normalise(batch)) for batch in progress]))
    return {"train": found[0], "queries": found[1]}


def pixel_sets(data_root: Path) -> VectorSets:
    """Pixels of CIFAR-10 in [0, 1], centred, on their first 64 principal axes; to train only."""
    pixels = load_data("cifar10", data_root).train.images[:PIXELS].flatten(1).double() / 255
    pixels -= pixels.mean(dim=0)
    axes = torch.linalg.eigh(pixels.T @ pixels).eigenvectors[:, -PIXEL_DIMENSIONS:]
    vectors = (pixels @ axes).float()
    return VectorSets(vectors, vectors[:0], vectors[:0])

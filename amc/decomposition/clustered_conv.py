"""Convolutions whose kernels are rebuilt from a codebook; training moves the centroids and the scales."""

import math
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from amc.decomposition.clustered_kernels import cluster_kernels, pose_permutations, posed
from amc.decomposition.operator import Operator, OperatorCost, SelfPacking, convolution_obstacle, spelled_out
from amc.decomposition.responses import Responses
from amc.errors import UserError
from amc.network import Layer
from amc.quantization.bit_packing import pack, unpack
from amc.quantization.protocol import FLOAT_BYTES

SCALE_BYTES = 2
"""Of an fp16 scale."""
SAMPLE = 8192
"""Kernels of a layer that centroids are looked for with; 32 for each of the most."""
FURTHER_ITERATIONS = 1
"""After centroids of the whole layer; assigning the kernels is nearly all of what a fit costs."""
SEARCH_ITERATIONS = 20
"""Of a fit within a search: its cost falls by less than 1 % afterwards, and most of the time goes there."""


class Codebook(nn.Module):
    """Centroids in a fixed number of poses; layers that share them hold the same module.

    Attributes:
        centroids: parameter [K, k, k].
        poses: 1, 2, 4 or 8.
    """

    permutations: Tensor

    def __init__(self, centroids: Tensor, poses: int):
        super().__init__()
        self.centroids, self.poses = nn.Parameter(centroids), poses
        # Not stored: they follow from the size of a kernel and the number of poses.
        self.register_buffer("permutations", pose_permutations(centroids.shape[-1], poses), persistent=False)

    @property
    def index_bits(self) -> int:
        """Bits of an index: log2 K + log2 poses, rounded up."""
        return index_bits(len(self.centroids), self.poses)

    def forward(self, index: Tensor) -> Tensor:
        """Kernels for indices [n, c], as [n, c, k, k]."""
        table = posed(self.centroids.flatten(1), self.permutations)
        return table[index.long()].unflatten(-1, self.centroids.shape[1:])


class ClusteredConv2d(nn.Conv2d, SelfPacking):
    """A convolution whose weight is a scale times a codebook's kernel, for every input and output.

    `weight` is no parameter: it is rebuilt at every use, and gradients reach the centroids and the scales.

    Attributes:
        codebook: the centroids.
        scale: parameter [n, c]; rounded to fp16 at every use, as it is stored.
        index: int32 buffer [n, c], t * K + l for pose t of centroid l.
    """

    codebook: Codebook
    scale: nn.Parameter
    index: Tensor

    @property
    def weight(self) -> Tensor:  # type: ignore[override]
        """The weight that runs, [n, c, k, k]."""
        # The rounding has the gradient 1: gradients themselves may be too small for fp16.
        rounded = self.scale + (self.scale.half().to(self.scale.dtype) - self.scale).detach()
        return rounded[..., None, None] * self.codebook(self.index)

    def packed(self) -> dict[str, Tensor]:
        """Indices without gaps, fp16 scales and the codebook."""
        scale = self.scale.detach().reshape(-1).half()
        if not bool(scale.isfinite().all()):
            raise UserError("A scale of the clustered kernels does not fit into 16 bits.")
        codes = pack(self.index, self.codebook.index_bits)
        centroids = self.codebook.centroids.detach().reshape(-1)
        return {"codes": codes, "float16": scale, "float32": centroids}

    def unpack(self, parts: Mapping[str, Tensor]) -> None:
        """Fill a layer of the same shape; raises ValueError for an index beyond the codebook."""
        book, shape = self.codebook, self.index.shape
        index = unpack(parts["codes"], book.index_bits, self.index.numel())
        if int(index.max()) >= book.poses * len(book.centroids):
            raise ValueError("an index lies beyond its codebook")
        self.index.copy_(index.reshape(shape))
        self.scale.data = parts["float16"].float().reshape(shape)
        book.centroids.data = parts["float32"].reshape(book.centroids.shape)

    def plain(self) -> nn.Conv2d:
        """The convolution that it computes, its kernels spelled out; shares the bias."""
        return spelled_out(self, nn.Conv2d)


def clustered(conv: nn.Conv2d, codebook: Codebook, index: Tensor, scale: Tensor) -> ClusteredConv2d:
    """A convolution (sharing its bias) with a codebook in the place of its weight."""
    new = ClusteredConv2d.__new__(ClusteredConv2d)
    new.__dict__.update(conv.__dict__)
    new._parameters = {"scale": nn.Parameter(scale), "bias": conv._parameters["bias"]}
    new._buffers = {"index": index.int()}
    new._modules = {"codebook": codebook}
    return new


def cluster_layers(
    model: nn.Module, names: Sequence[str], centroids: int, poses: int = 8, seed: int = 0
) -> Codebook:
    """Let convolutions of one kernel size share one codebook, in place.

    Args:
        model: any module.
        names: paths of its convolutions.
        centroids: K.
        poses: 1, 2, 4 or 8.
        seed: of the clustering.

    Returns:
        The codebook.
    """
    convolutions = [model.get_submodule(name) for name in names]
    weights = [conv.get_parameter("weight").detach() for conv in convolutions]
    kernels = torch.cat([weight.flatten(0, 1) for weight in weights])
    found = cluster_kernels(kernels, centroids, poses, seed)
    codebook = Codebook(found.centroids, poses)
    sizes = [len(weight) * weight.shape[1] for weight in weights]
    parts = zip(found.index.split(sizes), found.scale.split(sizes), strict=True)
    for name, conv, weight, (index, scale) in zip(names, convolutions, weights, parts, strict=True):
        assert isinstance(conv, nn.Conv2d)
        shape = weight.shape[:2]
        model.set_submodule(name, clustered(conv, codebook, index.reshape(shape), scale.reshape(shape)))
    return codebook


def index_bits(centroids: int, poses: int) -> int:
    """Bits of an index into a codebook in all its poses."""
    return math.ceil(math.log2(centroids * poses))


def storage_bytes(kernels: int, taps: int, centroids: int, poses: int) -> int:
    """Bytes of clustered kernels: packed indices, fp16 scales, one fp32 codebook.

    Args:
        kernels: N, how many 2-D kernels share the codebook.
        taps: elements of one kernel.
        centroids: K.
        poses: 1, 2, 4 or 8.
    """
    indices = math.ceil(kernels * index_bits(centroids, poses) / 8)
    return indices + SCALE_BYTES * kernels + FLOAT_BYTES * taps * centroids


class ClusteredKernels(Operator):
    """Kernels from `amount` centroids of the layer's own, in eight poses.

    It lowers the size of the file and nothing else: whole kernels run.
    """

    name = "clustered-kernels"
    lowers = frozenset({"size"})
    quantizes = False
    uses_responses = False
    poses = 8
    choices = (4, 8, 16, 32, 64, 128, 256, 512)

    def obstacle(self, module: nn.Module) -> str | None:
        """Kernels must be square to be turned."""
        found = convolution_obstacle(module)
        if found is None and isinstance(module, nn.Conv2d) and len(set(module.kernel_size)) > 1:
            return "its kernel is not square"
        return found

    def amounts(self, conv: nn.Conv2d) -> tuple[int, ...]:
        """Counts of centroids that need less than the 32-bit weights."""
        kernels, taps = conv.weight.shape[0] * conv.weight.shape[1], conv.weight[0, 0].numel()
        fitting = [k for k in self.choices if k <= kernels]
        whole = FLOAT_BYTES * conv.weight.numel()
        return tuple(k for k in fitting if storage_bytes(kernels, taps, k, self.poses) < whole)

    def cost(self, layer: Layer, amount: int, inputs: int, outputs: int) -> OperatorCost:
        """MACs of the layer itself; the size of indices, scales and codebook."""
        kernels = inputs * outputs
        used, bias = min(amount, kernels), outputs * layer.has_bias
        size = storage_bytes(kernels, layer.kernel, used, self.poses) + FLOAT_BYTES * bias
        macs = kernels * layer.kernel * layer.out_size
        return OperatorCost(macs, kernels + used * layer.kernel + bias, size)

    def prepare(self, conv: nn.Conv2d, amount: int) -> Tensor:
        """Centroids [K, k, k] for an even sample of the kernels of the whole layer."""
        kernels = conv.weight.detach().flatten(0, 1)
        sample = kernels[:: -(-len(kernels) // SAMPLE)]
        return cluster_kernels(sample, amount, self.poses, iterations=SEARCH_ITERATIONS).centroids

    def fit(
        self,
        conv: nn.Conv2d,
        amount: int,
        responses: Responses | None = None,
        start: Tensor | None = None,
    ) -> ClusteredConv2d:
        """Cluster the kernels of one layer; scales are fitted to weights, responses do not enter."""
        kernels = conv.weight.flatten(0, 1)
        iterations = SEARCH_ITERATIONS if start is None else FURTHER_ITERATIONS
        found = cluster_kernels(kernels, amount, self.poses, iterations=iterations, start=start)
        shape, codebook = conv.weight.shape[:2], Codebook(found.centroids, self.poses)
        return clustered(conv, codebook, found.index.reshape(shape), found.scale.reshape(shape))


def clustered_layers(model: nn.Module) -> Mapping[str, ClusteredConv2d]:
    """The clustered convolutions of a model by path."""
    return {name: m for name, m in model.named_modules() if isinstance(m, ClusteredConv2d)}

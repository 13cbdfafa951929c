"""Two factors in the place of one convolution: W ~ P A, and the plain low-rank forms of it.

Every decomposition here writes the weight [n, c, kh, kw] as mixing [n, m] times basis [m, c, kh, kw]; they
differ in which zeros the basis has, and in how the two factors run:

| operator | first convolution | second | amount |
|---|---|---|---|
| `channel-svd` | kh x kw, c -> rank | 1 x 1, rank -> n | rank |
| `spatial-svd` | kh x 1, c -> rank (Jaderberg et al. 2014) | 1 x kw, rank -> n | rank |
| `filter-groups` | kh x kw in groups (`amc.decomposition.filter_groups`) | 1 x 1 | group size |
"""

from abc import abstractmethod
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from amc.decomposition.chain import Chain
from amc.decomposition.operator import Operator, OperatorCost, Part, convolution_obstacle
from amc.decomposition.responses import Responses
from amc.network import Layer
from amc.quantization.protocol import FLOAT_BYTES


@dataclass(frozen=True)
class Factors:
    """A weight as the product of two factors, in float64.

    Attributes:
        basis: first factor as whole kernels [m, c, kh, kw], its structural zeros included.
        mixing: second factor [n, m].
    """

    basis: Tensor
    mixing: Tensor

    def weight(self) -> Tensor:
        """What they stand for, float64 [n, c, kh, kw]."""
        return torch.einsum("nm,mchw->nchw", self.mixing, self.basis)

    def squared_error(self, weight: Tensor) -> float:
        """Squared Frobenius norm of the difference from a weight."""
        return float((self.weight() - weight.detach().double()).square().sum())


def truncated_svd(matrices: Tensor, rank: int) -> tuple[Tensor, Tensor]:
    """The best approximation of rank `rank`, its singular values shared equally by both factors.

    From the eigenvectors of the smaller Gram matrix, in double precision. The product is exact in all
    components that are kept, however small their singular value is.

    Args:
        matrices: [g, n, d].
        rank: at most min(n, d).

    Returns:
        Left factor [g, n, rank] and right factor [g, rank, d], float64.
    """
    matrices = matrices.double()
    wide = matrices.shape[1] <= matrices.shape[2]
    gram = matrices @ matrices.mT if wide else matrices.mT @ matrices
    values, vectors = torch.linalg.eigh(gram)  # in ascending order
    vectors = vectors[..., -rank:].flip(-1)
    root = values[..., -rank:].flip(-1).clamp_min(0).pow(0.25)
    inverse = torch.where(root > 0, 1 / root, 0.0)
    if wide:
        return vectors * root[:, None], (vectors * inverse[:, None]).mT @ matrices
    return matrices @ (vectors * inverse[:, None]), (vectors * root[:, None]).mT


class Decomposition(Operator):
    """What the operators of two factors share."""

    @abstractmethod
    def factors(self, weight: Tensor, amount: int) -> Factors:
        """The factors nearest to a weight [n, c, kh, kw]."""

    @abstractmethod
    def parts(self, layer: Layer, amount: int, inputs: int, outputs: int) -> tuple[Part, Part]:
        """Both convolutions."""

    @abstractmethod
    def chain(self, conv: nn.Conv2d, factors: Factors, amount: int) -> Chain:
        """The convolutions that compute the two factors, without a bias, in float64."""

    def cost(self, layer: Layer, amount: int, inputs: int, outputs: int) -> OperatorCost:
        """Cost for a layer that has `inputs` and `outputs` channels left; the weights in 32 bits."""
        parts = self.parts(layer, amount, inputs, outputs)
        params = sum(part.weights for part in parts) + outputs * layer.has_bias
        return OperatorCost(sum(part.macs for part in parts), params, FLOAT_BYTES * params, parts)

    def fit(
        self, conv: nn.Conv2d, amount: int, responses: Responses | None = None, start: None = None
    ) -> Chain:
        """The chain nearest to the weights; its second factor nearest to the responses if there are any."""
        factors = self.factors(conv.weight, amount)
        shift = torch.zeros(conv.out_channels, dtype=torch.float64)
        if responses is not None:
            mixing, shift = responses.fit(factors.basis)
            factors = Factors(factors.basis, mixing)
        chain = self.chain(conv, factors, amount).to(conv.weight.dtype)
        if conv.bias is not None:
            last = chain[-1]
            last.bias = nn.Parameter((conv.bias.detach().double() + shift).to(conv.bias.dtype))
        return chain


def convolution(weight: Tensor, like: nn.Conv2d, first: bool = True, groups: int = 1) -> nn.Conv2d:
    """A convolution without a bias, with this weight.

    Args:
        weight: [out, in, kh, kw]; where a kernel side is 1, the original's stride and padding along it
            are left to the other factor.
        like: the convolution that is replaced.
        first: whether a 1 x 1 kernel would take the stride; the second factor never does.
        groups: of the new convolution.
    """
    sides = tuple(weight.shape[2:])
    own = tuple(
        first if whole == 1 else side > 1 for side, whole in zip(sides, like.kernel_size, strict=True)
    )
    assert isinstance(like.padding, tuple)
    stride, padding, dilation = (
        [value if mine else neutral for value, mine in zip(values, own, strict=True)]
        for values, neutral in ((like.stride, 1), (like.padding, 0), (like.dilation, 1))
    )
    new = nn.Conv2d(
        weight.shape[1] * groups,
        weight.shape[0],
        (sides[0], sides[1]),
        (stride[0], stride[1]),
        (padding[0], padding[1]),
        (dilation[0], dilation[1]),
        groups,
        bias=False,
    )
    new.weight = nn.Parameter(weight)
    return new


class ChannelSVD(Decomposition):
    """Fewer channels between: a k x k convolution to `amount` channels, then 1 x 1 (rank along channels)."""

    name = "channel-svd"

    def factors(self, weight: Tensor, amount: int) -> Factors:
        """From the SVD of the weight as [n, c k^2]."""
        rank = min(amount, len(weight), weight[0].numel())
        left, right = truncated_svd(weight.detach().reshape(1, len(weight), -1), rank)
        return Factors(right[0].reshape(rank, *weight.shape[1:]), left[0])

    def parts(self, layer: Layer, amount: int, inputs: int, outputs: int) -> tuple[Part, Part]:
        """Rank x (c k^2 + n) weights, each used once a pixel."""
        rank = min(amount, outputs, inputs * layer.kernel)
        return Part(inputs, rank, layer.kernel, layer.out_size), Part(rank, outputs, 1, layer.out_size)

    def chain(self, conv: nn.Conv2d, factors: Factors, amount: int) -> Chain:
        """The whole kernel with the stride, then 1 x 1."""
        mixing = factors.mixing[:, :, None, None]
        return Chain(convolution(factors.basis, conv), convolution(mixing, conv, first=False))

    def amounts(self, conv: nn.Conv2d) -> tuple[int, ...]:
        """Ranks with rank (c k^2 + n) < n c k^2."""
        inputs = conv.weight[0].numel()
        return tuple(range(1, -(-inputs * conv.out_channels // (inputs + conv.out_channels))))


class SpatialSVD(Decomposition):
    """A column of taps, then a row: kh x 1 to `amount` channels, then 1 x kw (rank along space)."""

    name = "spatial-svd"

    def obstacle(self, module: nn.Module) -> str | None:
        """Its cost is only known for square kernels that lose no columns at the image's edge."""
        found = convolution_obstacle(module)
        if found is None and isinstance(module, nn.Conv2d):
            if len({*module.kernel_size}) > 1:
                return "its kernel is not square"
            assert isinstance(module.padding, tuple)
            if 2 * module.padding[1] < module.dilation[1] * (module.kernel_size[1] - 1):
                return "it is padded too little"
        return found

    def factors(self, weight: Tensor, amount: int) -> Factors:
        """From the SVD of the weight as [n kw, c kh]; the basis has one vertical kernel a column of taps."""
        n, c, kh, kw = weight.shape
        rank = min(amount, n * kw, c * kh)
        matrix = weight.detach().permute(0, 3, 1, 2).reshape(1, n * kw, c * kh)
        left, right = truncated_svd(matrix, rank)
        basis = torch.zeros(rank, kw, c, kh, kw, dtype=right.dtype)
        columns = torch.arange(kw)
        basis[:, columns, :, :, columns] = right[0].reshape(rank, c, kh)
        mixing = left[0].reshape(n, kw, rank).transpose(1, 2)
        return Factors(basis.reshape(rank * kw, c, kh, kw), mixing.reshape(n, rank * kw))

    def parts(self, layer: Layer, amount: int, inputs: int, outputs: int) -> tuple[Part, Part]:
        """The first factor runs on every column of the input, before the second one's stride.

        Where the stride does not divide the image, or more is padded than the kernel needs, a little less
        runs than this says.
        """
        side = layer.kernel_size
        rank = min(amount, outputs * side, inputs * side)
        return (
            Part(inputs, rank, side, layer.stride * layer.out_size),
            Part(rank, outputs, side, layer.out_size),
        )

    def chain(self, conv: nn.Conv2d, factors: Factors, amount: int) -> Chain:
        """Vertical with the vertical stride, horizontal with the horizontal one."""
        kw = conv.kernel_size[1]
        rank = len(factors.basis) // kw
        vertical = factors.basis.unflatten(0, (rank, kw))[:, 0, :, :, :1]
        horizontal = factors.mixing.reshape(-1, rank, 1, kw)
        return Chain(convolution(vertical, conv), convolution(horizontal, conv, first=False))

    def amounts(self, conv: nn.Conv2d) -> tuple[int, ...]:
        """Ranks that need fewer multiplications than the layer."""
        (kh, kw), stride = conv.kernel_size, conv.stride[1]
        each = conv.in_channels * kh * stride + conv.out_channels * kw
        return tuple(range(1, -(-conv.weight.numel() // each)))

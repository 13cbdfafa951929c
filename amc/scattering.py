"""First-order scattering as fixed convolutions (Oyallon et al., ECCV 2018; filters of kymatio 0.3).

    S x = { x * phi_J (2^J u) } and { |x * psi_{j,theta}| * phi_J (2^J u) },  0 <= j < J, L = 8 angles

kymatio multiplies in the Fourier domain, on an image that is padded by reflection and wraps around. Here each
step is a convolution with the same filter in space, cut off where next to nothing of it is left; which pixels
a padded and wrapped image would have is a list of rows and one of columns.
"""

from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import torch
import torch.fx
from torch import Tensor, nn
from torch.nn import functional as F

from amc.errors import UserError
from amc.graph import FixedStage

ANGLES = 8
CUT = 1e-4
"""Summed magnitude of what a filter loses; the sum over all of it is about 1."""


@dataclass(frozen=True)
class Taps:
    """Filters along both axes, and the pixels that they slide over.

    Attributes:
        weight: float32 [out, 1, kh, kw], to be correlated with the pixels.
        rows, columns: int64, the pixels in the order in which the filters meet them.
        stride: of the filters over those pixels.
    """

    weight: Tensor
    rows: Tensor
    columns: Tensor
    stride: int

    @property
    def size(self) -> tuple[int, int]:
        """Height and width of the result."""
        sides = zip((self.rows, self.columns), self.weight.shape[2:], strict=True)
        height, width = ((len(pixels) - taps) // self.stride + 1 for pixels, taps in sides)
        return height, width


@dataclass(frozen=True)
class Plan:
    """All filters for images of one size.

    Attributes:
        waves: for each scale j the real parts of all angles, then the imaginary parts; [16, 1, k, k].
        smooth: for each scale the low-pass filter behind the modulus, as a column [1, 1, k, 1] and a row.
        order0: the low-pass filter on the image, as a column and a row.
    """

    waves: tuple[Taps, ...]
    smooth: tuple[Taps, ...]
    order0: Taps


class Scattering(FixedStage):
    """Order-0 and order-1 scattering coefficients: [N, C, H, W] -> [N, C (1 + 8 J), H / 2^J, W / 2^J].

    Channels: order 0 of all inputs; then for each scale j, for each input, eight angles. There is nothing
    to train, and nothing is stored: the filters are made for each size of image when it first comes.

    Args:
        scales: J, from 1 up; images must be larger than 2^J and multiples of it.

    Raises:
        UserError: J is not positive, or kymatio is not installed.
    """

    def __init__(self, scales: int):
        super().__init__()
        if scales < 1:
            raise UserError(f"Scattering needs at least 1 scale, not {scales}.")
        require_kymatio()
        self.scales = scales

    def forward(self, x: Tensor) -> Tensor:
        """Coefficients of images [N, C, H, W]; raises UserError for sides that do not fit."""
        return coefficients(x, self.scales)

    def macs(self, shape: tuple[int, ...]) -> int:
        """Multiply-accumulates of its convolutions for one image of shape [N, C, H, W]."""
        _, channels, height, width = shape
        plan, total = make_plan(height, width, self.scales), 0
        for taps in plan.waves:
            total += taps.weight.numel() * taps.size[0] * taps.size[1]
        for taps, maps in ((plan.order0, 1), *((taps, ANGLES) for taps in plan.smooth)):
            total += maps * _smoothing_macs(taps)
        return channels * total

    def compression(self) -> float:
        """Numbers of the image over numbers of its coefficients, 4^J / (1 + 8 J); below 1 for J < 3."""
        return 4**self.scales / (1 + ANGLES * self.scales)

    def extra_repr(self) -> str:
        """Shown when the network is printed."""
        return f"scales={self.scales}"


def expansion_notes(model: nn.Module) -> tuple[str, ...]:
    """A sentence for every stage of a model whose coefficients are more numbers than its images."""
    stages = [module for module in model.modules() if isinstance(module, Scattering)]
    return tuple(
        f"Scattering at J = {stage.scales} expands the data: {1 / stage.compression():.2f} coefficients for "
        "each number of an image; it compresses from J = 3 on."
        for stage in stages
        if stage.compression() < 1
    )


def coefficients(x: Tensor, scales: int) -> Tensor:
    """What `Scattering` computes, for images [N, C, H, W].

    Raises:
        UserError: the sides are no multiples of 2^J, or not larger.
    """
    n, channels, height, width = x.shape
    plan = make_plan(height, width, scales)
    x = x.reshape(n * channels, 1, height, width)
    parts = [_smoothed(x, plan.order0).reshape(n, channels, *plan.order0.size)]
    for waves, smooth in zip(plan.waves, plan.smooth, strict=True):
        square = F.conv2d(_pixels(x, waves), waves.weight.to(x), stride=waves.stride).square()
        # Bounded from below: the derivative of the root is infinite at 0.
        modulus = (square[:, :ANGLES] + square[:, ANGLES:]).clamp_min(1e-24).sqrt()
        parts.append(_smoothed(modulus, smooth).reshape(n, channels * ANGLES, *smooth.size))
    return torch.cat(parts, dim=1)


# One operation for any tracer of torch.fx: its filters depend on the size of the image.
torch.fx.wrap("coefficients")


def _pixels(x: Tensor, taps: Taps) -> Tensor:
    return x.index_select(2, taps.rows.to(x.device)).index_select(3, taps.columns.to(x.device))


def _smoothed(x: Tensor, taps: Taps) -> Tensor:
    """A separable low-pass filter on each of the channels by itself."""
    column, row = split_taps(taps, x.shape[1])
    x = F.conv2d(_pixels(x, taps), column.to(x), stride=(taps.stride, 1), groups=x.shape[1])
    return F.conv2d(x, row.to(x), stride=(1, taps.stride), groups=x.shape[1])


def split_taps(taps: Taps, channels: int) -> tuple[Tensor, Tensor]:
    """A product of two one-dimensional filters as a column and a row, [channels, 1, k, 1] and [.., 1, k]."""
    whole = taps.weight[0, 0].double()
    row, column = whole.sum(dim=0), whole.sum(dim=1) / whole.sum()
    return (
        column.float()[None, None, :, None].repeat(channels, 1, 1, 1),
        row.float()[None, None, None, :].repeat(channels, 1, 1, 1),
    )


def _smoothing_macs(taps: Taps) -> int:
    (kh, kw), (height, width) = taps.weight.shape[2:], taps.size
    return height * len(taps.columns) * kh + height * width * kw


def require_kymatio() -> None:
    """Refuse to go on without the package that makes the filters; raises UserError."""
    try:
        import kymatio.scattering2d.filter_bank  # noqa: F401
    except ImportError as error:
        raise UserError('Scattering needs a package: pip install "amc-compress[scattering]".') from error


@lru_cache(maxsize=8)
def make_plan(height: int, width: int, scales: int) -> Plan:
    """Filters and pixels for images of one size.

    Raises:
        UserError: the size is no multiple of 2^J, or not larger.
    """
    cell = 2**scales
    if height % cell or width % cell or min(height, width) <= cell:
        raise UserError(
            f"Scattering at J = {scales} needs sides that are multiples of {cell} and larger, "
            f"not {height} x {width}."
        )
    padded = (height + 2 * cell, width + 2 * cell)
    waves, lows = _filters(*padded, scales)
    # The padded image wraps around; its first and last cells are cropped from the result.
    inner = [_starts(side, cell)[1:-1] for side in padded]
    originals = [_reflected(side, cell) for side in (height, width)]
    order0 = _taps(lows[0][None].real, inner, cell)
    plan_waves, smooth = [], []
    for j, (wave, low) in enumerate(zip(waves, lows, strict=True)):
        parts = np.concatenate([wave.real, wave.imag])
        plan_waves.append(_on_image(_taps(parts, [_starts(s, 2**j) for s in padded], 2**j), originals))
        step = cell >> j
        smooth.append(_taps(low[None].real, [_starts(s >> j, step)[1:-1] for s in padded], step))
    return Plan(tuple(plan_waves), tuple(smooth), _on_image(order0, originals))


def _starts(side: int, step: int) -> np.ndarray:
    return np.arange(0, side, step)


def _reflected(side: int, margin: int) -> np.ndarray:
    """Which pixel of an image each position of its padded version shows."""
    return np.pad(np.arange(side), margin, mode="reflect")


def _on_image(taps: Taps, originals: list[np.ndarray]) -> Taps:
    rows, columns = (
        torch.from_numpy(original[pixels.numpy()])
        for original, pixels in zip(originals, (taps.rows, taps.columns), strict=True)
    )
    return Taps(taps.weight, rows, columns, taps.stride)


def _filters(height: int, width: int, scales: int) -> tuple[list[np.ndarray], list[np.ndarray]]:
    """The filters in space: for each scale [8, H, W], and the low-pass filter at its resolution."""
    from kymatio.scattering2d.filter_bank import gabor_2d, morlet_2d, periodize_filter_fft

    waves = []
    for j in range(scales):
        angles = [(ANGLES // 2 - 1 - theta) * np.pi / ANGLES for theta in range(ANGLES)]
        scale, frequency = 0.8 * 2**j, 3 / 4 * np.pi / 2**j
        waves.append(
            np.stack([morlet_2d(height, width, scale, angle, frequency, 4 / ANGLES) for angle in angles])
        )
    low = np.real(np.fft.fft2(gabor_2d(height, width, 0.8 * 2 ** (scales - 1), 0, 0)))
    return waves, [np.fft.ifft2(periodize_filter_fft(low, j)) for j in range(scales)]


def _taps(filters: np.ndarray, starts: list[np.ndarray], stride: int) -> Taps:
    """Circular filters [out, H, W] without their negligible borders, and the positions they slide over."""
    sides = filters.shape[1:]
    reach = _reach(filters)
    # Offsets of an even side end one earlier on the right: -side / 2 and side / 2 are one position.
    offsets = [np.arange(-min(reach, side // 2), min(reach, (side - 1) // 2) + 1) for side in sides]
    # A convolution meets the pixels in the reverse order of its filter.
    kernel = filters[:, -offsets[0][:, None] % sides[0], -offsets[1][None] % sides[1]]
    rows, columns = (
        torch.from_numpy(np.arange(start[0] + offset[0], start[-1] + offset[-1] + 1) % side)
        for start, offset, side in zip(starts, offsets, sides, strict=True)
    )
    return Taps(torch.from_numpy(kernel.astype(np.float32))[:, None].contiguous(), rows, columns, stride)


def _reach(filters: np.ndarray) -> int:
    """The smallest distance from the centre beyond which every filter sums to less than `CUT`."""
    distance = [np.minimum(np.arange(side), side - np.arange(side)) for side in filters.shape[1:]]
    ring = np.maximum(distance[0][:, None], distance[1][None])
    magnitude = np.abs(filters).reshape(len(filters), -1)
    for reach in range(1, int(ring.max())):
        if (magnitude * (ring.reshape(-1) > reach)).sum(axis=1).max() <= CUT:
            return reach
    return int(ring.max())

"""Residual networks that read scattering coefficients in the place of pixels, and the same on pixels."""

import torch.nn.functional as F
from torch import Tensor, nn

from amc.models.digits import ResidualBlock
from amc.models.registry import register_model
from amc.scattering import ANGLES, Scattering

STAGES = ((64, 3), (128, 3))
"""Channels and blocks of the two stages behind the first convolution."""
SMALLEST_GRID_SCALE = 3
"""With cells of 2^3 pixels a 32-pixel image has 4 x 4 of them, too few to halve once more."""


class HybridResNet(nn.Module):
    """A front that turns images into a small grid, a 3x3 convolution, two residual stages, a linear layer.

    After the hybrid networks of Oyallon et al. 2018 (arXiv:1809.10200), at the size of 32-pixel images.
    """

    def __init__(self, front: nn.Module, inputs: int, scales: int, classes: int, width: float) -> None:
        super().__init__()
        first = max(1, round(STAGES[0][0] * width))
        self.front = front
        self.scale = nn.BatchNorm2d(inputs)  # coefficients are small and very unequal
        self.conv1 = nn.Conv2d(inputs, first, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(first)
        blocks: list[nn.Module] = []
        channels = first
        for stage, (size, count) in enumerate(STAGES):
            outputs = max(1, round(size * width))
            for block in range(count):
                halve = stage > 0 and block == 0 and scales < SMALLEST_GRID_SCALE
                blocks.append(ResidualBlock(channels, outputs, 2 if halve else 1))
                channels = outputs
        self.blocks = nn.Sequential(*blocks)
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.linear = nn.Linear(channels, classes)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    def forward(self, x: Tensor) -> Tensor:
        """Images [N, in_channels, H, W], sides multiples of 2^J -> logits [N, classes]."""
        out = F.relu(self.bn1(self.conv1(self.scale(self.front(x)))))
        return self.linear(self.pool(self.blocks(out)).flatten(1))


def _hybrid(scales: int, classes: int, in_channels: int, width: float) -> HybridResNet:
    inputs = in_channels * (1 + ANGLES * scales)
    return HybridResNet(Scattering(scales), inputs, scales, classes, width)


def _learned(scales: int, classes: int, in_channels: int, width: float) -> HybridResNet:
    """The same network behind strided convolutions that are learned, with as many channels."""
    outputs = in_channels * (1 + ANGLES * scales)
    front: list[nn.Module] = []
    for step in range(scales):
        conv = nn.Conv2d(outputs if step else in_channels, outputs, 3, 2, 1, bias=False)
        front += [conv, nn.BatchNorm2d(outputs), nn.ReLU()]
    return HybridResNet(nn.Sequential(*front), outputs, scales, classes, width)


@register_model("scattering_resnet_j2")
def scattering_resnet_j2(classes: int = 10, in_channels: int = 3, width: float = 1.0) -> HybridResNet:
    """A hybrid on cells of 4 pixels; its coefficients are 6 % more numbers than the image."""
    return _hybrid(2, classes, in_channels, width)


@register_model("scattering_resnet_j3")
def scattering_resnet_j3(classes: int = 10, in_channels: int = 3, width: float = 1.0) -> HybridResNet:
    """A hybrid on cells of 8 pixels; its coefficients are 2.56 times fewer numbers than the image."""
    return _hybrid(3, classes, in_channels, width)


@register_model("strided_resnet_j2")
def strided_resnet_j2(classes: int = 10, in_channels: int = 3, width: float = 1.0) -> HybridResNet:
    """`scattering_resnet_j2` on pixels, with a learned front."""
    return _learned(2, classes, in_channels, width)


@register_model("strided_resnet_j3")
def strided_resnet_j3(classes: int = 10, in_channels: int = 3, width: float = 1.0) -> HybridResNet:
    """`scattering_resnet_j3` on pixels, with a learned front."""
    return _learned(3, classes, in_channels, width)

"""The demonstration's network: a residual CNN for enlarged grey digits."""

import torch.nn.functional as F
from torch import Tensor, nn

from amc.models.registry import register_model


class ResidualBlock(nn.Module):
    """Two 3x3 convolutions with batch norm; the shortcut is a 1x1 convolution where the shape changes."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(outputs)
        self.shortcut: nn.Module = nn.Identity()
        if stride != 1 or inputs != outputs:
            project = nn.Conv2d(inputs, outputs, 1, stride, bias=False)
            self.shortcut = nn.Sequential(project, nn.BatchNorm2d(outputs))

    def forward(self, x: Tensor) -> Tensor:
        """[N, inputs, H, W] -> [N, outputs, H / stride, W / stride]."""
        out = F.relu(self.bn1(self.conv1(x)))
        return F.relu(self.bn2(self.conv2(out)) + self.shortcut(x))


class DigitsNet(nn.Module):
    """Small enough to train in a minute on two cores, large enough that its milliseconds can be measured."""

    def __init__(self, classes: int = 10, in_channels: int = 1, width: float = 1.0) -> None:
        super().__init__()
        small, middle, large = (max(1, round(size * width)) for size in (16, 32, 64))
        self.conv1 = nn.Conv2d(in_channels, small, 3, 1, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(small)
        self.block1 = ResidualBlock(small, small, 1)
        self.block2 = ResidualBlock(small, middle, 2)
        self.block3 = ResidualBlock(middle, middle, 1)
        self.block4 = ResidualBlock(middle, large, 2)
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.linear = nn.Linear(large, classes)

    def forward(self, x: Tensor) -> Tensor:
        """Images [N, in_channels, H, W] -> logits [N, classes]."""
        out = F.relu(self.bn1(self.conv1(x)))
        out = self.block4(self.block3(self.block2(self.block1(out))))
        return self.linear(self.pool(out).flatten(1))


@register_model("digitsnet")
def digitsnet(classes: int = 10, in_channels: int = 1, width: float = 1.0) -> DigitsNet:
    """The demonstration's network: 96 thousand parameters, 16.9 million MACs at 32 px."""
    return DigitsNet(classes, in_channels, width)

"""A small network with concatenations: parallel branches as in Inception, reused features as in DenseNet."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from amc.models.registry import register_model


class ConvBN(nn.Module):
    """Convolution with "same" padding, batch norm, ReLU."""

    def __init__(self, inputs: int, outputs: int, kernel: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(inputs, outputs, kernel, padding=kernel // 2, bias=False)
        self.bn = nn.BatchNorm2d(outputs)

    def forward(self, x: Tensor) -> Tensor:
        """[N, inputs, H, W] -> [N, outputs, H, W]."""
        return F.relu(self.bn(self.conv(x)))


class InceptionBlock(nn.Module):
    """Three branches side by side: 1x1; 1x1 then 3x3; average pooling then 1x1 (after arXiv:1409.4842)."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        quarter = outputs // 4
        self.point = ConvBN(inputs, quarter, 1)
        self.reduce = ConvBN(inputs, quarter, 1)
        self.wide = ConvBN(quarter, outputs - 2 * quarter, 3)
        self.pooled = ConvBN(inputs, quarter, 1)

    def forward(self, x: Tensor) -> Tensor:
        """[N, inputs, H, W] -> [N, outputs, H, W]."""
        smooth = F.avg_pool2d(x, 3, stride=1, padding=1)
        return torch.cat([self.point(x), self.wide(self.reduce(x)), self.pooled(smooth)], dim=1)


class DenseBlock(nn.Module):
    """Two 3x3 convolutions, each of which sees everything before it (arXiv:1608.06993, equation 2)."""

    def __init__(self, inputs: int, growth: int) -> None:
        super().__init__()
        self.first = ConvBN(inputs, growth, 3)
        self.second = ConvBN(inputs + growth, growth, 3)

    def forward(self, x: Tensor) -> Tensor:
        """[N, inputs, H, W] -> [N, inputs + 2 growth, H, W]."""
        x = torch.cat([x, self.first(x)], dim=1)
        return torch.cat([x, self.second(x)], dim=1)


class ConcatNet(nn.Module):
    """A stem, an inception block, a dense block and a linear layer, with max pooling between."""

    def __init__(self, classes: int, in_channels: int, width: float) -> None:
        super().__init__()
        base = max(4, round(32 * width))
        self.stem = ConvBN(in_channels, base, 3)
        self.inception = InceptionBlock(base, 2 * base)
        self.dense = DenseBlock(2 * base, base)
        self.mix = ConvBN(4 * base, 2 * base, 1)
        self.linear = nn.Linear(2 * base, classes)

    def forward(self, x: Tensor) -> Tensor:
        """Images [N, in_channels, H, W] of at least 4 x 4 pixels -> logits [N, classes]."""
        out = F.max_pool2d(self.stem(x), 2)
        out = F.max_pool2d(self.inception(out), 2)
        out = self.mix(self.dense(out))
        return self.linear(F.adaptive_avg_pool2d(out, 1).flatten(1))


@register_model("concatnet")
def concatnet(classes: int = 10, in_channels: int = 3, width: float = 1.0) -> ConcatNet:
    """The small network with concatenations: 62 thousand parameters, 5.9 million MACs at 32 px."""
    return ConcatNet(classes, in_channels, width)

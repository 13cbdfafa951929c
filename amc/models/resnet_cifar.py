"""ResNets for 32-pixel images with parameter-free shortcuts, and the plain network without them."""

import torch.nn.functional as F
from torch import Tensor, nn

from amc.models.registry import register_model


class PaddedShortcut(nn.Module):
    """Option A of He et al. 2015 (arXiv:1512.03385, section 3.3): subsample and pad with zero channels.

    Output channel i is input channel i - `before`, at every second pixel; the first `before` and last
    `after` channels are zero.
    """

    def __init__(self, before: int, after: int) -> None:
        super().__init__()
        self.before, self.after = before, after

    def forward(self, x: Tensor) -> Tensor:
        """[N, C, H, W] -> [N, before + C + after, ceil(H / 2), ceil(W / 2)]."""
        return F.pad(x[:, :, ::2, ::2], (0, 0, 0, 0, self.before, self.after))

    def extra_repr(self) -> str:
        """Shown when the network is printed."""
        return f"before={self.before}, after={self.after}"


class BasicBlock(nn.Module):
    """Two 3x3 convolutions with batch norm, plus the shortcut where there is one."""

    def __init__(self, inputs: int, outputs: int, stride: int, residual: bool) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(outputs)
        padding = (outputs - inputs) // 2
        self.shortcut: nn.Module | None = None
        if residual:
            self.shortcut = PaddedShortcut(padding, padding) if stride == 2 else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        """[N, inputs, H, W] -> [N, outputs, H / stride, W / stride]."""
        out = F.relu(self.bn1(self.conv1(x)))
        out = self.bn2(self.conv2(out))
        if self.shortcut is not None:
            out = out + self.shortcut(x)
        return F.relu(out)


class ResNetCifar(nn.Module):
    """Three stages of 16, 32 and 64 channels; 6 n + 2 layers for n blocks a stage (section 4.2 of the paper).

    Parameter names are those of the widely shared CIFAR ResNet files: conv1, bn1, layer1.0.conv1, linear.
    """

    def __init__(
        self,
        blocks: int,
        classes: int = 10,
        in_channels: int = 3,
        residual: bool = True,
        width: float = 1.0,
    ) -> None:
        super().__init__()
        # Every stage doubles the one before it: a shortcut pads equally many channels on both sides.
        small = 2 * max(1, round(8 * width))
        self.conv1 = nn.Conv2d(in_channels, small, 3, 1, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(small)
        self.layer1 = _stage(blocks, small, small, 1, residual)
        self.layer2 = _stage(blocks, small, 2 * small, 2, residual)
        self.layer3 = _stage(blocks, 2 * small, 4 * small, 2, residual)
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.linear = nn.Linear(4 * small, classes)
        for module in self.modules():
            if isinstance(module, nn.Conv2d | nn.Linear):
                nn.init.kaiming_normal_(module.weight)

    def forward(self, x: Tensor) -> Tensor:
        """Images [N, in_channels, H, W] -> logits [N, classes]."""
        out = F.relu(self.bn1(self.conv1(x)))
        out = self.layer3(self.layer2(self.layer1(out)))
        return self.linear(self.pool(out).flatten(1))


def _stage(blocks: int, inputs: int, outputs: int, stride: int, residual: bool) -> nn.Sequential:
    first = BasicBlock(inputs, outputs, stride, residual)
    return nn.Sequential(first, *(BasicBlock(outputs, outputs, 1, residual) for _ in range(blocks - 1)))


@register_model("resnet20")
def resnet20(classes: int = 10, in_channels: int = 3, width: float = 1.0) -> ResNetCifar:
    """ResNet-20: 0.27 million parameters, 40.6 million MACs at 32 px; a quarter of both at half the width."""
    return ResNetCifar(3, classes, in_channels, width=width)


@register_model("resnet32")
def resnet32(classes: int = 10, in_channels: int = 3) -> ResNetCifar:
    """ResNet-32: 0.46 million parameters, 68.9 million MACs at 32 px."""
    return ResNetCifar(5, classes, in_channels)


@register_model("resnet44")
def resnet44(classes: int = 10, in_channels: int = 3) -> ResNetCifar:
    """ResNet-44: 0.66 million parameters, 97.2 million MACs at 32 px."""
    return ResNetCifar(7, classes, in_channels)


@register_model("resnet56")
def resnet56(classes: int = 10, in_channels: int = 3) -> ResNetCifar:
    """ResNet-56: 0.85 million parameters, 125.5 million MACs at 32 px."""
    return ResNetCifar(9, classes, in_channels)


@register_model("plain20")
def plain20(classes: int = 10, in_channels: int = 3) -> ResNetCifar:
    """Plain-20: ResNet-20 without its shortcuts, the network of the AMC paper's first table."""
    return ResNetCifar(3, classes, in_channels, residual=False)

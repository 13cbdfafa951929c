"""Three plain 5x5 convolutions for 32-pixel images, after the small backbones of hashing papers."""

import torch.nn.functional as F
from torch import Tensor, nn

from amc.models.registry import register_model


class ThreeConv(nn.Module):
    """32, 32 and 64 channels with batch norm; each is followed by pooling to half the side."""

    def __init__(self, classes: int = 10, in_channels: int = 3, width: float = 1.0) -> None:
        super().__init__()
        small, large = (max(1, round(size * width)) for size in (32, 64))
        self.conv1 = nn.Conv2d(in_channels, small, 5, 1, 2, bias=False)
        self.bn1 = nn.BatchNorm2d(small)
        self.conv2 = nn.Conv2d(small, small, 5, 1, 2, bias=False)
        self.bn2 = nn.BatchNorm2d(small)
        self.conv3 = nn.Conv2d(small, large, 5, 1, 2, bias=False)
        self.bn3 = nn.BatchNorm2d(large)
        self.linear = nn.Linear(large * 16, classes)

    def forward(self, x: Tensor) -> Tensor:
        """Images [N, in_channels, 32, 32] -> logits [N, classes]."""
        out = F.max_pool2d(F.relu(self.bn1(self.conv1(x))), 2)
        out = F.avg_pool2d(F.relu(self.bn2(self.conv2(out))), 2)
        out = F.avg_pool2d(F.relu(self.bn3(self.conv3(out))), 2)
        return self.linear(out.flatten(1))


@register_model("threeconv")
def threeconv(classes: int = 10, in_channels: int = 3, width: float = 1.0) -> ThreeConv:
    """Three convolutions: 90 thousand parameters, 12.3 million MACs at 32 px."""
    return ThreeConv(classes, in_channels, width)

"""A small one-stage detector without anchors: a residual backbone at stride 4, a neck and a 1x1 head."""

import math

import torch.nn.functional as F
from torch import Tensor, nn

from amc.detection.maps import outputs
from amc.models.registry import register_model

RARE = 0.01
"""Probability of an object that a fresh network sees everywhere (focal loss, section 3.3)."""
START_DISTANCE = 2.0
"""Strides from a location to the sides of its box in a fresh network."""


class DilatedBlock(nn.Module):
    """Two 3x3 convolutions with batch norm; the shortcut is a 1x1 convolution where the shape changes.

    Dilation and not a second, coarser scale lets it see large objects: small ones keep their resolution,
    and nothing has to be enlarged again.
    """

    def __init__(self, inputs: int, outputs: int, stride: int = 1, dilation: int = 1) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, dilation, dilation, bias=False)
        self.bn1 = nn.BatchNorm2d(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, 1, dilation, dilation, bias=False)
        self.bn2 = nn.BatchNorm2d(outputs)
        self.shortcut: nn.Module = nn.Identity()
        if stride != 1 or inputs != outputs:
            project = nn.Conv2d(inputs, outputs, 1, stride, bias=False)
            self.shortcut = nn.Sequential(project, nn.BatchNorm2d(outputs))

    def forward(self, x: Tensor) -> Tensor:
        """[N, inputs, H, W] -> [N, outputs, H / stride, W / stride]."""
        out = F.relu(self.bn1(self.conv1(x)))
        return F.relu(self.bn2(self.conv2(out)) + self.shortcut(x))


class Detector(nn.Module):
    """Backbone, neck and head; gives the raw maps that `amc.detection.maps` describes.

    Its neck's output, after the ReLU, is the feature map that a smaller detector may mimic.
    """

    def __init__(self, classes: int = 3, in_channels: int = 3, width: float = 1.0) -> None:
        super().__init__()
        small, middle, large = (max(1, round(size * width)) for size in (16, 32, 64))
        self.conv1 = nn.Conv2d(in_channels, small, 3, 2, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(small)
        self.block1 = DilatedBlock(small, middle, stride=2)
        self.block2 = DilatedBlock(middle, large, dilation=2)
        self.block3 = DilatedBlock(large, large, dilation=4)
        self.neck = nn.Conv2d(large, large, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(large)
        self.head = nn.Conv2d(large, outputs(classes), 1)
        self._start_head(classes)

    def _start_head(self, classes: int) -> None:
        """Begin with rare objects of a common size, so that background does not drown the first steps."""
        nn.init.normal_(self.head.weight, std=0.01)
        assert self.head.bias is not None
        nn.init.zeros_(self.head.bias)
        nn.init.constant_(self.head.bias[:classes], -math.log((1 - RARE) / RARE))
        nn.init.constant_(self.head.bias[classes : classes + 4], math.log(START_DISTANCE))

    def forward(self, x: Tensor) -> Tensor:
        """Images [N, in_channels, H, W] -> maps [N, classes + 5, H / 4, W / 4]."""
        out = F.relu(self.bn1(self.conv1(x)))
        out = self.block3(self.block2(self.block1(out)))
        return self.head(F.relu(self.bn2(self.neck(out))))


@register_model("detector", task="detection")
def detector(classes: int = 3, in_channels: int = 3, width: float = 1.0) -> Detector:
    """The detector: 184 thousand parameters, 47 million MACs at 64 px."""
    return Detector(classes, in_channels, width)

"""VGG-16 with batch norm and a one-layer head."""

from torch import Tensor, nn

from amc.models.registry import register_model

# Simonyan and Zisserman 2014 (arXiv:1409.1556), configuration D; 0 is a 2x2 max pooling.
CONFIGURATION_D = (64, 64, 0, 128, 128, 0, 256, 256, 256, 0, 512, 512, 512, 0, 512, 512, 512, 0)


class VGG(nn.Module):
    """Thirteen 3x3 convolutions with batch norm and one linear layer, the common form for CIFAR."""

    def __init__(self, classes: int = 10, in_channels: int = 3, width: float = 1.0) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        channels = in_channels
        for size in CONFIGURATION_D:
            if size == 0:
                layers.append(nn.MaxPool2d(2))
                continue
            outputs = max(1, round(size * width))
            # No bias: the batch norm that follows has one.
            layers += [
                nn.Conv2d(channels, outputs, 3, padding=1, bias=False),
                nn.BatchNorm2d(outputs),
                nn.ReLU(),
            ]
            channels = outputs
        self.features = nn.Sequential(*layers)
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.classifier = nn.Linear(channels, classes)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    def forward(self, x: Tensor) -> Tensor:
        """Images [N, in_channels, H, W] of at least 32 x 32 pixels -> logits [N, classes]."""
        return self.classifier(self.pool(self.features(x)).flatten(1))


@register_model("vgg16")
def vgg16(classes: int = 10, in_channels: int = 3, width: float = 1.0) -> VGG:
    """VGG-16 with batch norm: 14.7 million parameters, 313 million MACs at 32 px."""
    return VGG(classes, in_channels, width)

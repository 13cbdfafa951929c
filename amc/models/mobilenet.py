"""MobileNet-V1 and MobileNet-V2, for large images and for 32-pixel ones."""

from torch import Tensor, nn

from amc.models.registry import register_model

# Output channels and stride of each separable block: Howard et al. 2017 (arXiv:1704.04861), table 1.
V1_BLOCKS = (
    (64, 1),
    (128, 2),
    (128, 1),
    (256, 2),
    (256, 1),
    (512, 2),
    *((512, 1),) * 5,
    (1024, 2),
    (1024, 1),
)
# Expansion, output channels, repeats, first stride: Sandler et al. 2018 (arXiv:1801.04381), table 2.
V2_STAGES = (
    (1, 16, 1, 1),
    (6, 24, 2, 2),
    (6, 32, 3, 2),
    (6, 64, 4, 2),
    (6, 96, 3, 1),
    (6, 160, 3, 2),
    (6, 320, 1, 1),
)
V2_LAST = 1280


def round_to_eight(channels: float) -> int:
    """The multiple of 8 nearest to a channel count, never more than 10 % below it."""
    rounded = max(8, int(channels + 4) // 8 * 8)
    return rounded + 8 if rounded < 0.9 * channels else rounded


def conv_bn(
    inputs: int, outputs: int, kernel: int, stride: int, groups: int, act: nn.Module
) -> nn.Sequential:
    """Convolution without bias, batch norm, activation; "same" padding for odd kernels."""
    conv = nn.Conv2d(inputs, outputs, kernel, stride, kernel // 2, groups=groups, bias=False)
    return nn.Sequential(conv, nn.BatchNorm2d(outputs), act)


class MobileNetV1(nn.Module):
    """A stem, thirteen depthwise-separable blocks, one linear layer."""

    def __init__(self, classes: int, in_channels: int, width: float, small_input: bool) -> None:
        super().__init__()
        channels = round_to_eight(32 * width)
        layers = [conv_bn(in_channels, channels, 3, 1 if small_input else 2, 1, nn.ReLU())]
        for size, stride in V1_BLOCKS:
            outputs = round_to_eight(size * width)
            layers.append(conv_bn(channels, channels, 3, stride, channels, nn.ReLU()))
            layers.append(conv_bn(channels, outputs, 1, 1, 1, nn.ReLU()))
            channels = outputs
        self.features = nn.Sequential(*layers)
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.classifier = nn.Linear(channels, classes)
        _initialise(self)

    def forward(self, x: Tensor) -> Tensor:
        """Images [N, in_channels, H, W] -> logits [N, classes]."""
        return self.classifier(self.pool(self.features(x)).flatten(1))


class InvertedResidual(nn.Module):
    """Expand by a 1x1, filter by a depthwise 3x3, project by a linear 1x1; add the input if it fits."""

    def __init__(self, inputs: int, outputs: int, stride: int, expansion: int) -> None:
        super().__init__()
        hidden = inputs * expansion
        self.residual = stride == 1 and inputs == outputs
        expand = [conv_bn(inputs, hidden, 1, 1, 1, nn.ReLU6())] if expansion != 1 else []
        depthwise = conv_bn(hidden, hidden, 3, stride, hidden, nn.ReLU6())
        project = nn.Conv2d(hidden, outputs, 1, bias=False)
        self.conv = nn.Sequential(*expand, depthwise, project, nn.BatchNorm2d(outputs))

    def forward(self, x: Tensor) -> Tensor:
        """[N, inputs, H, W] -> [N, outputs, H / stride, W / stride]."""
        return x + self.conv(x) if self.residual else self.conv(x)


class MobileNetV2(nn.Module):
    """A stem, seventeen inverted residual blocks, a 1x1 convolution, one linear layer.

    Parameter names are those of the widely shared ImageNet files: features.0.0, features.1.conv.0.0,
    classifier.1.
    """

    def __init__(self, classes: int, in_channels: int, width: float, small_input: bool) -> None:
        super().__init__()
        channels = round_to_eight(32 * width)
        layers: list[nn.Module] = [conv_bn(in_channels, channels, 3, 1 if small_input else 2, 1, nn.ReLU6())]
        for position, (expansion, size, repeats, first_stride) in enumerate(V2_STAGES):
            outputs = round_to_eight(size * width)
            for repeat in range(repeats):
                # 32-pixel images also skip the first of the four later halvings and end at 4 x 4.
                halve = repeat == 0 and not (small_input and position == 1)
                layers.append(InvertedResidual(channels, outputs, first_stride if halve else 1, expansion))
                channels = outputs
        last = round_to_eight(V2_LAST * max(1.0, width))
        layers.append(conv_bn(channels, last, 1, 1, 1, nn.ReLU6()))
        self.features = nn.Sequential(*layers)
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.classifier = nn.Sequential(nn.Dropout(0.2), nn.Linear(last, classes))
        _initialise(self)

    def forward(self, x: Tensor) -> Tensor:
        """Images [N, in_channels, H, W] -> logits [N, classes]."""
        return self.classifier(self.pool(self.features(x)).flatten(1))


def _initialise(model: nn.Module) -> None:
    for module in model.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out")
        elif isinstance(module, nn.Linear):
            nn.init.normal_(module.weight, std=0.01)
            nn.init.zeros_(module.bias)


@register_model("mobilenet_v1")
def mobilenet_v1(
    classes: int = 10, in_channels: int = 3, width: float = 1.0, small_input: bool = True
) -> MobileNetV1:
    """MobileNet-V1: 4.2 million parameters and 569 million MACs for 1,000 classes at 224 px."""
    return MobileNetV1(classes, in_channels, width, small_input)


@register_model("mobilenet_v2")
def mobilenet_v2(
    classes: int = 10, in_channels: int = 3, width: float = 1.0, small_input: bool = True
) -> MobileNetV2:
    """MobileNet-V2: 3.5 million parameters and 301 million MACs for 1,000 classes at 224 px."""
    return MobileNetV2(classes, in_channels, width, small_input)

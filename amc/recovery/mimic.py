"""Quantization mimic: a very tiny detector learns the quantized features of a large one, on regions.

Wei, Pan, Qin, Ouyang and Yan, ECCV 2018 (arXiv:1805.02152). Both feature maps are quantized during training,
which makes the match easier: close values fall on one level. What is quantized is a feature map for the
sake of learning, and nothing of it remains in the student.

    L = L_detection + lambda L_m,   L_m = 1 / (2 N) sum_i |Q(f_t^i) - Q(r(f_s^i))|^2 / scale

f^i is the feature of region i, pooled to a small grid; r a learned 1x1 convolution where the widths differ; Q
rounds max(f, 0) to multiples of a stride. Ours: regions are the labelled boxes with jittered copies (a one-
stage detector proposes none), |.|^2 is the mean over the elements of a region, and `scale` the teacher's
mean square on regions, so that lambda means the same for all widths.
"""

import math
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from amc.data.boxes import DetectionData
from amc.detection.features import maps_and_features
from amc.detection.loss import detection_loss
from amc.detection.regions import pool_regions, regions_of
from amc.errors import UserError
from amc.training import Loss, device_of, evaluating

Mode = Literal["alone", "mimic", "quantized"]
MODES: tuple[Mode, ...] = ("alone", "mimic", "quantized")

TOP_SHARE = 0.99
"""Share of the teacher's positive features below the quantizer's top level."""
CALIBRATION_IMAGES = 64


@dataclass(frozen=True)
class Mimic:
    """How a student imitates.

    Attributes:
        mode: "alone" learns from the labels only, "mimic" also from full-precision features, "quantized" from
            quantized ones.
        weight: lambda; much more than 1 lets imitation drown detection.
        bits: levels of the quantizer below its top, as a power of two; sets the stride.
        jitter: largest shift of a box's sides in its jittered copy, as a share of its size; 0 for no copy.
    """

    mode: Mode = "quantized"
    weight: float = 1.0
    bits: int = 3
    jitter: float = 0.2

    def __post_init__(self) -> None:
        """Refuse what has no meaning."""
        if self.mode not in MODES:
            raise UserError(f"There is no way to imitate called '{self.mode}': choose {', '.join(MODES)}.")
        if not (math.isfinite(self.weight) and self.weight >= 0 and 0 <= self.jitter < 0.5):
            raise UserError("Mimic needs a weight of 0 or more and a jitter in [0, 0.5).")
        if not 1 <= self.bits <= 8:
            raise UserError(f"Features are quantized to 1 to 8 bits, not to {self.bits}.")


def quantize_features(features: Tensor, stride: float) -> Tensor:
    """The multiple of `stride` nearest to max(f, 0); the gradient passes straight through, below 0 too.

    A student whose r(f) is negative where the teacher's feature is positive must still hear of it, so the
    gradient ignores the clamp as well as the rounding.
    """
    rounded = (features.detach().clamp(min=0) / stride).round() * stride
    return features + (rounded - features).detach()


class MimicStudent(nn.Module):
    """A student with the layer that translates its features; only the student is kept afterwards.

    Args:
        student: the tiny detector.
        channels: of its features.
        teacher_channels: of the teacher's; where both are equal, nothing is translated.
    """

    def __init__(self, student: nn.Module, channels: int, teacher_channels: int) -> None:
        super().__init__()
        self.student = student
        equal = channels == teacher_channels
        self.adapter = nn.Identity() if equal else nn.Conv2d(channels, teacher_channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        """The student's raw maps."""
        maps: Tensor = self.student(x)
        return maps


@dataclass(frozen=True)
class Teaching:
    """A trained teacher, and the grid of its features.

    Attributes:
        model: the teacher in evaluation mode.
        channels: of its features.
        stride: of the quantizer: the 99th percentile of its positive features, over 2^bits.
        scale: mean square of its features on regions.
    """

    model: nn.Module
    channels: int
    stride: float
    scale: float


def prepare_teacher(teacher: nn.Module, data: DetectionData, bits: int) -> Teaching:
    """Measure a teacher's features on training images.

    Args:
        teacher: trained; is switched to evaluation mode.
        data: what it was trained on.
        bits: of the feature quantizer.

    Raises:
        UserError: its features are zero everywhere.
    """
    part = data.train
    labels = part.labels[:CALIBRATION_IMAGES]
    images = data.normalise(part.images[:CALIBRATION_IMAGES]).to(device_of(teacher))
    with evaluating(teacher):
        features = maps_and_features(teacher, images)[1]
        regions = regions_of(labels.to(features.device), 0.0)
        pooled = pool_regions(features, regions, images.shape[2])
    positive = pooled[pooled > 0].sort().values
    if not len(positive):
        raise UserError("The teacher's features are zero on all objects: there is nothing to imitate.")
    top = float(positive[int(TOP_SHARE * (len(positive) - 1))])
    return Teaching(teacher.eval(), features.shape[1], top / 2**bits, float(pooled.square().mean()))


def with_adapter(student: nn.Module, teaching: Teaching, image: Tensor) -> MimicStudent:
    """A detector with the layer that translates its features, which torch's global generator initialises.

    Args:
        student: any detector, compressed or small.
        teaching: its teacher.
        image: one normalised image [1, C, H, W], which tells how many channels the features have.
    """
    device = device_of(student)
    with evaluating(student):
        channels = maps_and_features(student, image.to(device))[1].shape[1]
    return MimicStudent(student, channels, teaching.channels).to(device)


def mimic_loss(wanted: Tensor, said: Tensor, scale: float, stride: float | None) -> Tensor:
    """Half the mean square difference of region features, relative to the teacher's; a scalar.

    Args:
        wanted: the teacher's [n, C, 3, 3]; no gradient.
        said: the student's, translated, [n, C, 3, 3].
        scale: mean square of the teacher's features.
        stride: of the quantizer that both pass through; None leaves them as they are.
    """
    if not len(wanted):
        return said.sum()  # 0, with the graph that `backward` needs
    if stride is not None:
        wanted, said = quantize_features(wanted, stride), quantize_features(said, stride)
    return (wanted - said).square().mean() / (2 * scale)


def mimicking(teaching: Teaching, mimic: Mimic) -> Loss:
    """The loss to `fit` a `MimicStudent` with: detection, and imitation unless the mode is "alone"."""

    def loss(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
        assert isinstance(model, MimicStudent)
        maps, features = maps_and_features(model.student, x)
        labelled = detection_loss(maps, y, x.shape[2])
        if mimic.mode == "alone":
            return labelled
        with torch.no_grad():
            known = maps_and_features(teaching.model, x)[1]
        regions = regions_of(y, mimic.jitter)
        wanted, said = pool_regions(known, regions, x.shape[2]), pool_regions(features, regions, x.shape[2])
        stride = teaching.stride if mimic.mode == "quantized" else None
        return labelled + mimic.weight * mimic_loss(wanted, model.adapter(said), teaching.scale, stride)

    return loss


def matching_share(student: MimicStudent, teaching: Teaching, data: DetectionData, split: str) -> float:
    """The share of region features whose quantized values are the teacher's, Q(f_t) = Q(r(f_s)); in [0, 1].

    Args:
        student: trained, with its adapter.
        teaching: its teacher.
        data: images with boxes.
        split: of the data.
    """
    equal, count = 0, 0
    for x, y in data.batches(split, batch_size=32, device=device_of(student)):
        with evaluating(student):
            regions = regions_of(y, 0.0)
            wanted = pool_regions(maps_and_features(teaching.model, x)[1], regions, x.shape[2])
            said = student.adapter(
                pool_regions(maps_and_features(student.student, x)[1], regions, x.shape[2])
            )
        codes = [quantize_features(f, teaching.stride) / teaching.stride for f in (wanted, said)]
        equal += int((codes[0].round() == codes[1].round()).sum())
        count += wanted.numel()
    return equal / count

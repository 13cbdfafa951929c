"""Object detection with a one-stage detector: focal, GIoU and centredness loss, mean average precision."""

from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor, nn

from amc.data.boxes import DetectionData
from amc.data.images import ImageData
from amc.detection.agreement import same_detections
from amc.detection.average_precision import AveragePrecision, average_precision, require_pycocotools
from amc.detection.decoding import Detections, decode
from amc.detection.examples import EXAMPLES, EXAMPLES_FILE, gather_examples, save_examples
from amc.detection.features import maps_and_features
from amc.detection.loss import detection_loss
from amc.detection.maps import outputs
from amc.errors import UserError
from amc.plugins import one_line
from amc.training import device_of, evaluating


class DetectionTask:
    """Boxes and classes of objects; the score is COCO's mAP, the mean over IoU thresholds 0.5 to 0.95.

    mAP and not AP50 because compression costs the exact position first, which AP50 does not see.

    Args:
        data: images with boxes (`amc.data.boxes.DetectionData`).
        batch_size: images a forward pass when scoring.

    Raises:
        UserError: the data have no boxes, or pycocotools is not installed.
    """

    name = "detection"
    score_name = "mAP"
    distillable = False

    def __init__(self, data: ImageData, batch_size: int = 32) -> None:
        if not isinstance(data, DetectionData):
            raise UserError(f"The data set {data.name} has no boxes: choose shapes or voc.")
        require_pycocotools()
        self.data: ImageData = data
        self.batch_size = batch_size

    @property
    def detection_data(self) -> DetectionData:
        """The data, known to have boxes."""
        assert isinstance(self.data, DetectionData)
        return self.data

    def loss(self, model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
        """Focal + GIoU + centredness loss of images [B, C, H, W] with boxes [B, M, 5]; a scalar."""
        return detection_loss(model(x), y, x.shape[2])

    def score(self, model: nn.Module, split: str) -> float:
        """The mAP at IoU 0.5:0.95 on a split, in [0, 1]."""
        return self.precision(model, split).coco

    def scores(self, model: nn.Module, split: str) -> dict[str, float]:
        """The mAP and, beside it, the AP50 of older papers, on a split."""
        found = self.precision(model, split)
        return {self.score_name: found.coco, "AP50": found.half}

    def precision(self, model: nn.Module, split: str) -> AveragePrecision:
        """The mAP at IoU 0.5:0.95 and at 0.5 on a split."""
        found = self.detect(model, self.data.normalised(split))
        return average_precision(found, self.data.split(split).labels, self.data.classes)

    def detect(self, model: nn.Module, images: Tensor) -> list[Detections]:
        """What a model finds in normalised images [N, C, H, W]."""
        height, width = images.shape[2:]
        device = device_of(model)
        with evaluating(model):
            return [
                one
                for batch in images.split(self.batch_size)
                for one in decode(model(batch.to(device)), height, width)
            ]

    def agreement(self, expected: Tensor, said: Tensor) -> float:
        """Share of the sure detections in either maps [N, classes + 5, h, w] that the others have too."""
        height, width = self.data.shape[1:]
        return same_detections(decode(expected, height, width), decode(said, height, width))

    def traced(self, model: nn.Module) -> nn.Module:
        """The whole model: backbone and head up to the raw maps."""
        return model

    def features(self, model: nn.Module, x: Tensor) -> Tensor:
        """The feature map that enters the last convolution, flattened to [B, features]."""
        return maps_and_features(model, x)[1].flatten(1)

    def example_input(self) -> Tensor:
        """The first training image, normalised, [1, C, H, W]."""
        return self.data.normalise(self.data.train.images[:1])

    def calibration(
        self, images: int = 1000, batch_size: int = 200, seed: int = 0, augment: bool = False
    ) -> list[Tensor]:
        """Unlabeled training images, disjoint from the reward split."""
        return self.data.calibration(images, batch_size, seed, augment)

    def save_examples(self, networks: Mapping[str, nn.Module], folder: Path) -> None:
        """Write what networks find in the first images of the test split to `detections.npz`."""
        normalised = self.data.normalised("test")[:EXAMPLES]
        found = {name: self.detect(model, normalised) for name, model in networks.items()}
        part = self.data.split("test")
        examples = gather_examples(
            part.images[:EXAMPLES], part.labels[:EXAMPLES], found, self.data.class_names
        )
        save_examples(folder / EXAMPLES_FILE, examples)

    def check(self, model: nn.Module, name: str) -> None:
        """Send one blank image through a model, so that a misfit shows before any work.

        Raises:
            UserError: the model fails on it, or does not return a map [1, classes + 5, h, w].
        """
        image = torch.zeros(1, *self.data.shape, device=device_of(model))
        said = " x ".join(map(str, self.data.shape))
        try:
            with evaluating(model):
                maps = model(image)
        except Exception as error:  # a user's model may raise anything
            raise UserError(f"The model '{name}' fails on an image of {said}: {one_line(error)}.") from error
        channels = outputs(self.data.classes)
        if not isinstance(maps, Tensor) or maps.ndim != 4 or maps.shape[1] != channels:
            got = list(maps.shape) if isinstance(maps, Tensor) else f"a {type(maps).__name__}"
            raise UserError(
                f"The model '{name}' returns {got} for one image where a map [1, {channels}, h, w] is needed "
                "(amc.detection.maps): --model detector has it."
            )

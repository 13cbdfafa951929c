"""Image classification: cross-entropy and top-1 accuracy."""

from torch import Tensor, nn

from amc.data.boxes import DetectionData
from amc.data.images import ImageData
from amc.errors import UserError
from amc.models.registry import check_fits
from amc.training import accuracy, cross_entropy


def same_class(expected: Tensor, said: Tensor) -> float:
    """Share, 0 to 1, of the images with the same largest entry of their logits [N, classes]."""
    return float((expected.argmax(dim=1) == said.argmax(dim=1)).float().mean())


class ClassificationTask:
    """One label an image; the score is the share of images whose largest logit is the label's.

    Args:
        data: Images and labels.
        batch_size: Images a forward pass when scoring.

    Raises:
        UserError: The data have boxes instead of labels.
    """

    name = "classification"
    score_name = "accuracy"
    distillable = True

    def __init__(self, data: ImageData, batch_size: int = 200) -> None:
        if isinstance(data, DetectionData):
            raise UserError(f"The data set {data.name} has boxes: pass --task detection.")
        self.data = data
        self.batch_size = batch_size

    def check(self, model: nn.Module, name: str) -> None:
        """Refuse a model that does not return one logit a class; see `check_fits`."""
        check_fits(model, name, self.data.shape, self.data.classes)

    def loss(self, model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
        """Mean cross-entropy of a batch; a scalar."""
        return cross_entropy()(model, x, y)

    def score(self, model: nn.Module, split: str) -> float:
        """Top-1 accuracy on a split, in [0, 1]."""
        return accuracy(model, self.data.normalised(split), self.data.split(split).labels, self.batch_size)

    def agreement(self, expected: Tensor, said: Tensor) -> float:
        """Share of the images that both outputs [N, classes] give the same class."""
        return same_class(expected, said)

    def traced(self, model: nn.Module) -> nn.Module:
        """The whole model."""
        return model

    def features(self, model: nn.Module, x: Tensor) -> Tensor:
        """What enters the last linear layer, [B, features]; the output where there is none."""
        linears = [module for module in model.modules() if isinstance(module, nn.Linear)]
        if not linears:
            out: Tensor = model(x)
            return out.flatten(1)
        seen: list[Tensor] = []
        handle = linears[-1].register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
        try:
            model(x)
        finally:
            handle.remove()
        return seen[-1].flatten(1)

    def example_input(self) -> Tensor:
        """The first training image, normalised, [1, C, H, W]."""
        return self.data.normalise(self.data.train.images[:1])

    def calibration(
        self, images: int = 1000, batch_size: int = 200, seed: int = 0, augment: bool = False
    ) -> list[Tensor]:
        """Unlabeled training images, disjoint from the reward split."""
        return self.data.calibration(images, batch_size, seed, augment)

"""Training of a retrieval network by cross-entropy, one of the losses that the paper compares with."""

import torch.nn.functional as F
from torch import Tensor, nn

from amc.models.retrieval import RetrievalNet
from amc.retrieval.code import said
from amc.retrieval.quantize import soft_assignment, soft_vectors


class Classified(nn.Module):
    """A retrieval network with a linear classifier of softly quantized embeddings, for training alone.

    Args:
        net: what is wanted.
        classes: of the labels.
    """

    def __init__(self, net: RetrievalNet, classes: int) -> None:
        super().__init__()
        self.net = net
        self.classifier = nn.Linear(net.code.dimensions, classes)

    def forward(self, x: Tensor) -> Tensor:
        """Images [N, C, H, W] -> logits [N, classes]."""
        shares = soft_assignment(said(self.net(x), self.net.code).table)
        logits: Tensor = self.classifier(soft_vectors(shares, self.net.codebooks).flatten(1))
        return logits


def classification_loss(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    """Cross-entropy of a `Classified`; a scalar."""
    return F.cross_entropy(model(x), y)

"""A product quantization network on any classification backbone."""

import re

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from amc.retrieval.code import Code, code_of_bits

_NAME = re.compile(r"(?P<backbone>.+)-pqn(?P<bits>\d+)")


def split_name(name: str) -> tuple[str, Code] | None:
    """Backbone and code of a name such as `resnet20-pqn48`; None for other names.

    Raises:
        UserError: no code has that many bits.
    """
    found = _NAME.fullmatch(name)
    return (found["backbone"], code_of_bits(int(found["bits"]))) if found else None


class RetrievalNet(nn.Module):
    """A backbone whose logits are the embedding, and the codebooks; see `amc.retrieval.code`.

    Args:
        backbone: gives embeddings [N, M S].
        code: shape of the code.
    """

    def __init__(self, backbone: nn.Module, code: Code) -> None:
        super().__init__()
        self.code = code
        self.backbone = backbone
        # A fresh backbone gives all images nearly the same direction, and so the same words; with the mean of
        # the batch taken off, they begin all over the sphere.
        self.norm = nn.BatchNorm1d(code.dimensions)
        # One group a codebook: group m multiplies sub-vector m with its K words.
        self.words = nn.Conv2d(
            code.dimensions, code.subspaces * code.words, 1, groups=code.subspaces, bias=False
        )
        nn.init.normal_(self.words.weight)
        self.normalise_words()

    @torch.no_grad()
    def normalise_words(self) -> None:
        """Bring every word to length 1, in place."""
        self.words.weight.copy_(F.normalize(self.words.weight, dim=1))

    @property
    def codebooks(self) -> Tensor:
        """The words, [M, K, S]."""
        return self.words.weight.view(self.code.subspaces, self.code.words, self.code.size)

    def forward(self, x: Tensor) -> Tensor:
        """Images [N, C, H, W] -> tables and embeddings [N, M (K + S)]."""
        if self.training:
            # SGD on the sphere: a step leaves it, and the next forward pass begins by returning to it.
            self.normalise_words()
        embedding = self.norm(self.backbone(x))
        table = self.words(embedding.unflatten(1, (-1, 1, 1))).flatten(1)
        return torch.cat([table, embedding], dim=1)

"""Image retrieval by short codes: asymmetric triplet loss, mean average precision."""

from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor, nn

from amc.data.boxes import DetectionData
from amc.data.images import ImageData
from amc.errors import UserError
from amc.network import Network
from amc.plugins import one_line
from amc.retrieval.average_precision import mean_average_precision
from amc.retrieval.code import Said, code_of_outputs, said, words_of
from amc.retrieval.code_knob import find_codebooks
from amc.retrieval.code_length import RANKED_IMAGES, CodeLength, rank_subvectors
from amc.retrieval.faiss_index import faiss_index, require_faiss
from amc.retrieval.losses import asymmetric_triplet_loss
from amc.retrieval.neighbours import find_neighbours, save_neighbours
from amc.retrieval.quantize import hard_codes
from amc.retrieval.scores import asymmetric_scores, leave_one_out
from amc.training import device_of, evaluating

NEIGHBOURS_FILE = "neighbours.npz"
"""Example searches in a run directory."""
INDEX_FILE = "index.faiss"
"""The training images' codes beside an exported network."""


class RetrievalTask:
    """Images of the same class are to be found; the score is the mAP of a search among codes.

    In a split every image asks for all the others: queries in floats, the others as codes of whole bits,
    ranked by the inner product with what the codes stand for.

    Args:
        data: Images and labels.
        batch_size: Images a forward pass when scoring.

    Raises:
        UserError: The data have boxes instead of labels.
    """

    name = "retrieval"
    score_name = "mAP"
    distillable = False

    def __init__(self, data: ImageData, batch_size: int = 100) -> None:
        if isinstance(data, DetectionData):
            raise UserError(f"The data set {data.name} has boxes: pass --task detection.")
        self.data = data
        self.batch_size = batch_size

    def loss(self, model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
        """Asymmetric triplet loss of images [B, C, H, W] with labels [B]; a scalar."""
        return asymmetric_triplet_loss(said(model(x)), y)

    def score(self, model: nn.Module, split: str) -> float:
        """The mAP on a split, in [0, 1]."""
        outputs = self.outputs(model, self.data.normalised(split))
        labels = self.data.split(split).labels
        scores = asymmetric_scores(outputs.table, hard_codes(outputs.table))
        return mean_average_precision(leave_one_out(scores), leave_one_out(labels[:, None] == labels[None]))

    def outputs(self, model: nn.Module, images: Tensor) -> Said:
        """What a model gives for normalised images [N, C, H, W], on the CPU."""
        device = device_of(model)
        with evaluating(model):
            return said(torch.cat([model(some.to(device)).cpu() for some in images.split(self.batch_size)]))

    def compressors(self, network: Network) -> list[CodeLength]:
        """What shortens the codes: sub-vectors are ranked by what training images find with them.

        Raises:
            UserError: the network has no codebooks.
        """
        codebooks = find_codebooks(network)
        outputs = self.outputs(network.copy(), self.data.normalised("train")[:RANKED_IMAGES])
        return [CodeLength(codebooks, rank_subvectors(outputs.table, self.data.train.labels[:RANKED_IMAGES]))]

    def agreement(self, expected: Tensor, said: Tensor) -> float:
        """Share of the words that two outputs [N, M (K + S)] choose alike."""
        return _same_words(expected, said)

    def traced(self, model: nn.Module) -> nn.Module:
        """The whole model: embedding and codebooks."""
        return model

    def features(self, model: nn.Module, x: Tensor) -> Tensor:
        """The embedding, sub-vectors of length 1, [B, M S]."""
        return said(model(x)).vectors.flatten(1)

    def example_input(self) -> Tensor:
        """The first training image, normalised, [1, C, H, W]."""
        return self.data.normalise(self.data.train.images[:1])

    def calibration(
        self, images: int = 1000, batch_size: int = 200, seed: int = 0, augment: bool = False
    ) -> list[Tensor]:
        """Unlabeled training images, disjoint from the reward split."""
        return self.data.calibration(images, batch_size, seed, augment)

    def save_examples(self, networks: Mapping[str, nn.Module], folder: Path) -> None:
        """Write a few searches in the test split to `neighbours.npz`."""
        images = self.data.normalised("test")
        outputs = {name: self.outputs(model, images) for name, model in networks.items()}
        save_neighbours(folder / NEIGHBOURS_FILE, find_neighbours(self.data.test, outputs))

    def save_files(self, model: nn.Module, folder: Path) -> tuple[list[Path], list[str]]:
        """Write `index.faiss`: the training images as codes, searched by `Said.vectors` of a query, [1, M S].

        An entry's number is the image's place in the training split. Without faiss a sentence says so.
        """
        (folder / INDEX_FILE).unlink(missing_ok=True)  # one of an earlier network would answer for this one
        try:
            faiss = require_faiss()
        except UserError as error:
            return [], [f"No {INDEX_FILE} was written. {error}"]
        outputs = self.outputs(model, self.data.normalised("train"))
        index = faiss_index(words_of(outputs), hard_codes(outputs.table))
        faiss.write_index(index, str(folder / INDEX_FILE))
        return [folder / INDEX_FILE], []

    def check(self, model: nn.Module, name: str) -> None:
        """Send one blank image through a model, so that a misfit shows before any work.

        Raises:
            UserError: the model fails on it, or does not return tables and embeddings.
        """
        image = torch.zeros(1, *self.data.shape, device=device_of(model))
        shape = " x ".join(map(str, self.data.shape))
        try:
            with evaluating(model):
                outputs = model(image)
        except Exception as error:  # a user's model may raise anything
            raise UserError(f"The model '{name}' fails on an image of {shape}: {one_line(error)}.") from error
        if not isinstance(outputs, Tensor) or outputs.ndim != 2 or code_of_outputs(outputs.shape[1]) is None:
            got = list(outputs.shape) if isinstance(outputs, Tensor) else f"a {type(outputs).__name__}"
            raise UserError(
                f"The model '{name}' returns {got} for one image where codebooks are needed "
                f"(amc.retrieval.code): --model {name}-pqn24 puts codes of 24 bits behind it."
            )


def _same_words(expected: Tensor, found: Tensor) -> float:
    """Share of equal words in the codes of two outputs."""
    codes = [hard_codes(said(outputs).table) for outputs in (expected, found)]
    return float((codes[0] == codes[1]).float().mean())

"""Example searches for a report: a few queries and the images that networks find for them."""

import io
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from amc.data.images import Split
from amc.errors import UserError
from amc.files import write_atomically
from amc.plugins import one_line
from amc.retrieval.code import Said
from amc.retrieval.quantize import hard_codes
from amc.retrieval.scores import asymmetric_scores

QUERIES, SHOWN = 8, 8


@dataclass(frozen=True)
class Neighbours:
    """Queries and what each network finds.

    Attributes:
        queries: images, uint8 [Q, C, H, W].
        found: network's name to the images that it ranks first, uint8 [Q, SHOWN, C, H, W].
        right: network's name to whether those have the query's label, bool [Q, SHOWN].
    """

    queries: np.ndarray
    found: Mapping[str, np.ndarray]
    right: Mapping[str, np.ndarray]


def find_neighbours(split: Split, outputs: Mapping[str, Said]) -> Neighbours:
    """Ask for the first image of each of the first labels, in all other images of a split.

    Args:
        split: images and labels.
        outputs: network's name to what it gives for all images of the split.
    """
    asked = torch.tensor([int((split.labels == label).nonzero()[0, 0]) for label in split.labels.unique()])
    asked = asked[:QUERIES]
    places = {name: _nearest(said, asked) for name, said in outputs.items()}
    return Neighbours(
        split.images[asked].numpy(),
        {name: split.images[place].numpy() for name, place in places.items()},
        {name: (split.labels[place] == split.labels[asked, None]).numpy() for name, place in places.items()},
    )


def _nearest(said: Said, asked: Tensor) -> Tensor:
    """Places of the best images for each query, int64 [Q, SHOWN]; equal scores in stored order."""
    scores = asymmetric_scores(said.table[asked], hard_codes(said.table))
    scores[torch.arange(len(asked)), asked] = -torch.inf
    return scores.sort(dim=1, descending=True, stable=True).indices[:, :SHOWN]


def save_neighbours(path: Path, neighbours: Neighbours) -> None:
    """Write them as npz, whole or not at all."""
    arrays = {"queries": neighbours.queries}
    for name in neighbours.found:
        arrays[f"found/{name}"] = neighbours.found[name]
        arrays[f"right/{name}"] = neighbours.right[name]
    buffer = io.BytesIO()
    np.savez_compressed(buffer, allow_pickle=False, **arrays)
    write_atomically(path, buffer.getvalue())


def load_neighbours(path: Path) -> Neighbours:
    """Read what `save_neighbours` wrote.

    Raises:
        UserError: the file is damaged.
    """
    try:
        with np.load(path, allow_pickle=False) as file:
            arrays = dict(file)
        names = [key.removeprefix("found/") for key in arrays if key.startswith("found/")]
        found, right = ({name: arrays[f"{what}/{name}"] for name in names} for what in ("found", "right"))
        return Neighbours(arrays["queries"], found, right)
    except Exception as error:  # foreign bytes can fail in any way
        raise UserError(f"{path} does not hold example searches: {one_line(error)}.") from error

"""Additive codes of vectors: several codebooks, one entry of each added up; LSQ and LSQ++ (ECCV 2018)."""

from amc.codecs.additive import AdditiveCodec, StoredVectors, train_codec
from amc.codecs.encoding import LocalSearch
from amc.codecs.search import exact_neighbours, nearest, recall
from amc.codecs.training import Recipe, Trained, train

__all__ = [
    "AdditiveCodec",
    "LocalSearch",
    "Recipe",
    "StoredVectors",
    "Trained",
    "exact_neighbours",
    "nearest",
    "recall",
    "train",
    "train_codec",
]

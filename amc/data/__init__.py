"""Labelled images in memory, in three splits: train, reward (held out of train) and test."""

from amc.data.images import Augmentation, ImageData, Split
from amc.data.registry import load_data

__all__ = ["Augmentation", "ImageData", "Split", "load_data"]

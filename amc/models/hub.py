"""Networks of timm and torchvision by name, `timm:mobilenetv3_small_100` or `torchvision:resnet18`.

They are built with random weights; `amc.models.hub_weights` loads those that the library publishes.
"""

import difflib
import importlib
import importlib.machinery
import importlib.util
import warnings
from collections.abc import Callable
from functools import partial
from types import ModuleType
from typing import Any

import torch
from torch import library as torch_library
from torch import nn

from amc.errors import UserError

INSTALL = 'pip install "amc-compress[hub]"'
BOX_OPERATORS = {
    "nms": "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
    "qnms": "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
}
"""The compiled operators that torchvision describes at its import, whether or not they are there."""

_defined: list[torch_library.Library] = []


def hub_builder(name: str) -> Callable[..., nn.Module] | None:
    """The function that builds `library:architecture`; None if the name is of another form.

    Raises:
        UserError: the library is not installed, or does not have the architecture.
    """
    library, colon, architecture = name.partition(":")
    if not colon or library not in _FINDERS:
        return None
    names, builder = _FINDERS[library](import_library(library))
    if architecture not in names:
        close = difflib.get_close_matches(architecture.lower(), names, n=1, cutoff=0.5)
        hint = f": did you mean '{library}:{close[0]}'?" if close else f"; it has {len(names)} others."
        raise UserError(f"{library} has no image classifier '{architecture}'{hint}")
    return partial(builder, architecture)


def import_library(name: str) -> ModuleType:
    """A library of networks, even where the operators that were compiled for torchvision do not load.

    Raises:
        UserError: it is not installed or does not import.
    """
    if importlib.util.find_spec(name) is None:
        raise UserError(f"Models of {name} need an extra: {INSTALL}.")
    _define_missing_operators()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return importlib.import_module(name)
    except Exception as error:  # a mismatch with the installed torch may show in any way
        raise UserError(
            f"{name} does not import next to torch {torch.__version__} ({type(error).__name__}): {INSTALL}."
        ) from error


def _define_missing_operators() -> None:
    """Give torchvision, which timm imports too, the names of its box operators where they did not load.

    Its wheel for another torch (with CUDA, say) fails to import otherwise. No classifier calls them.
    """
    if _defined or importlib.util.find_spec("torchvision") is None or _compiled_operators_load():
        return
    _defined.append(torch_library.Library("torchvision", "FRAGMENT"))
    for operator, signature in BOX_OPERATORS.items():
        _defined[0].define(operator + signature)


def _compiled_operators_load() -> bool:
    spec = importlib.util.find_spec("torchvision")
    folders = spec.submodule_search_locations if spec is not None else None
    finder = importlib.machinery.PathFinder.find_spec("_C", list(folders or ()))
    if finder is None or finder.origin is None:
        return False
    try:
        torch.ops.load_library(finder.origin)
    except OSError:
        return False
    return True


def _timm(library: ModuleType) -> tuple[list[str], Callable[..., nn.Module]]:
    def build(architecture: str, classes: int, in_channels: int) -> nn.Module:
        # Exportable: activations as plain torch.nn modules in the place of ones that save training memory.
        options: dict[str, Any] = {"pretrained": False, "exportable": True}
        return library.create_model(architecture, num_classes=classes, in_chans=in_channels, **options)

    return library.list_models(), build


def _torchvision(library: ModuleType) -> tuple[list[str], Callable[..., nn.Module]]:
    def build(architecture: str, classes: int, in_channels: int) -> nn.Module:
        if in_channels != 3:
            raise UserError(f"torchvision:{architecture} reads 3 channels and the images have {in_channels}.")
        # Heads that only training uses would be channels that no output depends on.
        # The published weights of the same two read images of another normalisation, which they compute.
        two = architecture in ("googlenet", "inception_v3")
        options = {"aux_logits": False, "transform_input": True} if two else {}
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about a slow initialisation
            return library.models.get_model(architecture, weights=None, num_classes=classes, **options)

    return library.models.list_models(module=library.models), build


_FINDERS: dict[str, Callable[[ModuleType], tuple[list[str], Callable[..., nn.Module]]]] = {
    "timm": _timm,
    "torchvision": _torchvision,
}

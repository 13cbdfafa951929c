"""From a name on the command line to a network."""

import difflib
import importlib
from collections.abc import Callable
from typing import Any, TypeVar

import torch
from torch import nn

from amc.errors import UserError
from amc.models.hub import hub_builder
from amc.models.retrieval import RetrievalNet, split_name
from amc.plugins import accepted, call_factory, is_import_path, load_factory, one_line
from amc.training import device_of, evaluating

Builder = TypeVar("Builder", bound=Callable[..., nn.Module])

_BUILDERS: dict[str, Callable[..., nn.Module]] = {}
_TASK_OF: dict[str, str] = {}
_BUILT_IN = ("concat", "detector", "digits", "mobilenet", "resnet_cifar", "scattering", "three_conv", "vgg")


def register_model(name: str, task: str = "classification") -> Callable[[Builder], Builder]:
    """Decorate a function that builds a network, so that `build_model(name, ...)` finds it.

    The function may take any of the keywords `classes`, `in_channels`, `width` and `small_input`. `task` says
    what the network is for.
    """

    def register(builder: Builder) -> Builder:
        if name in _BUILDERS:
            raise ValueError(f"a model called '{name}' is registered already")
        _BUILDERS[name], _TASK_OF[name] = builder, task
        return builder

    return register


def list_models(task: str | None = "classification") -> list[str]:
    """Names of the registered networks for a task, or of all with None, in alphabetical order."""
    # Imported here and not above: those files import this one to register themselves.
    for module in _BUILT_IN:
        importlib.import_module(f"amc.models.{module}")
    return sorted(name for name in _BUILDERS if task in (None, _TASK_OF[name]))


def build_model(
    name: str, classes: int = 10, in_channels: int = 3, width: float = 1.0, small_input: bool = True
) -> nn.Module:
    """Build a network with fresh random weights.

    Args:
        name: A registered name, `timm:NAME`, `torchvision:NAME`, or `package.module:factory`. Such a factory
            is called with those of the keywords below (and `num_classes`) that its signature names. Any of
            them with `-pqn24` behind it gives codes of 24 bits; see `amc.models.retrieval`.
        classes: Number of outputs.
        in_channels: Channels of the input images.
        width: Multiplier of all channel counts, where the network has one.
        small_input: For images of about 32 pixels: fewer strides at the start.

    Raises:
        UserError: The name is unknown, the width cannot be changed, or the factory fails.
    """
    retrieval = split_name(name)
    if retrieval is not None:
        backbone, code = retrieval
        embedding = build_model(backbone, code.dimensions, in_channels, width, small_input)
        return RetrievalNet(embedding, code)
    builder = _find(name)
    if width != 1 and "width" not in accepted(builder):
        raise UserError(f"The model '{name}' has no width multiplier.")
    if not 0 < width <= 16:
        raise UserError(f"A width multiplier must lie in (0, 16], not at {width:g}.")
    options: dict[str, Any] = {
        "classes": classes,
        "num_classes": classes,
        "in_channels": in_channels,
        "width": width,
        "small_input": small_input,
    }
    model = call_factory(name, builder, options)
    if not isinstance(model, nn.Module):
        raise UserError(f"The factory '{name}' returned a {type(model).__name__}, not a torch.nn.Module.")
    return model


def check_fits(model: nn.Module, name: str, shape: tuple[int, int, int], classes: int) -> None:
    """Send one blank image [C, H, W] through a classifier, so that a misfit shows before any work.

    Raises:
        UserError: The model fails on it, or does not return logits [1, classes].
    """
    image = torch.zeros(1, *shape, device=device_of(model))
    said = " x ".join(map(str, shape))
    try:
        with evaluating(model):
            logits = model(image)
    except Exception as error:  # a user's model may raise anything
        raise UserError(f"The model '{name}' fails on an image of {said}: {one_line(error)}.") from error
    if not isinstance(logits, torch.Tensor) or logits.shape != (1, classes):
        got = list(logits.shape) if isinstance(logits, torch.Tensor) else f"a {type(logits).__name__}"
        raise UserError(f"The model '{name}' returns {got} for one image where [1, {classes}] is needed.")


def _find(name: str) -> Callable[..., nn.Module]:
    names = list_models(None)
    if name in names:
        return _BUILDERS[name]
    from_library = hub_builder(name)
    if from_library is not None:
        return from_library
    if is_import_path(name):
        return load_factory(name)
    close = difflib.get_close_matches(name.lower(), names, n=1, cutoff=0.5)
    classifiers_first = sorted(names, key=lambda known: _TASK_OF[known] != "classification")
    listed = f"choose {', '.join(classifiers_first)}, timm:NAME, torchvision:NAME or package.module:factory."
    hint = f"did you mean '{close[0]}'?" if close else listed
    raise UserError(f"There is no model '{name}': {hint}")

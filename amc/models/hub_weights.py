"""The trained weights that timm and torchvision publish, for networks that are named without a file."""

import socket
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import ModuleType

from torch import Tensor, nn

from amc.models.hub import import_library
from amc.plugins import one_line

TIMEOUT_S = 10.0
"""Seconds that a connection may take, so that a machine without a network goes on at once."""
Weights = dict[str, Tensor]


def load_library_weights(name: str, model: nn.Module) -> str:
    """Give a network of a library the weights that the library publishes for it, as far as they fit.

    Args:
        name: `library:architecture`; of another form nothing happens.
        model: built by that name, for as many classes and channels as the images have; changed in place.

    Returns:
        A sentence about what stays random; "" where nothing does.
    """
    library, _, architecture = name.partition(":")
    if library not in _DOWNLOADS:
        return ""
    try:
        with _patience():
            found = _DOWNLOADS[library](import_library(library), architecture)
    except Exception as error:  # no network, no such weights, a full disk: each library has errors of its own
        why = f"none of {library} could be loaded ({one_line(error)})"
        return f"{name} has random weights, as {why}."
    own = model.state_dict()
    fitting = {key: value for key, value in found.items() if key in own and value.shape == own[key].shape}
    model.load_state_dict(fitting, strict=False)
    random = [key for key, _ in model.named_parameters() if key not in fitting]
    if not random:
        return ""
    listed = f"{', '.join(random[:4])}{f' and {len(random) - 4} more' if len(random) > 4 else ''}"
    return (
        f"{name} has the trained weights of {library}, which do not fit these images in {listed}: those stay "
        "random."
    )


@contextmanager
def _patience() -> Iterator[None]:
    """Bound what a connection may take, and keep the libraries quiet."""
    before = socket.getdefaulttimeout()
    socket.setdefaulttimeout(TIMEOUT_S)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        socket.setdefaulttimeout(before)


def _timm(library: ModuleType, architecture: str) -> Weights:
    weights: Weights = library.create_model(architecture, pretrained=True, exportable=True).state_dict()
    return weights


def _torchvision(library: ModuleType, architecture: str) -> Weights:
    chosen = library.models.get_model_weights(architecture).DEFAULT
    weights: Weights = chosen.get_state_dict(progress=False)
    return weights


_DOWNLOADS: dict[str, Callable[[ModuleType, str], Weights]] = {"timm": _timm, "torchvision": _torchvision}

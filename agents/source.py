"""From the names in a configuration to the trained network, its task and the device."""

import sys

import torch
from torch import nn

from agents.cooling_nesting import is_nested, load_nested, restart
from agents.run_config import SourceConfig
from amc.data import load_data
from amc.errors import UserError
from amc.models import build_model, list_models
from amc.models.hub_weights import load_library_weights
from amc.models.retrieval import split_name
from amc.models.weights import load_state, read_weights
from amc.network import trace
from amc.quantization.registry import QuantizerNames
from amc.tasks import load_task
from amc.tasks.base import ModelCheck, Task

SMALL_SIDE = 64
"""Images up to this side skip the early strides that networks for large images have."""


def load_source(source: SourceConfig) -> tuple[nn.Module, Task]:
    """The trained model and the task that a configuration names.

    The weights may be what a round of a cooled search has left; the model is then the smaller network. A
    network of timm or torchvision without a file gets the weights that the library publishes; what stays
    random is said on standard error.

    Raises:
        UserError: model, weights, data or task is missing or does not fit.
    """
    backbone, _ = split_name(source.model) or (source.model, None)
    if source.weights is None and backbone in list_models(None):
        raise UserError(
            f"{source.model} needs trained weights: pass --weights FILE (scripts/pretrain.py makes one)."
        )
    # Before the data, which may take minutes to read.
    nested = source.weights is not None and is_nested(source.weights)
    weights = None if source.weights is None or nested else read_weights(source.weights)
    data = load_data(source.data, source.data_root, source.side)
    channels, height, _ = data.shape
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)  # what stays random is the same whenever a run is opened
        model = build_model(source.model, data.classes, channels, source.width, height <= SMALL_SIDE)
    if source.weights is not None and weights is not None:
        load_state(model, weights, source.weights)
    note = load_library_weights(source.model, model) if source.weights is None else ""
    if note:
        print(f"note: {note} Train it (scripts/pretrain.py) and pass --weights FILE.", file=sys.stderr)
    task = load_task(source.task, data)
    if nested and source.weights is not None:
        original = trace(task.traced(model), task.example_input())
        model = restart(load_nested(source.weights, original, QuantizerNames()))
    if isinstance(task, ModelCheck):
        task.check(model, source.model)
    return model, task


def prepare_device(source: SourceConfig) -> str:
    """Set the thread count; returns the device for scoring.

    Raises:
        UserError: cuda is asked for and absent, or the thread count is negative.
    """
    if source.device == "cuda" and not torch.cuda.is_available():
        raise UserError("PyTorch finds no GPU here: use --device auto or cpu.")
    if source.threads < 0:
        raise UserError(f"--threads must be 0 or more, not {source.threads}.")
    if source.threads:
        torch.set_num_threads(source.threads)
    return "cuda" if source.device != "cpu" and torch.cuda.is_available() else "cpu"

"""What all tests share: one thread, and each reference network traced once."""

import functools
import os
from collections.abc import Callable, Iterator
from importlib.util import find_spec

import numpy as np
import pytest
import torch
from threadpoolctl import threadpool_limits

from amc.models import build_model, list_models
from amc.network import Network, trace

MODELS = tuple(list_models())
WIDTHS = {
    **{"concatnet": 0.5, "digitsnet": 0.5, "mobilenet_v1": 0.25, "mobilenet_v2": 0.25, "vgg16": 0.125},
    **{f"{front}_resnet_j{scales}": 0.125 for front in ("scattering", "strided") for scales in (2, 3)},
}
"""Narrower where a network can be: the same graph, traced and run faster."""
EXTRAS = {"cluster": ("ray", "pyarrow", "pandas"), "hub": ("timm", "torchvision", "datasets")}
"""What `make test` does without, to its packages: tests marked `extra` are those of `make test-extras`."""


def pytest_runtest_setup(item: pytest.Item) -> None:
    """Skip a test whose extra is not installed."""
    for mark in item.iter_markers("extra"):
        (extra,) = mark.args
        if not all(map(find_spec, EXTRAS[extra])):
            pytest.skip(f'needs pip install "amc-compress[{extra}]"; make test-extras has it')


@pytest.fixture(autouse=True, scope="session")
def one_thread() -> Iterator[None]:
    """Networks this small run slower on several threads, on a busy machine thirty times slower."""
    torch.set_num_threads(1)
    os.environ["OMP_NUM_THREADS"] = "1"  # for the processes that tests start
    with threadpool_limits(1):
        yield


@pytest.fixture(autouse=True, scope="session")
def no_final_milliseconds() -> Iterator[None]:
    """Searches end without measuring milliseconds, which takes seconds; its own test measures."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("agents.compress.measure_outcomes", lambda run, outcomes: (outcomes, ""))
        yield


@pytest.fixture(autouse=True, scope="module")
def no_pictures(request: pytest.FixtureRequest) -> Iterator[None]:
    """Searches log no picture of each best policy, which takes as long as an evaluation; its tests do."""
    with pytest.MonkeyPatch.context() as patch:
        if not request.module.__name__.endswith("test_tensorboard"):
            patch.setattr("agents.tensorboard.policy_figure", lambda policy, widths, title: None)
            patch.setattr("agents.tensorboard.figure_image", lambda figure: np.zeros((1, 1, 3), np.uint8))
        yield


@functools.cache
def _traced(name: str) -> Network:
    torch.manual_seed(0)
    channels = 1 if name == "digitsnet" else 3
    model = build_model(name, in_channels=channels, width=WIDTHS.get(name, 1.0))
    for module in model.modules():
        if isinstance(module, torch.nn.BatchNorm2d):  # statistics and factors that are not all alike
            torch.nn.init.uniform_(module.weight, 0.5, 1.5)
            torch.nn.init.normal_(module.bias, std=0.2)
            torch.nn.init.normal_(module.running_mean, std=0.2)
            torch.nn.init.uniform_(module.running_var, 0.5, 1.5)
    return trace(model, torch.zeros(1, channels, 32, 32))


@pytest.fixture
def traced() -> Callable[[str], Network]:
    """Traces a registered network, once a session; the result is shared and must not be changed."""
    return _traced

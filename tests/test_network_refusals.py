"""What tracing refuses in one sentence, and how networks are told apart."""

import sys
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from amc.errors import UserError
from amc.models import build_model
from amc.network import trace
from tests.test_network import IMAGE, conv_bn, head


class Branching(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(x) if x.sum() > 0 else x


def test_control_flow_is_refused_in_one_sentence():
    with pytest.raises(UserError, match="Branching cannot be traced") as caught:
        trace(Branching(), IMAGE)
    assert "\n" not in str(caught.value)


def test_network_without_layers_is_refused():
    with pytest.raises(UserError, match="no Conv2d or Linear layer"):
        trace(nn.Sequential(nn.ReLU(), nn.BatchNorm2d(3)), IMAGE)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_weights_that_are_not_finite_are_refused(value):
    model = nn.Sequential(conv_bn(3, 4), head(4))
    model[0][1].running_var[2] = value
    with pytest.raises(UserError, match=r"NaN or infinite values, first in 0\.1\.running_var"):
        trace(model, IMAGE)


def test_example_of_a_wrong_shape_is_refused():
    with pytest.raises(UserError, match=r"does not accept an input of shape \[1, 1, 8, 8\]"):
        trace(nn.Sequential(conv_bn(3, 4), head(4)), torch.zeros(1, 1, 8, 8))


def test_own_network_by_import_path(tmp_path: Path, monkeypatch):
    code = "from torch import nn\ndef make(classes):\n    return nn.Sequential(nn.Flatten(), "
    (tmp_path / "own_network_for_test.py").write_text(code + "nn.Linear(192, 7), nn.Linear(7, classes))\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    network = trace(build_model("own_network_for_test:make", classes=4), IMAGE)
    assert [(layer.in_channels, layer.out_channels) for layer in network.layers] == [(192, 7), (7, 4)]
    assert set(network.frozen_reasons()) == {"2"}


def test_fingerprint_tells_architectures_apart_and_ignores_weights():
    def fingerprint(width: int) -> str:
        return trace(nn.Sequential(conv_bn(3, width), head(width)), IMAGE).fingerprint

    assert fingerprint(4) == fingerprint(4) != fingerprint(5)

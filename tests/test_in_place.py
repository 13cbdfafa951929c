"""In-place operations in forward passes: nothing that follows the graph's edges may miss a change."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from amc.errors import UserError
from amc.export import check_export, export_onnx
from amc.network import trace


class Net(nn.Module):
    """Two convolutions with something in place between them."""

    def __init__(self, between: Callable[["Net", Tensor, Tensor], Tensor]) -> None:
        super().__init__()
        self.between = between
        self.first, self.second = nn.Conv2d(3, 6, 3, padding=1), nn.Conv2d(6, 6, 3, padding=1)
        self.active, self.drop = nn.ReLU(inplace=True), nn.Dropout(inplace=False)
        self.last = nn.Linear(6, 4)

    def forward(self, x: Tensor) -> Tensor:
        a = self.first(x)
        return self.last(self.between(self, a, self.second(a)).mean((2, 3)))


def statement(net: Net, a: Tensor, b: Tensor) -> Tensor:
    torch.relu_(a)
    return a + b


def sum_as_a_statement(net: Net, a: Tensor, b: Tensor) -> Tensor:
    a.add_(b)
    return torch.relu(a)


def twice(net: Net, a: Tensor, b: Tensor) -> Tensor:
    a.add_(b)
    F.relu(a, inplace=True)
    return a * 2


def shortcut_of_an_activation(net: Net, a: Tensor, b: Tensor) -> Tensor:
    return net.active(a) + b + a


def through_dropout(net: Net, a: Tensor, b: Tensor) -> Tensor:
    same = net.drop(a)
    net.active(same)
    return a + b


def view_of_a_changed_tensor(net: Net, a: Tensor, b: Tensor) -> Tensor:
    flat = a.flatten(2)
    a.add_(b)
    return torch.relu(flat.mean(2))[:, :, None, None]


def half_of_a_tensor(net: Net, a: Tensor, b: Tensor) -> Tensor:
    left, _ = a.chunk(2, 1)
    left.relu_()
    return a + b


ALL = (statement, sum_as_a_statement, twice, shortcut_of_an_activation, through_dropout)


@pytest.mark.parametrize("between", ALL)
def test_files_hold_what_was_changed_in_place(between: Callable, tmp_path: Path):
    torch.manual_seed(0)
    net, x = Net(between).eval(), torch.randn(8, 3, 6, 6)
    with torch.no_grad():
        expected = net(x)
    network = trace(net, x)
    with torch.no_grad():
        torch.testing.assert_close(network.copy()(x), expected)
    exported = export_onnx(network.module, x[:1], tmp_path / "model.onnx")
    figures = check_export(exported.path, network.module, x)
    assert exported.exporter == "amc" and all(each.relative_error < 1e-4 for each in figures.values())
    changes = [n for n in network.module.graph.nodes if n.op.startswith("call") and not n.users]
    assert changes == []


@pytest.mark.parametrize(
    ("between", "words"),
    [
        (view_of_a_changed_tensor, "add_ changes flatten in place, which mean"),
        (half_of_a_tensor, "relu_ changes first in place, which add"),
    ],
)
def test_a_change_that_readers_see_in_another_form_is_refused(between: Callable, words: str):
    with pytest.raises(UserError, match=words):
        trace(Net(between), torch.zeros(1, 3, 6, 6))


class Scaled(Net):
    def forward(self, x: Tensor) -> Tensor:
        x.mul_(2)
        return super().forward(x)


class Counting(Net):
    def __init__(self, between: Callable) -> None:
        super().__init__(between)
        self.factor = nn.Parameter(torch.ones(1))

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x * self.factor.add_(1))


@pytest.mark.parametrize("kind", [Scaled, Counting])
def test_a_change_that_outlasts_the_forward_pass_is_refused(kind: type[Net]):
    x = torch.randn(1, 3, 6, 6)
    before = x.clone()
    with pytest.raises(UserError, match="in place, which outlasts the forward pass"):
        trace(kind(statement), x)
    assert torch.equal(x, before)

"""The worked example of docs/extending.md does what the document says."""

import re
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from amc.compress import apply
from amc.costs.latency.features import LAYER_FEATURES, LatencyFeatures
from amc.costs.symbolic import symbolic_costs
from amc.decomposition.operator import Operator
from amc.decomposition.registry import get_operator
from amc.decomposition.shapes import shaped
from amc.errors import UserError
from amc.export import check_export, export_onnx
from amc.network import Network, trace
from amc.package import Architecture, Package, load_package, save_package
from amc.package_form import packed_form
from amc.policy import CompressionPolicy, LayerDecision
from envs.operators import make_operator_knobs
from envs.problem_config import ProblemConfig
from tests.operator_pieces import compressors, executed_macs, random_policies, space_of, walk_under

DOCUMENT = Path(__file__).parent.parent / "docs" / "extending.md"
NAME = "my_operators:KernelCrop"


@pytest.fixture
def operator(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Operator:
    """The class of the document, imported from a file in the current folder."""
    (snippet,) = re.findall(r"```python\n(.*?)```", DOCUMENT.read_text(), re.DOTALL)
    (tmp_path / "my_operators.py").write_text(snippet)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(__import__("sys").modules, "my_operators", raising=False)
    get_operator.cache_clear()
    return get_operator(NAME)


@pytest.fixture
def network() -> Network:
    torch.manual_seed(0)
    model = nn.Sequential(
        *(nn.Conv2d(3, 8, 5, padding=2, bias=False), nn.BatchNorm2d(8), nn.ReLU()),
        *(nn.Conv2d(8, 12, 3, stride=2, padding=1), nn.ReLU()),
        *(nn.Conv2d(12, 12, 3), nn.ReLU()),
        *(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(12, 5)),
    )
    return trace(model.eval(), torch.zeros(1, 3, 12, 12))


def cropped(network: Network, amounts: dict[str, int]) -> CompressionPolicy:
    decisions = [
        LayerDecision(layer.name, {"amount": amounts[layer.name]}, NAME)
        if layer.name in amounts
        else LayerDecision(layer.name)
        for layer in network.layers
    ]
    return CompressionPolicy(network.fingerprint, tuple(decisions))


def test_layers_offer_it_where_it_applies(operator: Operator, network: Network):
    space = space_of(network, (NAME, "filter-groups"))
    offered = {point.name: (*space.choice.amounts[point.name],) for point in space.points}
    assert offered == {"0": (1, 2), "3": (1, 2), "5": (2,), "9": ()}
    assert space.choice.amounts["0"][1] == (1, 3)


def test_the_agent_chooses_it_and_costs_are_those_of_what_runs(operator: Operator, network: Network):
    space = space_of(network, (NAME, "filter-groups"))
    costs, seen = symbolic_costs(space), set()
    for policy in random_policies(walk_under(space, macs=0.4), 15):
        table, model = space.table(policy), apply(policy, network, compressors(network))
        assert costs["macs"].of(table) == executed_macs(model, torch.zeros(1, 3, 12, 12))
        assert costs["params"].of(table) == sum(p.numel() for p in model.parameters())
        seen |= {decision.operator for decision in policy.decisions}
    assert NAME in seen


def test_it_computes_the_middle_of_the_kernels(operator: Operator, network: Network):
    model = apply(cropped(network, {"0": 3}), network, compressors(network))
    masked, x = network.copy(), torch.randn(2, 3, 12, 12)
    with torch.no_grad():
        rim = np.array([[0, 0, 0, 0, 0], *[[0, 1, 1, 1, 0]] * 3, [0, 0, 0, 0, 0]])
        masked.get_submodule("0").weight.mul_(torch.from_numpy(rim))
        torch.testing.assert_close(model(x), masked(x))


def test_packages_and_exported_files_need_no_more_code(operator: Operator, network: Network, tmp_path: Path):
    policy = cropped(network, {"0": 3, "3": 1})
    model, x = apply(policy, network, compressors(network)), torch.randn(8, 3, 12, 12)
    known = Architecture("example", 5, (3, 12, 12))
    loaded = load_package(save_package(tmp_path, Package(model, policy, {}, known), network), network)
    with torch.no_grad():
        assert torch.equal(loaded.module(x), packed_form(model, network)(x))
    exported = export_onnx(model, x, tmp_path / "model.onnx")
    assert exported.exporter == "amc"
    assert all(f.relative_error < 1e-4 for f in check_export(exported.path, model, x).values())


def test_the_latency_predictor_knows_its_parts(operator: Operator, network: Network):
    knobs, _ = make_operator_knobs(ProblemConfig(budget=("latency=0.5",), operators=(NAME,)), network)
    assert knobs and knobs[0].names == (NAME,)
    space = space_of(network, (NAME,))
    features, table = LatencyFeatures(space, (1, 1)), space.table(cropped(network, {"0": 3, "3": 1}))
    fewer = (features.of(space.original()) - features.of(table)).reshape(-1)
    conv = network.module.get_submodule("0")
    assert isinstance(conv, nn.Conv2d) and str(shaped(operator, conv, 3)) == str(operator.fit(conv, 3))
    costs = symbolic_costs(space)["macs"]
    saved = costs.of(space.original()) - costs.of(table)
    whole = features.size - features._border_size
    by_kind = fewer[:whole][~features.specific[:whole]].reshape(-1, LAYER_FEATURES)
    assert by_kind[:, 0].sum() == saved


def test_what_is_no_operator_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    (tmp_path / "no_operator.py").write_text("class Crop:\n    pass\n")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match="gives no amc"):
        get_operator("no_operator:Crop")

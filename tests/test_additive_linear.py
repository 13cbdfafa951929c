"""Additive codes in the place of large linear layers: size, gradients, package, export and search."""

from copy import deepcopy
from dataclasses import replace

import pytest
import torch
from torch import Tensor, fx, nn

from agents.compress import compress
from agents.config import SearchConfig
from amc.compress import apply
from amc.costs.symbolic import symbolic_costs
from amc.data.digits import digits
from amc.decomposition.additive_linear import AdditiveCodes, AdditiveLinear, stored_bytes
from amc.decomposition.operator import legal_amounts
from amc.decomposition.registry import get_operator
from amc.decomposition.replacement import OperatorReplacement
from amc.decomposition.responses import Responses
from amc.export.model import write_file
from amc.inference import inference_form
from amc.network import Network, trace
from amc.package import Architecture, Package, file_bytes, kept_by, load_package, save_package
from amc.package_form import packed_form
from amc.policy import CompressionPolicy
from amc.pruning.reconstruction import InputMoments
from amc.recovery.calibrate import calibrate
from amc.targets import get_target
from amc.tasks import ClassificationTask
from envs.problem_config import ProblemConfig
from tests.operator_pieces import compressors, policy_with, space_of

NAME = "additive-codes"


class Dense(nn.Module):
    """A hidden layer of 20,480 weights between a convolution and ten logits."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(1, 10, 3, 2, 1)
        self.hidden = nn.Linear(160, 128)
        self.norm = nn.BatchNorm1d(128)
        self.last = nn.Linear(128, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.conv(x)).flatten(1)
        return self.last(torch.relu(self.norm(self.hidden(x))))


@pytest.fixture(scope="module")
def network() -> Network:
    torch.manual_seed(0)
    return trace(Dense().eval(), torch.zeros(1, 1, 8, 8))


def coded(network: Network, codes: int = 2, width: int = 128) -> tuple[CompressionPolicy, fx.GraphModule]:
    """A policy that codes the hidden layer with this many outputs left, and its network, calibrated."""
    widths = {layer.name: layer.out_channels for layer in network.layers} | {"hidden": width}
    decisions = policy_with(network, {"hidden": (NAME, codes)}, weight_bits=32, activation_bits=32).decisions
    decisions = tuple(replace(d, values={**d.values, "width": widths[d.point]}) for d in decisions)
    policy = CompressionPolicy(network.fingerprint, decisions)
    model = apply(policy, network, compressors(network))
    calibrate(model, [torch.randn(32, 1, 8, 8)])
    return policy, model.eval()


def test_only_large_linear_layers_may_be_coded():
    operator = get_operator(NAME)
    assert legal_amounts(operator, nn.Linear(160, 128)) == (1, 2, 3, 4)
    assert legal_amounts(operator, nn.Linear(160, 10)) == ()
    assert operator.obstacle(nn.Linear(160, 10)) == "it has fewer than 8,192 weights"
    assert operator.obstacle(nn.Conv2d(64, 64, 3)) == "a Conv2d is no linear layer"


@pytest.mark.parametrize(("width", "codes"), [(128, 1), (96, 3)])
def test_the_budget_is_charged_what_the_package_stores(width: int, codes: int, network: Network, tmp_path):
    """To the byte, also where channels are gone; and what comes back computes the same, bit for bit."""
    policy, model = coded(network, codes, width)
    layer = model.get_submodule("hidden")
    assert isinstance(layer, AdditiveLinear)
    stored = sum(part.numel() * part.element_size() for part in layer.packed().values())
    assert stored == stored_bytes(160, width, codes)
    kept = kept_by(compressors(network), network, policy)
    package = Package(model, policy, kept, Architecture("tests", 10, (1, 8, 8)))
    path = save_package(tmp_path, package, network)
    space = space_of(network, (NAME,))
    assert file_bytes(path)[1] == symbolic_costs(space)["size"].of(space.table(policy))
    loaded, x = load_package(tmp_path, network).module, torch.randn(4, 1, 8, 8)
    with torch.no_grad():
        assert torch.equal(loaded(x), packed_form(model, network)(x))
        assert torch.allclose(loaded(x), model(x), atol=1e-4)
    assert torch.equal(loaded.get_submodule("hidden").weight, layer.weight)


def test_codes_fit_the_weight_and_gradients_reach_codebooks_and_scales():
    torch.manual_seed(0)
    linear = nn.Linear(64, 256)
    linear.weight.data = torch.randn(256, 4) @ torch.randn(4, 64)  # what codes can exploit
    with torch.no_grad():
        fits = [AdditiveCodes().fit(linear, codes).weight for codes in (1, 4)]
        errors = [float((fit - linear.weight).square().mean()) for fit in fits]
        assert errors[1] < 0.5 * errors[0] < 0.5 * float(linear.weight.square().mean())
    layer = AdditiveCodes().fit(linear, 2)
    layer(torch.randn(5, 64)).square().sum().backward()
    assert layer.codebooks.grad.abs().sum() > 0 and layer.scales.grad.abs().sum() > 0
    plain = layer.plain()
    assert type(plain) is nn.Linear and torch.equal(plain.weight, layer.weight)


def test_the_forms_that_run_compute_the_same(network: Network, tmp_path):
    _, model = coded(network)
    x = torch.randn(4, 1, 8, 8)
    with torch.no_grad():
        expected = model(x)
        assert torch.allclose(inference_form(model)(x), expected, atol=1e-5)
    write_file(model, network.example, tmp_path / "m.onnx")
    with get_target("onnxruntime") as target:
        found = torch.from_numpy(target.run(tmp_path / "m.onnx", x.numpy()))
    assert torch.allclose(found, expected, atol=1e-4)


def test_responses_that_no_fit_looks_at_are_not_computed(network: Network, monkeypatch: pytest.MonkeyPatch):
    policy, _ = coded(network)
    columns = network.module.get_submodule("hidden").get_parameter("weight").shape[1]
    moments = {"hidden": InputMoments(torch.eye(columns).double(), torch.zeros(columns).double())}
    monkeypatch.setattr(Responses, "of", lambda *_: pytest.fail("responses were computed"))
    model = deepcopy(network.module)
    OperatorReplacement(lambda *_: {}, moments).apply(model, network, policy)
    assert isinstance(model.get_submodule("hidden"), AdditiveLinear)


def test_a_search_under_size_codes_the_large_layer():
    torch.manual_seed(0)
    task = ClassificationTask(digits(8))
    problem = ProblemConfig(
        budget=("size=0.2",),
        operators=(NAME,),
        min_keep=1.0,
        weight_bits=(32,),
        activation_bits=(32,),
        target="onnxruntime",
        final_images=100,
    )
    found = compress(Dense().eval(), task, problem=problem, search=SearchConfig(evaluations=2))
    assert found.policy["hidden"].operator == NAME
    size = {row.name: row.costs["size"] for row in found.outcomes}
    assert size["ddpg"] <= 0.2 * size["original"]
    assert isinstance(found.model.get_submodule("hidden"), AdditiveLinear)

"""Operators in the course of the asymmetric reconstruction: fitted to what the compressed network gives."""

import copy
from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from torch import nn

from amc.compress import RENORMALIZED, ActivationQuantization, ChannelPruning, WeightQuantization, apply
from amc.decomposition.chain import Chain
from amc.decomposition.replacement import OperatorReplacement
from amc.decomposition.responses import REPLACED, Responses
from amc.inference import fold_norms, inference_form
from amc.knobs import BITS, BitsKnob
from amc.network import Network
from amc.policy import CompressionPolicy, LayerDecision
from amc.pruning.asymmetric import REPLACED_RIDGE, AsymmetricReconstruction
from amc.pruning.fits import asymmetric_fit
from amc.pruning.importance import rank_channels
from amc.pruning.reconstruction import RIDGE, SymmetricReconstruction, input_moments
from amc.quantization.modules import QuantizedConv2d, QuantizedLinear, recalibrate
from amc.quantization.protocol import PointQuantizer
from amc.recovery.calibrate import calibrate
from tests.operator_pieces import ALL, BOTH, mixed_network, policy_with, random_policies, space_of, walk_under

GROUPS = {name: ("filter-groups", 2) for name in ("inner.0", "outer.0", "wide.0")}


@pytest.fixture(scope="module")
def network() -> Network:
    return mixed_network()


@pytest.fixture(scope="module")
def images() -> torch.Tensor:
    return torch.randn(64, 3, 8, 8, generator=torch.Generator().manual_seed(3))


def parts(network: Network, images: torch.Tensor, kind: str) -> list:
    """The compressors of a search with operators."""
    batches = list(images.split(32))
    made: dict[str, Callable] = {
        "symmetric": lambda: SymmetricReconstruction(input_moments(network, batches, positions=64)),
        "asymmetric": lambda: AsymmetricReconstruction.of(network, batches, positions=64, every=True),
        "none": lambda: None,
    }
    refits = made[kind]()
    pruning = ChannelPruning(rank_channels(network, "l2"), reconstruction=refits)
    operators = OperatorReplacement(pruning.kept, getattr(refits, "moments", None))
    weights = WeightQuantization(BitsKnob("weight_bits", network, BITS))
    activations = ActivationQuantization(BitsKnob("activation_bits", network, BITS))
    return [pruning.along_with(operators, weights, activations), operators, weights, activations]


def outputs(network: Network, model: nn.Module, images: torch.Tensor) -> torch.Tensor:
    fast = inference_form(model)
    if not model.meta.get(RENORMALIZED):
        calibrate(fast, [images])
    with torch.no_grad():
        return fast(images)


@pytest.mark.parametrize(
    "policy",
    [
        {"operators": GROUPS},
        {"operators": {}, "weight_bits": 3},
        {"operators": {}, "weight_bits": 8, "activation_bits": 3},
    ],
)
def test_layers_behind_make_up_for_what_replaces_those_in_front(
    network: Network, images: torch.Tensor, policy: dict
):
    """And for weights and inputs that are quantized."""
    policy = policy_with(network, **policy)
    with torch.no_grad():
        wanted = network.module(images)
    errors = {
        kind: float(
            (outputs(network, apply(policy, network, parts(network, images, kind)), images) - wanted)
            .square()
            .mean()
        )
        for kind in ("none", "symmetric", "asymmetric")
    }
    assert errors["asymmetric"] < 0.8 * min(errors["symmetric"], errors["none"])


def test_what_changes_nothing_leaves_the_network_as_it_was(
    images: torch.Tensor, monkeypatch: pytest.MonkeyPatch
):
    """An operator that puts the layer itself in its place."""
    network = mixed_network()
    calibrate(network.module, [images])  # nothing is left for re-normalization to change
    monkeypatch.setattr(
        "amc.decomposition.filter_groups.FilterGroups.fit",
        lambda self, conv, amount, responses=None, start=None: copy.deepcopy(conv),
    )
    model = apply(policy_with(network, GROUPS), network, parts(network, images, "asymmetric"))
    assert model.meta[REPLACED] == {*GROUPS}
    expected = outputs(network, network.copy(), images)
    torch.testing.assert_close(outputs(network, model, images), expected, atol=2e-3, rtol=1e-2)


def test_responses_are_those_of_the_compressed_network(network: Network, images: torch.Tensor):
    """Moments of a layer's real inputs, in the order of its weight, and the mean that its bias keeps."""
    seen: dict[str, tuple[Responses, torch.Tensor]] = {}
    compressors = parts(network, images, "asymmetric")
    operators = compressors[0].layerwise[0]
    ways = operators.ways

    def watched(network: Network, policy: CompressionPolicy) -> dict:
        def watch(name: str, way: Callable) -> Callable:
            def replace(layer: nn.Module, responses: Responses | None) -> nn.Module:
                if responses is not None:
                    seen[name] = responses.of_inputs(layer.weight.shape[1]), layer.weight.detach().clone()
                return way(layer, responses)

            return replace

        return {name: watch(name, way) for name, way in ways(network, policy).items()}

    operators.ways = watched
    model = apply(policy_with(network, GROUPS), network, compressors).train()
    inputs: dict[str, torch.Tensor] = {}
    for name in GROUPS:
        model.get_submodule(name).register_forward_pre_hook(
            lambda _, given, name=name: inputs.update({name: given[0]})
        )
    with torch.no_grad():
        model(images)
    for name, (responses, weight) in seen.items():
        conv = network.module.get_submodule(name)
        columns = nn.functional.unfold(inputs[name], 3, padding=1, stride=conv.stride)
        rows = columns.transpose(1, 2).flatten(0, 1).double()
        torch.testing.assert_close(responses.mean, rows.mean(dim=0), atol=2e-4, rtol=1e-3)
        centred = rows - rows.mean(dim=0)
        torch.testing.assert_close(responses.second, centred.T @ centred / len(rows), atol=2e-3, rtol=1e-2)
        torch.testing.assert_close(responses.wanted, weight.flatten(1).double() @ responses.mean)
    assert {*seen} == {*GROUPS}


@pytest.mark.parametrize("bits", [{}, {"weight_bits": 4, "activation_bits": 4}])
def test_statistics_and_ranges_are_those_that_calibration_would_find(
    network: Network, images: torch.Tensor, bits: dict
):
    """So an evaluation needs no calibration of its own."""
    policy = policy_with(network, BOTH, **bits)
    model = apply(policy, network, parts(network, images, "asymmetric"))
    assert isinstance(model.get_submodule("outer.0"), Chain) and model.meta[RENORMALIZED]
    points = [part for part in model.modules() if isinstance(part, PointQuantizer) and part.enabled]
    assert len(points) == (len(network.points) + 2 if bits else 0)  # two lie inside of chains
    assert not any(point.calibrating for point in points)
    as_left, again = inference_form(model), inference_form(model)
    recalibrate(again)
    calibrate(again, [images])
    for fast in (as_left, again):
        fold_norms(fast)
    with torch.no_grad():
        torch.testing.assert_close(as_left(images), again(images), atol=1e-3, rtol=1e-2)


def narrowed(network: Network, policy: CompressionPolicy, width: int) -> CompressionPolicy:
    """The policy with fewer channels of the first layer."""
    decisions = tuple(
        LayerDecision(d.point, {**d.values, "width": width}, d.operator)
        if d.point in ("first.0", "outer.0")
        else d
        for d in policy.decisions
    )
    return CompressionPolicy(network.fingerprint, decisions)


@pytest.mark.parametrize("bits", [{"weight_bits": 4, "activation_bits": 8}, {"activation_bits": 8}])
def test_what_comes_later_is_carried_out_and_calibrated_then(
    network: Network, images: torch.Tensor, bits: dict
):
    """Where single weights go, for example, layers are refitted in floats, and nothing else is forgotten."""
    pruning, operators, weights, activations = parts(network, images, "asymmetric")
    policy = narrowed(network, policy_with(network, GROUPS, **bits), 5)
    model = apply(policy, network, [pruning.along_with(), operators, weights, activations])
    assert not model.meta[RENORMALIZED] and model.meta[REPLACED] == frozenset()
    points = [p for p in model.modules() if isinstance(p, PointQuantizer) and p.enabled]
    assert len(points) >= len(network.points) and all(point.calibrating for point in points)
    assert all(isinstance(model.get_submodule(name), Chain) for name in GROUPS)
    quantized = [part for part in model.modules() if isinstance(part, QuantizedConv2d)]
    assert bool(quantized) == ("weight_bits" in bits)
    alone = narrowed(network, policy_with(network, GROUPS), 5)
    assert not apply(alone, network, [pruning.along_with(), operators]).meta[RENORMALIZED]


def test_activations_alone_are_quantized_in_the_course_of_it(network: Network, images: torch.Tensor):
    policy = narrowed(network, policy_with(network, {}, activation_bits=4), 5)
    model = apply(policy, network, parts(network, images, "asymmetric"))
    points = [p for p in model.modules() if isinstance(p, PointQuantizer) and p.enabled]
    assert len(points) == len(network.points) and not any(p.calibrating or p.training for p in points)
    assert model.meta[RENORMALIZED]


def test_biases_keep_the_mean_output_of_pruned_layers_that_are_replaced(
    network: Network, images: torch.Tensor
):
    """Once: the refit has moved the bias already."""
    policy = narrowed(network, policy_with(network, {"inner.0": ("filter-groups", 1)}), 5)
    compressors = parts(network, images, "symmetric")
    model = apply(policy, network, compressors)
    seen: list[torch.Tensor] = []
    handle = network.module.get_submodule("inner.0").register_forward_pre_hook(
        lambda _, given: seen.append(given[0])
    )
    with torch.no_grad():
        network.module(images)
        handle.remove()
        kept = compressors[0].kept(network, policy)["first.0"]
        found = model.get_submodule("inner.0")(seen[0][:, kept]).mean((0, 2, 3))
        wanted = network.module.get_submodule("inner.0")(seen[0]).mean((0, 2, 3))
    torch.testing.assert_close(found, wanted, atol=1e-4, rtol=1e-3)


@pytest.mark.parametrize("rounds", [False, True])
def test_any_policy_can_be_carried_out(network: Network, images: torch.Tensor, rounds: bool):
    """Operators, channels and bits together; also as CPUs with bfloat16 do it."""
    pruning, *rest = parts(network, images, "asymmetric")
    compressors = [pruning.refitting(replace(pruning.reconstruction, rounds=rounds)), *rest]
    walk = walk_under(space_of(network, ALL, (2, 4, 8), (8,)), size=0.1)
    for policy in random_policies(walk, 6):
        model = apply(policy, network, compressors)
        quantized = {name for name, bits in policy.values("weight_bits").items() if bits < 32}
        replaced = {decision.point for decision in policy.decisions if decision.replaced}
        assert model.meta[REPLACED] == quantized | replaced
        assert bool(outputs(network, model, images).isfinite().all())
    for name in ("first.0", "outer.0"):
        model = apply(policy_with(network, {name: ("channel-svd", 2)}), network, compressors)
        assert isinstance(model.get_submodule(name), Chain)
        assert bool(outputs(network, model, images).isfinite().all())


def test_weights_are_quantized_in_their_turn_and_no_second_time(
    network: Network, images: torch.Tensor, monkeypatch: pytest.MonkeyPatch
):
    """Those of what replaces a layer too, and those that no bits can make smaller stay floats."""
    compressors = parts(network, images, "asymmetric")
    kind, fitted = compressors[2].quantizer, list[int]()
    fit = kind.fitted
    monkeypatch.setattr(kind, "fitted", lambda weight, bits: fitted.append(bits) or fit(weight, bits))
    model = apply(policy_with(network, GROUPS, weight_bits=4), network, compressors)
    chains = [part for name in GROUPS for part in model.get_submodule(name) if isinstance(part, nn.Conv2d)]
    alone = [layer.name for layer in network.layers if layer.name not in GROUPS]
    layers = [*chains, *(model.get_submodule(name) for name in alone)]
    assert all(isinstance(layer, QuantizedConv2d | QuantizedLinear) for layer in layers)
    assert fitted == [4] * len(layers) == [4] * (2 * len(GROUPS) + len(alone))
    half = CompressionPolicy(
        network.fingerprint,
        tuple(
            LayerDecision(layer.name, {"weight_bits": 4 if layer.name == "wide.0" else 32})
            for layer in network.layers
        ),
    )
    model = apply(half, network, compressors)
    assert model.meta[REPLACED] == {"wide.0"}
    # Layers in front of the first error are as they were; those behind it are refitted.
    weights = {name: model.get_submodule(name).get_parameter("weight") for name in ("outer.0", "point.0")}
    assert torch.equal(weights["outer.0"], network.module.get_parameter("outer.0.weight"))
    assert not torch.equal(weights["point.0"], network.module.get_parameter("point.0.weight"))


@pytest.mark.parametrize("bits", [32, 2])
def test_what_inputs_hardly_do_makes_no_large_weights_where_these_are_quantized(bits: int):
    """A direction that only noise moves would ask for any weight at all."""
    generator = torch.Generator().manual_seed(0)
    rows = torch.randn(500, 12, generator=generator)
    rows[:, -1] = rows[:, 0] + 1e-2 * torch.randn(500, generator=generator)
    prior = torch.randn(5, 12, generator=generator)
    targets = rows @ prior.T + torch.randn(500, 5, generator=generator)
    ridge = RIDGE if bits == 32 else REPLACED_RIDGE
    largest = float((asymmetric_fit(rows, targets, prior, True, ridge).weight - prior).abs().max())
    assert largest > 2 if bits == 32 else largest < 1

"""The agent chooses what replaces a layer: the space, its costs, evaluations and what is kept of them."""

import itertools
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from amc.compress import apply
from amc.costs.symbolic import SymbolicCost, symbolic_costs
from amc.decomposition.chain import Chain
from amc.decomposition.clustered_conv import ClusteredConv2d
from amc.decomposition.kept_fits import KeptFits
from amc.decomposition.knobs import AmountKnob, OperatorKnob
from amc.decomposition.registry import get_operator
from amc.export.model import export_model
from amc.inference import fold_norms, inference_form
from amc.knobs import BITS, BitsKnob, WidthKnob
from amc.network import Network
from amc.package import Architecture, Package, file_bytes, load_package, save_package
from amc.package_form import packed_form
from amc.policy import CompressionPolicy, LayerDecision
from amc.quantization.modules import ActivationQuantizer, QuantizedConv2d
from amc.quantization.uniform import NOT_QUANTIZED
from amc.space import Partial, Space
from envs.operators import make_operator_knobs
from envs.problem_config import ProblemConfig
from tests.operator_pieces import (
    ALL,
    BOTH,
    SIZE_BITS,
    calibrated,
    compressors,
    executed_macs,
    mixed_network,
    policy_with,
    random_policies,
    space_of,
    walk_under,
)


@pytest.fixture(scope="module")
def network() -> Network:
    return mixed_network()


def test_layers_that_no_operator_fits_offer_none(network: Network):
    space = space_of(network)
    column = space.column("operator")
    offered = {point.name: len(space.legal(row, column)) for row, point in enumerate(space.points)}
    assert {name for name, count in offered.items() if count == 1} == {"depth.0", "point.0", "last"}
    walk = walk_under(space, macs=0.5)
    for _ in range(walk.length):
        row = walk.rows[walk.position]
        alive = walk.layout.slice("alive")
        assert bool(walk._observe()[alive][0]) == (offered[space.points[row].name] > 1)
        walk.step(np.zeros(walk.action_size))


def test_operators_come_in_order_of_their_least_cost_and_the_layer_last(network: Network):
    choice = OperatorKnob(network, ALL)
    layer = network.layer("wide.0")
    values = list(choice.amounts[layer.name])
    least = [
        min(choice.cost(layer, v, a, 8, 12).macs for a in range(choice.levels(layer.name)[v])) for v in values
    ]
    assert least == sorted(least) and len(values) == 4
    assert choice.values(space_of(network).points[space_of(network).row(layer.name)], None)[-1] == 0


@pytest.mark.parametrize(
    "budgets", [{"macs": 0.35}, {"size": 0.1}, {"size": 0.12, "macs": 0.4}, {"bops": 0.02}], ids=str
)
def test_every_episode_keeps_its_budgets(network: Network, budgets: dict[str, float]):
    bits = SIZE_BITS if {"size", "bops"} & {*budgets} else (NOT_QUANTIZED,)
    space = space_of(network, weight_bits=bits, activation_bits=(8,) if len(bits) > 1 else (NOT_QUANTIZED,))
    walk, chosen = walk_under(space, **budgets), set()
    for policy in random_policies(walk, 12):
        table = space.table(policy)
        assert all(budget.cost.of(table) <= budget.limit for budget in walk.budgets)
        chosen |= {decision.operator for decision in policy.decisions}
    assert len(chosen) >= 3


@pytest.mark.slow
@pytest.mark.parametrize("budgets", [{"macs": 0.3}, {"size": 0.1, "macs": 0.4}], ids=str)
def test_a_thousand_episodes_keep_their_budgets(network: Network, budgets: dict[str, float]):
    bits = SIZE_BITS if "size" in budgets else (NOT_QUANTIZED,)
    space = space_of(network, weight_bits=bits)
    walk = walk_under(space, **budgets)
    for policy in random_policies(walk, 1000):
        table = space.table(policy)
        assert all(budget.cost.of(table) <= budget.limit for budget in walk.budgets)


def test_without_channels_to_remove_operators_keep_the_budget(network: Network):
    choice = OperatorKnob(network, ("filter-groups",))
    bits = (BitsKnob(f"{what}_bits", network, (NOT_QUANTIZED,)) for what in ("weight", "activation"))
    space = Space(network, (choice, AmountKnob(choice), WidthKnob(min_keep=1.0), *bits))
    walk = walk_under(space, macs=0.6)
    for policy in (walk.reference_policy(), *random_policies(walk, 20)):
        assert any(decision.replaced for decision in policy.decisions)
        assert walk.budgets[0].cost.of(space.table(policy)) <= walk.budgets[0].limit


def test_the_reference_policy_is_that_without_operators(network: Network):
    bits = [BitsKnob(f"{what}_bits", network, (NOT_QUANTIZED,)) for what in ("weight", "activation")]
    plain = walk_under(Space(network, (WidthKnob(), *bits)), macs=0.5).reference_policy()
    assert walk_under(space_of(network), macs=0.5).reference_policy() == plain


def test_the_operator_and_its_amount_have_no_order(network: Network):
    walk = walk_under(space_of(network, weight_bits=SIZE_BITS), size=0.1)
    unordered = [name for name, which in zip(walk.knob_names, walk.categorical, strict=True) if which]
    assert unordered == ["operator", "amount"] and len(walk.knob_names) > 2


def test_a_policy_survives_its_table_and_its_file(network: Network, tmp_path: Path):
    space = space_of(network, weight_bits=SIZE_BITS)
    for policy in random_policies(walk_under(space, size=0.1), 10):
        assert space.policy(space.table(policy)) == policy
        policy.save(tmp_path / "policy.json")
        assert CompressionPolicy.load(tmp_path / "policy.json") == policy


def test_costs_are_those_of_the_sliced_module(network: Network):
    """A layer that stays at 32 bits is counted in floats, so parameters and bytes can be compared."""
    space = space_of(network)
    costs, x = symbolic_costs(space), torch.randn(1, 3, 8, 8)
    for policy in random_policies(walk_under(space, macs=0.5), 12):
        table, model = space.table(policy), apply(policy, network, compressors(network))
        assert costs["macs"].of(table) == executed_macs(model, x)
        assert costs["params"].of(table) == sum(p.numel() for p in model.parameters())


@pytest.mark.parametrize("cost", ["macs", "params", "size", "bops"])
def test_bounds_are_the_extremes_of_all_completions(network: Network, cost: str):
    """Two layers' operators, amounts, widths and bits are open; everything else is decided at random."""
    space = space_of(network, ("filter-groups", "clustered-kernels"), (2, 7), (8,))
    known, rng = SymbolicCost(cost, space), np.random.default_rng(1)
    open_rows = [space.row("inner.0"), space.row("wide.0")]
    for _ in range(3):
        partial = space.empty()
        for row, column in np.ndindex(space.decider.shape):
            if row in open_rows and space.knobs[column].name != "activation_bits":
                continue
            if not partial.decided[row, column] and space.decider[row, column] == row:
                value = int(rng.choice(space.legal(row, column, partial)))
                partial = space.decide(partial, row, column, value)
        found = [known.of(table) for table in completions(space, partial, open_rows)]
        assert known.lower_bound(partial) == min(found)
        assert known.upper_bound(partial) == max(found)
        assert known.of(known.cheapest(partial)) == min(found)


def completions(space: Space, partial: Partial, rows: list[int]) -> list[np.ndarray]:
    """All of them but for widths, of which the ends and one between stand for all."""
    found = [partial]
    for row, column in itertools.product(rows, range(len(space.knobs))):
        following = []
        for each in found:
            if each.decided[row, column] or space.decider[row, column] != row:
                following.append(each)
                continue
            values = space.legal(row, column, each)
            if space.knobs[column].name == "width":
                values = (values[0], values[len(values) // 2], values[-1])
            following += [space.decide(each, row, column, value) for value in values]
        found = following
    return [each.values for each in found]


@pytest.mark.parametrize("bits", [{}, {"weight_bits": 4, "activation_bits": 8}], ids=["floats", "integers"])
def test_the_form_that_is_scored_computes_what_the_model_does(network: Network, bits: dict[str, int]):
    model = calibrated(network, policy_with(network, BOTH, **bits))
    fast, x = inference_form(model), torch.randn(8, 3, 8, 8)
    fold_norms(fast)
    assert not any(isinstance(module, nn.BatchNorm2d | ClusteredConv2d) for module in fast.modules())
    with torch.no_grad():
        difference = (model(x) - fast(x)).abs().max() / model(x).abs().max()
    assert difference < (0.05 if bits else 1e-4)  # a sum that is rounded the other way moves a code


def test_bits_reach_the_convolutions_of_a_chain_and_what_lies_between(network: Network):
    model = calibrated(network, policy_with(network, BOTH, weight_bits=4, activation_bits=8))
    chain = model.get_submodule("wide.0")
    assert isinstance(chain, Chain)
    kinds = [type(part) for part in chain]
    assert kinds == [QuantizedConv2d, ActivationQuantizer, QuantizedConv2d]
    assert not chain[1].calibrating and chain[1].bits == 8 and chain[2].quantizer.bits == 4
    assert isinstance(model.get_submodule("inner.0"), ClusteredConv2d)


@pytest.mark.parametrize("bits", [{}, {"weight_bits": 4, "activation_bits": 8}], ids=["floats", "integers"])
def test_a_package_holds_what_the_size_says_and_gives_the_same_logits(
    network: Network, tmp_path: Path, bits: dict[str, int]
):
    policy = policy_with(network, BOTH, **bits)
    model, known = calibrated(network, policy), Architecture("mixed", 4, (3, 8, 8))
    path = save_package(tmp_path, Package(model, policy, {}, known), network)
    loaded, x = load_package(path, network), torch.randn(8, 3, 8, 8)
    with torch.no_grad():
        assert torch.equal(loaded.module(x), packed_form(model, network)(x))
        assert not torch.equal(loaded.module(x), load_other(network, tmp_path, policy)(x))
    space = space_of(network, ("clustered-kernels", "filter-groups"), BITS, BITS)
    assert file_bytes(path)[1] == SymbolicCost("size", space).of(space.table(policy))


def load_other(network: Network, folder: Path, policy: CompressionPolicy) -> nn.Module:
    """Another layer of the same policy: a package that filled nothing would give this one's logits."""
    torch.manual_seed(9)
    model = calibrated(network, policy)
    with torch.no_grad():
        model.get_submodule("last").weight.mul_(2)
        return packed_form(model, network)


def test_exported_files_agree_with_torch(network: Network, tmp_path: Path):
    model = calibrated(network, policy_with(network, BOTH, weight_bits=7, activation_bits=8))
    x = torch.randn(64, 3, 8, 8)
    files = export_model(model, tmp_path, x, calibration=[x], drop=0.0)
    assert [file.exporter for file in files] == ["amc", "amc"]
    for figures in files[0].agreement.values():
        assert figures.relative_error < 1e-4
    for figures in files[1].agreement.values():
        assert figures.same_decisions > 0.9


def test_tflite_files_agree_with_torch(network: Network, tmp_path: Path):
    pytest.importorskip("ai_edge_litert.interpreter")
    model = calibrated(network, policy_with(network, BOTH, weight_bits=7, activation_bits=8))
    x = torch.randn(64, 3, 8, 8)
    files = export_model(model, tmp_path, x, calibration=[x], drop=0.0, formats=(".tflite",))
    for file, least in zip(files, (1.0, 0.9), strict=True):
        assert all(figures.same_decisions >= least for figures in file.agreement.values())


def test_what_replaces_layers_can_be_trained(network: Network):
    model = calibrated(network, policy_with(network, BOTH, weight_bits=4, activation_bits=8)).train()
    x, labels = torch.randn(32, 3, 8, 8), torch.arange(32) % 4
    optimizer, losses = torch.optim.Adam(model.parameters(), lr=0.01), []
    for _ in range(25):
        optimizer.zero_grad()
        losses.append(nn.functional.cross_entropy(model(x), labels))
        losses[-1].backward()
        optimizer.step()
    assert losses[-1] < 0.9 * losses[0]
    assert all(p.grad is not None for p in model.get_submodule("inner.0").parameters())


def test_fits_of_pruned_layers_start_from_what_the_whole_layer_gave(
    network: Network, monkeypatch: pytest.MonkeyPatch
):
    operator, starts, fits = get_operator("clustered-kernels"), [], []
    prepare, fit = operator.prepare, operator.fit
    monkeypatch.setattr(operator, "prepare", lambda *a: starts.append(a[1]) or prepare(*a))
    monkeypatch.setattr(operator, "fit", lambda *a: fits.append(a[1]) or fit(*a))
    parts = compressors(network)
    for width in (8, 6, 8, 5, 6):
        policy = policy_with(network, {"wide.0": ("clustered-kernels", 4)})
        values = [
            LayerDecision(d.point, {**d.values, "width": width}, d.operator)
            if d.point in ("first.0", "outer.0")
            else d
            for d in policy.decisions
        ]
        apply(CompressionPolicy(policy.network, tuple(values)), network, parts)
    assert starts == [4] and len(fits) == 3


def test_an_operator_that_lowers_nothing_takes_no_part_and_the_run_says_so(network: Network):
    names = ("filter-groups", "clustered-kernels")
    knobs, notes = make_operator_knobs(ProblemConfig(budget=("macs=0.5",), operators=names), network)
    assert knobs and knobs[0].names == ("filter-groups",)
    assert notes[0] == "The operator clustered-kernels cannot lower macs and takes no part."
    knobs, notes = make_operator_knobs(ProblemConfig(budget=("size=0.2",), operators=names), network)
    assert knobs and knobs[0].names == names
    assert notes[0].startswith("4 of 7 layers may be replaced (filter-groups, clustered-kernels)")
    only = ProblemConfig(budget=("macs=0.5",), operators=("clustered-kernels",))
    knobs, notes = make_operator_knobs(only, network)
    assert knobs == () and len(notes) == 1


@pytest.mark.parametrize("reconstruct", ["symmetric", "none", "asymmetric"])
def test_a_fit_to_weights_alone_is_said(network: Network, reconstruct: str):
    config = ProblemConfig(operators=("filter-groups",), reconstruct=reconstruct)
    said = [note for note in make_operator_knobs(config, network)[1] if "as its weights give it" in note]
    assert len(said) == (reconstruct == "none")
    only = ProblemConfig(budget=("size=0.2",), operators=("clustered-kernels",), reconstruct=reconstruct)
    knobs, notes = make_operator_knobs(only, network)
    assert knobs and len(notes) == 1  # kernels are clustered by their weights in any case


def test_without_operators_nothing_changes(network: Network):
    assert make_operator_knobs(ProblemConfig(), network) == ((), ())


@pytest.mark.parametrize("limit", [10**9, 3600, 0])
def test_kept_fits_stay_within_their_bytes(limit: int):
    kept, made = KeptFits(limit), list[int]()

    def fit(width: int) -> nn.Module:
        made.append(width)
        return nn.Linear(width, 100, bias=False)  # 400 bytes for each of the width

    for width in (3, 4, 3, 5, 3, 4):
        assert kept.of(width, lambda w=width: fit(w)).in_features == width
        assert kept.size <= limit and kept.size == sum(400 * w for w in {3, 4, 5} if w in kept)
    assert made == {10**9: [3, 4, 5], 3600: [3, 4, 5, 4], 0: [3, 4, 3, 5, 3, 4]}[limit]

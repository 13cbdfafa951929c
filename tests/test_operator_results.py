"""The plan and the page of the operator results."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from agents import source
from amc.costs.symbolic import symbolic_costs
from amc.data import load_data
from amc.errors import UserError
from amc.network import Network
from amc.policy_check import check_policy
from amc.tasks import ClassificationTask
from amc.training import Recipe
from scripts import operator_results, operator_scattering
from scripts.operator_page import drawing_png, page
from scripts.operator_results import grouped_by_depth, main
from scripts.operator_rows import (
    BY_DEPTH,
    FIXED,
    JOINT,
    SCATTERED,
    TUNED,
    OperatorResults,
    Spec,
    configuration,
    plan,
)
from tests.operator_pieces import space_of
from tests.test_run import tiny_data, tiny_model

LAYERS = [
    {"layer": "conv1", "operator": "original", "amount": None, "keep": 0.5, "weight_bits": 6},
    {"layer": "conv2", "operator": "filter-groups", "amount": 4, "keep": 1.0, "weight_bits": 4},
]


def choice_row(seed: int, test: float) -> dict:
    about = Spec("choice", "resnet56", "size", JOINT, str(seed)).to_json()
    figures = {"test_untuned": test, "reward_accuracy": 0.9, "macs_share": 0.4, "size_share": 0.06}
    return {**about, **figures, "layers": LAYERS, "seconds": 60.0, "seconds_per_evaluation": 1.5}


def test_every_row_has_a_name_of_its_own():
    names = [spec.name for spec in plan()]
    assert len(names) == len({*names})
    assert "choice/vgg16/size/clustered-kernels/2" in names and "fixed/resnet56/0.25/spatial-svd" in names


def test_arms_differ_in_what_they_may_do():
    options = OperatorResults()
    kept = {
        arm: (problem.operators, problem.min_keep)
        for arm in (JOINT, "pruning", "filter-groups")
        for problem in [configuration(options, Spec("choice", "resnet56", "macs", arm, "1")).problem]
    }
    assert kept == {
        JOINT: (("filter-groups",), 0.1),
        "pruning": ((), 0.1),
        "filter-groups": (("filter-groups",), 1.0),
    }
    for arm in (JOINT, "pruning", "filter-groups"):
        problem = configuration(options, Spec("choice", "resnet56", "macs", arm, "1")).problem
        assert problem.reconstruct == "asymmetric" and not problem.balanced
    fixed = configuration(options, Spec(FIXED, "resnet56", "0.25", "channel-svd"))
    assert fixed.problem.budget == ("macs=0.25",) and fixed.agent.algorithm == "uniform"


def test_group_counts_grow_with_depth_at_equal_macs(traced: Callable[[str], Network]):
    network = traced("resnet20")
    policy = grouped_by_depth(network, 0.4)
    check_policy(policy, network)
    space = space_of(network, ("filter-groups",))
    assert 0.35 * network.macs < symbolic_costs(space)["macs"].of(space.table(policy)) <= 0.4 * network.macs
    groups = [
        network.layer(each.point).in_channels / each.values["amount"]
        for each in policy.decisions[1:]  # the first reads three channels, which do not divide as others do
        if each.replaced
    ]
    assert groups[0] < groups[-1] and groups == sorted(groups)
    about = Spec(FIXED, "resnet56", "0.5", BY_DEPTH)
    assert about in plan()
    assert configuration(OperatorResults(), about).problem.operators == ("filter-groups",)


def test_the_page_shows_means_over_seeds_and_what_is_out_of_reach():
    rows = {
        "a": choice_row(0, 0.80),
        "b": choice_row(1, 0.84),
        "c": {**Spec(FIXED, "vgg16", "0.1", "pruning").to_json(), "unreachable": "too small", "seconds": 1.0},
    }
    tables, parts = page(rows, "layers.png")
    (line,) = tables["choice"]
    assert line["test"] == "82.00% ± 2.83" and line["replaced layers"] == 1 and line["seeds"] == 2
    text = "\n".join(parts)
    assert "- c: too small" in text and "layers.png" in text and "*Not measured yet.*" in text
    png = drawing_png(list(rows.values()))
    assert png is not None and png.startswith(b"\x89PNG")


def test_a_compression_is_shown_with_what_fine_tuning_made_of_it():
    def fixed(setting: str) -> dict:
        figures = {"macs_share": 0.5, "size_share": 0.5, "test_original": 0.9, "test_untuned": 0.8}
        timing = {"target": "openvino", "original_ms": 2.0, "ms": 1.2, "ratio": 0.6, "reliable": True}
        return {
            **Spec(FIXED, "vgg16", setting, "pruning").to_json(),
            **figures,
            **timing,
            "layers": [],
            "seconds": 1.0,
        }

    after = {"epochs": 15, "test_tuned": 0.88, "seconds": 1.0}
    tuned = {**Spec(TUNED, "vgg16", "0.25", "pruning").to_json(), **after}
    table = page({"a": fixed("0.5"), "b": fixed("0.25"), "c": tuned}, None)[0]["fixed"]
    assert [line["tuned"] for line in table] == ["", "88.00%"]
    assert [line["budget"] for line in table] == ["macs=0.5", "macs=0.25"]


def test_hybrids_are_compared_with_their_twins_on_pixels():
    def row(front: str, macs: float, test: float) -> dict:
        about = Spec("scattering", f"{front}_resnet_j3", "voc-crops").to_json()
        ratio = 2.56 if front == "scattering" else None
        figures = {"side": 64, "macs": macs, "stage_macs": 1e6, "test": test, "commonest": 0.85}
        return {**about, **figures, "compression": ratio, "seconds": 1.0}

    rows = {"a": row("scattering", 5e6, 0.9), "b": row("strided", 4e6, 0.95)}
    tables, parts = page(rows, None)
    (line,) = tables["scattering"]
    assert (line["input ratio"], line["saved"], line["twin's accuracy"]) == ("2.56", "-25%", "95.00%")
    assert any("6 % *more* numbers" in part for part in parts)
    names = [spec.name for spec in plan() if spec.part == "scattering"]
    assert len(names) == 9 and "scattering/scattering_resnet_j3/cifar10/agent" in names


def test_a_scattering_row_is_trained_and_compressed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    pytest.importorskip("kymatio.scattering2d.filter_bank")
    digits = load_data("digits", side=16)
    few = {name: digits.split(name).take(torch.arange(64)) for name in ("train", "reward", "test")}
    for module in (operator_scattering, source):
        monkeypatch.setattr(module, "load_data", lambda *_: replace(digits, **few, _normalised={}))
    monkeypatch.setattr(operator_scattering, "WIDTH", 0.125)
    monkeypatch.setitem(operator_scattering.RECIPES, "cifar10", Recipe(epochs=1))
    options = OperatorResults(runs=tmp_path / "runs", evaluations=2)
    spec = Spec("scattering", "scattering_resnet_j2", "cifar10")
    found = operator_scattering.scattering_row(options, spec)
    assert found["compression"] == pytest.approx(16 / 17) and 0 < found["stage_macs"] < found["macs"]
    assert 0 < found["test"] <= 1 and found["commonest"] >= 0.1
    assert (options.runs / "scattering-scattering_resnet_j2-cifar10.safetensors").is_file()
    compressed = operator_scattering.scattering_row(options, replace(spec, arm=SCATTERED))
    assert compressed["test_original"] == found["test"] and compressed["evaluations"] == 2
    assert compressed["size_share"] <= 0.1 and compressed["macs_share"] < 1
    (line,) = page({"a": {**replace(spec, arm=SCATTERED).to_json(), **compressed, "seconds": 1.0}}, None)[0][
        "scattering_agent"
    ]
    assert line["J"] == 2 and line["budget"] == "size=0.1"


def test_the_page_says_whether_claims_hold():
    def book(setting: str, calibrated: float) -> dict:
        figures = {"index_bits": 8, "weight_error": 0.2, "test_original": 0.9, "test_raw": 0.2}
        about = Spec("clusters", "resnet20", setting).to_json()
        return {**about, **figures, "test_calibrated": calibrated, "seconds": 1.0}

    def seconds(ratio: float) -> dict:
        about = Spec("seconds", "resnet56", "size").to_json()
        return {**about, "budget": "size=0.08", "evaluations": 2, "plain": 1.0, "with_operators": ratio}

    rows = {"a": book("32x8", 0.8), "b": book("64x1", 0.7), "c": {**seconds(1.6), "seconds": 3.2}}
    tables, parts = page(rows, None)
    assert any("It holds: +10.00 points" in part for part in parts)
    assert tables["seconds"][0]["below 1.5"] == "no" and tables["clusters"][0]["expected"] == "81.30%"
    assert not any("Claim" in part for part in page({"a": rows["a"]}, None)[1])


def test_seconds_are_measured_in_turn(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    task = ClassificationTask(tiny_data())
    monkeypatch.setattr(operator_results, "load_source", lambda _: (tiny_model(), task))
    found = operator_results.seconds_row(OperatorResults(evaluations=2), Spec("seconds", "resnet56", "size"))
    assert found["evaluations"] == 2 and min(found["plain"], found["with_operators"]) > 0


def test_missing_weights_are_refused_in_one_sentence(tmp_path: Path):
    options = OperatorResults(only="clusters/*", out=tmp_path / "o.json", resnet20=tmp_path / "none.th")
    with pytest.raises(UserError, match="without weights"):
        main(options)

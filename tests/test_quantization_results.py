"""The runner and the page of the quantization results."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from amc.compress import WeightQuantization, apply
from amc.data.digits import digits
from amc.knobs import BITS, BitsKnob, WidthKnob
from amc.models import build_model, save_weights
from amc.package_form import packed_form
from amc.package_tensors import flat_tensors
from amc.quantization.protocol import PointQuantizer
from amc.quantization.registry import WEIGHT_QUANTIZERS
from amc.space import Space
from scripts import quantization_page as page
from scripts import quantization_results as results
from scripts import quantization_rows as rows
from scripts import quantization_untrained as untrained
from scripts.cli import exit_code


@pytest.fixture
def options(tmp_path: Path) -> list[str]:
    """Command line of the runner, on random weights."""
    torch.manual_seed(0)
    save_weights(build_model("resnet20", 10, 3), tmp_path / "net.safetensors")
    where = {"out": "q.json", "runs": "runs", "weights-20": "net.safetensors", "weights-56": "none"}
    given = [text for name, file in where.items() for text in (f"--{name}", str(tmp_path / file))]
    return [*given, "--data-root", str(tmp_path / "nowhere")]


def test_a_row_has_a_name_and_is_made_once():
    names = [spec.name for spec in rows.plan()]
    assert len(names) == len(set(names))
    searched = {spec.name.removeprefix("mixed/") for spec in rows.plan() if spec.part == "mixed"}
    assert all(spec.name.removeprefix("tuned/") in searched for spec in rows.plan() if spec.part == "tuned")
    for network in rows.NETWORKS:
        for budget in rows.MIXED_BUDGETS:
            found = {
                s.searcher for s in rows.plan() if (s.part, s.network, s.budget) == ("mixed", network, budget)
            }
            assert found == set(rows.SEARCHERS)


@pytest.mark.parametrize(("budget", "cost"), [("size3", "size"), ("size4", "size"), ("bops4", "bops")])
def test_a_budget_is_what_common_bits_cost(traced, budget, cost):
    network = traced("resnet20")
    spec = rows.Spec("mixed", "resnet20", budget, "uniform", "ddpg", "0")
    config = rows.mixed_config(rows.QuantizationResults(), spec, network)
    limit = rows.common_cost(spec, network)
    assert config.problem.budget == (f"{cost}={limit:.0f}{'B' if cost == 'size' else ''}",)
    weights = sum(layer.weights for layer in network.layers)
    bits = int(budget[-1])
    if cost == "bops":
        assert limit == 16 * network.macs
    else:
        assert (
            bits * weights / 8
            < limit
            < bits * weights / 8 + 8.1 * sum(v.out_channels for v in network.layers)
        )


def test_the_first_rows_are_made_listed_and_shown(options, tmp_path: Path, monkeypatch, capsys):
    monkeypatch.setattr("scripts.quantization_untrained.CHOICES", (2, 3))
    monkeypatch.setattr(
        "scripts.quantization_untrained.WEIGHT_QUANTIZERS",
        {name: WEIGHT_QUANTIZERS[name] for name in ("uniform", "max-abs")},
    )
    assert exit_code(results.main, [*options, "--only", "error/resnet20"]) == 0
    row = json.loads((tmp_path / "q.json").read_text())["rows"]["error/resnet20"]
    assert row["sqnr"]["uniform"][1] > row["sqnr"]["max-abs"][1] > row["sqnr"]["max-abs"][0]
    assert 2 < row["stored"]["uniform"][0] < 2.3 and row["command"].endswith("--only 'error/resnet20'")
    assert exit_code(results.main, [*options, "--list", "--only", "error/*"]) == 0
    said = capsys.readouterr().out
    assert "done" in said and "missing" in said
    images, figures = tmp_path / "images", tmp_path / "q.json"
    assert exit_code(page.main, ["--figures", str(figures), "--images", str(images)]) == 0
    text = figures.with_suffix(".md").read_text()
    assert "1 of " in text and "quantization_errors.png" in text and page.NOTHING in text
    assert (images / "quantization_errors.png").stat().st_size > 1000


def test_missing_data_and_weights_are_said_before_any_work(options, capsys):
    assert exit_code(results.main, [*options, "--only", "untrained/*"]) == 2
    assert "pass --data-root" in capsys.readouterr().err
    assert exit_code(results.main, [*options, "--only", "error/resnet56"]) == 2
    assert "resnet56 is skipped" in capsys.readouterr().err


def made(part: str, **fields: object) -> dict:
    name = "/".join(str(value) for value in fields.values() if isinstance(value, str))
    return {"part": part, "seconds": 3.0, "command": f"x --only '{part}/{name}'", **fields}


def search_row(searcher: str) -> dict:
    figures = {"size": 90.0, "bops": 2e9, "evaluations": 100, "reward_accuracy": 0.5, "test_untuned": 0.48}
    bits = {"weight_bits": {"conv1": 4, "linear": 3}, "activation_bits": {"conv1": 8, "linear": 8}}
    names = {
        "network": "resnet20",
        "budget": "size3",
        "quantizer": "uniform",
        "searcher": searcher,
        "seed": "0",
    }
    return made("mixed", **names, **figures, **bits)


def test_the_tables_hold_one_object_a_row(tmp_path: Path):
    tuned = {**search_row("ddpg"), "part": "tuned", "test_tuned": 0.9}
    aware = {"quantizer": "lq", "epochs": 15, "test_untuned": 0.1, "test_tuned": 0.9, "original_test": 0.917}
    found = page.tables(
        [search_row("uniform"), search_row("ddpg"), tuned, made("aware", budget="3", **aware)]
    )
    assert [line["searcher"] for line in found["mixed"]] == ["uniform", "ddpg"]
    assert [line["test fine-tuned"] for line in found["mixed"]] == ["", 90.0]
    assert found["aware"][0]["points"] == -1.7 and found["untrained"] == []
    assert page.as_markdown(found["mixed"]).count("\n") == 3
    assert found["mixed"][0]["GBOPs"] == 2.0


def test_bits_of_both_networks_are_drawn_with_all_that_was_searched(tmp_path: Path, monkeypatch):
    shown: list[list[list[float]]] = []

    def looked_at(figure) -> bytes:
        shown.append([[bar.get_height() for bar in axes.patches] for axes in figure.axes])
        shown[-1] += [list(line.get_ydata()) for axes in figure.axes for line in axes.lines]
        return b"png"

    monkeypatch.setattr("scripts.quantization_plots.png", looked_at)
    deep = {**search_row("ddpg"), "network": "resnet56", "quantizer": "label-free"}
    both = {**search_row("ddpg"), "budget": "bops4", "activation_bits": {"conv1": 8, "linear": 2}}
    joint = {**search_row("ddpg"), "budget": "joint4", "width": {"conv1": 12}}
    drawn = page.drawings([search_row("ddpg"), both, joint, deep], page.QuantizationPage(images=tmp_path))
    assert "python -m scripts.quantization_page" in drawn[1] and len(drawn) == 4
    names = {path.name for path in tmp_path.iterdir()}
    assert names == {"quantization_bits_resnet20.png", "quantization_bits_resnet56.png"}
    assert shown[0][:3] == [[4, 3], [4, 3, 8, 2], [4, 3]] and shown[0][-1] == [12, None]
    assert shown[1] == [[4, 3]]


def test_the_anchor_of_value_aware_quantization(monkeypatch):
    monkeypatch.setattr(untrained, "LAPLACE_DRAWS", 2)
    found = untrained.laplace()
    assert found["max-abs"] < 4 < found["clipped"] < 11.5 < found["value-aware"] < 12.5


def test_memory_is_shown_with_and_without_what_stays_as_it_is():
    stored = {"bytes": 15e6, "plain_bytes": 98e6, "ratio": 6.5, "all_bytes": 94e6, "all_ratio": 1.9}
    row = {"images": 128, "share": 0.02, "laplace_3_bits": {"max-abs": 2.8}, "all_plain_bytes": 178e6}
    lines = page.memory_lines(made("memory", network="resnet20", **row, **{"3 bits": stored}))
    assert [line["figure"] for line in lines] == [
        "2.8 dB",
        "15.0 of 98.0 MB (6.5x)",
        "94.0 of 178.0 MB (1.9x)",
    ]


def test_a_common_size_is_that_of_a_package(traced):
    """What the budget is called after is what a file would take."""
    network = traced("resnet20")
    spec = rows.Spec("mixed", "resnet20", "size3", "uniform", "uniform", "0")
    knobs = [WidthKnob(), BitsKnob("weight_bits", network, BITS), BitsKnob("activation_bits", network, BITS)]
    space = Space(network, knobs)
    table = space.largest.copy()
    table[:, space.column("weight_bits")] = 3
    model = apply(space.policy(table), network, [WeightQuantization(knobs[1])])
    tensors = flat_tensors(packed_form(model, network)).values()
    assert rows.common_cost(spec, network) == sum(t.numel() * t.element_size() for t in tensors)


def test_a_bench_compares_quantizers_before_and_after_renormalization(traced, monkeypatch):
    monkeypatch.setattr(untrained, "FEW_IMAGES", (5, 9))
    data = digits(8)
    bench = untrained.Bench(traced("digitsnet"), replace(data, test=data.test.take(torch.arange(20))))
    found = {
        (name, bits): bench.row(WEIGHT_QUANTIZERS[name], bits)
        for name in ("lq", "max-abs")
        for bits in (3, 2)
    }
    errors = {key: row["weight error"] for key, row in found.items()}
    assert errors["lq", 3] < errors["max-abs", 3] < errors["max-abs", 2]
    assert errors["lq", 3] < errors["lq", 2] < errors["max-abs", 2]
    assert 3 < found["lq", 3]["stored bits"] < 4
    assert all(
        0 <= row[column] <= 100 for row in found.values() for column in ("raw", "5 images", "9 images")
    )


def test_activations_are_quantized_apart_and_need_no_training(traced, monkeypatch):
    monkeypatch.setattr(untrained, "FEW_IMAGES", (5, 9))
    data = digits(8)
    bench = untrained.Bench(traced("digitsnet"), replace(data, test=data.test.take(torch.arange(20))))
    scored: list[list[float]] = []
    score = untrained.Bench.score

    def watched(self, model):
        points = [part for part in model.modules() if isinstance(part, PointQuantizer) and part.bits == 3]
        scored.append([float(part.limit) for part in points])
        assert {part.share for part in points} == {0.01} and not any(part.calibrating for part in points)
        return score(self, model)

    monkeypatch.setattr(untrained.Bench, "score", watched)
    row = bench.activations_row("value-aware:0.01", 3)
    assert list(row) == ["raw", "5 images", "9 images"] and all(0 <= value <= 100 for value in row.values())
    assert len(scored[0]) > 2 and scored[0] != scored[1] != scored[2]


def test_the_ends_stay_in_floats(traced):
    network = traced("resnet20")
    quantized = list(untrained.middle_policy(network, 2).values("weight_bits"))
    assert quantized == [layer.name for layer in network.layers][1:-1]

"""A detector all the way: a run, its report page, fine-tuning with and without imitation, both scores."""

import functools
import json
from pathlib import Path
from unittest import mock

import pytest
import torch
from torch import nn

from agents.config import AgentConfig, SearchConfig
from agents.export import ORIGINAL_FILE, export_run
from agents.outcome import Outcome
from agents.report import write_report
from agents.run import load_run, start_run
from agents.run_config import RunConfig, SourceConfig
from amc.compress import ChannelPruning, apply
from amc.data import load_data
from amc.data.boxes import DetectionData
from amc.data.shapes import shapes
from amc.detection.features import last_convolution, maps_and_features
from amc.errors import UserError
from amc.models import build_model, save_weights
from amc.network import trace
from amc.package import load_package
from amc.policy import CompressionPolicy, LayerDecision
from amc.pruning.importance import rank_channels
from amc.tasks import ClassificationTask, DetectionTask, score_and_further
from amc.training import Recipe, fit
from envs.problem_config import ProblemConfig
from scripts import evaluate, fine_tune
from scripts.cli import exit_code
from scripts.mimic_tuning import check_imitation
from scripts.progress import outcome_table

pytest.importorskip("pycocotools")
WIDTH = 0.125


@functools.cache
def few_shapes() -> DetectionData:
    """Small images of shapes, few enough for a training in a second."""
    with mock.patch.multiple("amc.data.shapes", TRAIN_IMAGES=40, REWARD_IMAGES=8, TEST_IMAGES=8):
        return shapes(32)


@functools.cache
def trained() -> nn.Module:
    torch.manual_seed(0)
    model = build_model("detector", 3, 3, WIDTH)
    task = DetectionTask(few_shapes())
    fit(model, task.data, Recipe(8, batch_size=8, lr=0.05, weight_decay=1e-4), loss=task.loss)
    return model


@pytest.fixture(scope="module")
def run_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run with the uniform policy at half of the MACs."""
    folder = tmp_path_factory.mktemp("runs")
    save_weights(trained(), folder / "weights.safetensors")
    source = SourceConfig(
        "detector",
        folder / "weights.safetensors",
        WIDTH,
        "tests.test_detection_flow:few_shapes",
        task="detection",
        device="cpu",
    )
    problem = ProblemConfig(budget=("macs=0.5",), target="onnxruntime", final_images=64)
    run = start_run(folder / "run", RunConfig(source, problem, AgentConfig("uniform"), SearchConfig(1)))
    run.search()
    run.outcomes()
    run.problem.close()
    return folder / "run"


def tune(folder: Path, out: Path, *more: object) -> int:
    given = ["--run", folder, "--out", out, "--epochs", 2, "--batch-size", 8, *more]
    return exit_code(fine_tune.main, [str(each) for each in given])


# ---- run and report -------------------------------------------------------------------------------------


def test_the_page_of_a_detection_run_draws_boxes_and_tells_both_scores(run_folder: Path):
    page, *drawings = write_report([run_folder])
    assert page.with_name("boxes.png") in drawings and page.with_name("boxes.png").stat().st_size > 5000
    text = page.read_text()
    assert "<h2>What is found</h2>" in text and "Blue: labelled objects" in text
    rows = {row["name"]: row for row in json.loads((run_folder / "outcomes.json").read_text())}
    expected = DetectionTask(few_shapes()).precision(trained(), "test")
    assert rows["original"]["further"]["AP50"] == pytest.approx(expected.half, abs=1e-3)
    assert "mAP, test split" in text and "AP50, test split" in text
    assert f"{100 * rows['uniform']['further']['AP50']:.2f}" in text


def test_a_task_without_further_scores_has_its_score_alone(run_folder: Path):
    assert score_and_further(DetectionTask(few_shapes()), trained(), "test")[1].keys() == {"AP50"}

    class Plain:
        score_name = "accuracy"

        def score(self, model: nn.Module, split: str) -> float:
            return 0.25

    assert score_and_further(Plain(), trained(), "test") == (0.25, {})  # type: ignore[arg-type]


def test_the_table_of_a_search_has_a_column_for_the_second_score():
    rows = [
        Outcome("original", None, 0.5, 0.4, {"macs": 2e6}, further={"AP50": 0.71}),
        Outcome("uniform", None, 0.3, 0.2, {"macs": 1e6}),
    ]
    table = outcome_table(rows, "mAP")
    headings = [str(column.header) for column in table.columns]
    assert headings == ["", "reward-split mAP", "test mAP", "test AP50", "MMACs"]
    assert list(table.columns[3].cells) == ["71.00%", ""]
    assert "further" not in rows[1].to_json()


def test_an_exported_file_is_given_both_scores(run_folder: Path, tmp_path: Path, capsys):
    run = load_run(run_folder)
    export_run(run, folder=tmp_path)
    run.problem.close()
    given = ["--file", tmp_path / ORIGINAL_FILE, "--data", "tests.test_detection_flow:few_shapes"]
    told = ["--task", "detection", "--target", "onnxruntime", "--no-latency", "--json", tmp_path / "f.json"]
    assert exit_code(evaluate.main, [str(each) for each in (*given, *told)]) == 0
    said = capsys.readouterr().out
    (row,) = json.loads((tmp_path / "f.json").read_text())["rows"]
    expected = DetectionTask(few_shapes()).precision(trained(), "test")
    assert (row["score"], row["further"]["AP50"]) == pytest.approx((expected.coco, expected.half), abs=1e-3)
    assert "test AP50" in said and f"{row['further']['AP50']:.2%}" in said


# ---- imitation ------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def imitated(run_folder: Path) -> Path:
    """The run's network fine-tuned with quantized imitation."""
    assert tune(run_folder, run_folder / "imitated", "--mimic", "quantized") == 0
    return run_folder / "imitated"


def figures_in(folder: Path) -> dict:
    return json.loads((folder / "fine_tune.json").read_text())


def test_a_compressed_detector_imitates_the_original(run_folder: Path, imitated: Path, capsys):
    alone = run_folder / "alone"
    assert tune(run_folder, alone) == 0
    said = capsys.readouterr().out
    assert "so the labels alone teach" in said and "test AP50" in said
    assert "matching" not in figures_in(alone) and 0 < figures_in(imitated)["matching"] < 1
    assert "test AP50" in figures_in(alone)["scores"]["fine-tuned"]
    one, other = (load_package(folder).module for folder in (alone, imitated))
    assert not torch.equal(last_convolution(one).weight, last_convolution(other).weight)
    assert list(one.state_dict()) == list(other.state_dict()), "nothing of the imitation stays"


def test_a_cut_imitation_ends_as_an_uncut_one(
    run_folder: Path, imitated: Path, tmp_path: Path, monkeypatch, capsys
):
    keep = fine_tune.save_checkpoint

    def keep_and_interrupt(path, model, epoch, settings):
        keep(path, model, epoch, settings)
        raise KeyboardInterrupt

    monkeypatch.setattr(fine_tune, "save_checkpoint", keep_and_interrupt)
    assert tune(run_folder, tmp_path / "parts", "--mimic", "quantized") == 130
    monkeypatch.setattr(fine_tune, "save_checkpoint", keep)
    capsys.readouterr()
    assert tune(run_folder, tmp_path / "parts", "--resume") == 2
    assert "mimic was quantized" in capsys.readouterr().err
    assert tune(run_folder, tmp_path / "parts", "--mimic", "quantized", "--resume") == 0
    assert f"{figures_in(imitated)['matching']:.2%} of the quantized features" in capsys.readouterr().out
    whole, parts = (load_package(folder).module.state_dict() for folder in (imitated, tmp_path / "parts"))
    assert all(torch.equal(value, parts[name]) for name, value in whole.items())


def test_classifiers_imitate_no_regions():
    task = ClassificationTask(load_data("digits", side=8))
    check_imitation(task, "none")
    with pytest.raises(UserError, match="leave out --mimic for classification"):
        check_imitation(task, "quantized")


def test_the_features_of_a_compressed_detector_are_what_enters_its_head():
    data = few_shapes()
    network = trace(trained(), DetectionTask(data).example_input())
    group = network.group_of["neck"]
    decisions = tuple(
        LayerDecision(
            layer.name, {"width": 3 if network.group_of.get(layer.name) is group else layer.out_channels}
        )
        for layer in network.layers
    )
    policy = CompressionPolicy(network.fingerprint, decisions)
    small = apply(policy, network, (ChannelPruning(rank_channels(network)),))
    x = data.normalised("test")[:2]
    maps, features = maps_and_features(small, x)
    assert features.shape[:2] == (2, 3)
    assert torch.equal(small.get_submodule("head")(features), maps)

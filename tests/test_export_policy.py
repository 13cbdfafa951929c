"""`export_policy.py`: what a run leaves for deployment, and what it refuses."""

import json
import re
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
import torch

from agents.run import load_run
from amc.package import file_bytes, load_package
from amc.package_form import packed_form
from amc.policy import CompressionPolicy
from amc.quantization.kmeans import huffman_bytes
from scripts import export_policy
from scripts.cli import exit_code
from scripts.main_job import standard_error
from scripts.main_job_page import write_main_job_page
from tests.test_run import ROOT, call, tiny_data


@pytest.fixture(autouse=True)
def _surroundings(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)  # the tiny network is given by an import path of the tests


@pytest.fixture(scope="module")
def run_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished search with quantized weights and activations."""
    runs = tmp_path_factory.mktemp("runs")
    bits = ["--weight-bits", "4", "6", "--activation-bits", "8"]
    options = ["--runs", runs, "--name", "tiny", "--evaluations", "8", "--budget", "macs=0.5", "size=0.15"]
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(ROOT)
        assert call(*options, *bits) == 0
    return runs / "tiny"


def export(*arguments: object) -> int:
    return exit_code(export_policy.main, [str(argument) for argument in arguments])


def test_an_export_holds_everything_and_agrees_with_torch(run_folder: Path, tmp_path: Path):
    out = tmp_path / "out"
    assert export("--run", run_folder, "--out", out) == 0
    names = {path.name for path in out.iterdir()}
    onnx_files = {"original.onnx", "model.onnx", "model_int8.onnx", "actor.onnx", "critic.onnx"}
    assert names == onnx_files | {"model.safetensors", "policy.json", "export.json", "actor.json"}

    best = CompressionPolicy.load(run_folder / "policy.json")
    assert CompressionPolicy.load(out / "policy.json") == best
    run = load_run(run_folder)
    images = tiny_data().normalised("test")
    model, rebuilt = run.evaluator.compressed(best), load_package(out, run.network)
    with torch.no_grad():
        expected = model(images)
        assert torch.equal(rebuilt.module(images), packed_form(model, run.network)(images))
    assert file_bytes(out / "model.safetensors")[1] == run.evaluator.costs_of(best)["size"]
    session = onnxruntime.InferenceSession(str(out / "model_int8.onnx"))
    classes = session.run(None, {"input": images.numpy()})[0].argmax(axis=1)
    assert np.mean(classes == expected.argmax(dim=1).numpy()) >= 0.95
    assert json.loads((out / "export.json").read_text())["policy"] == best.digest()
    run.problem.close()


def test_what_huffman_codes_would_take_is_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    options = ["--runs", tmp_path, "--name", "tiny", "--algorithm", "uniform", "--evaluations", "1"]
    assert call(*options, "--budget", "size=0.15", "--weight-quantizer", "kmeans", "--freeze", "*") == 0
    assert export("--run", tmp_path / "tiny") == 0
    plain, shorter = (
        int(n.replace(",", ""))
        for n in re.findall(
            r"Huffman-coded, the ([\d,]+) bytes of its k-means codes and codebooks would be ([\d,]+)\.",
            capsys.readouterr().out,
        )[0]
    )
    floats = load_package(tmp_path / "tiny" / "export").module
    coded = [part for part in floats.modules() if hasattr(part, "quantizer")]
    assert plain == sum(part.quantizer.quantize(part.weight).bytes for part in coded)
    assert shorter == sum(huffman_bytes(part.quantizer.quantize(part.weight)) for part in coded)


def test_an_earlier_export_is_replaced_only_on_demand(
    run_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    precious = tmp_path / "precious.txt"
    precious.write_text("mine")
    assert export("--run", run_folder, "--out", tmp_path) == 2
    assert "--force" in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["precious.txt"]
    assert export("--run", run_folder, "--out", tmp_path, "--force") == 0
    assert precious.read_text() == "mine"


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("not json", "JSON"),
        ('{"weights": []}', "not a compression policy"),
        ('{"format": "amc-policy", "version": 99}', "version"),
        ('{"format": "amc-policy", "version": 1, "network": "other", "decisions": []}', "another network"),
    ],
)
def test_a_policy_that_does_not_fit_is_one_sentence(
    run_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], content: str, words: str
):
    policy = tmp_path / "policy.json"
    policy.write_text(content)
    out = tmp_path / "out"
    assert export("--run", run_folder, "--policy", policy, "--out", out) == 2
    error = capsys.readouterr().err
    assert words in error and error.startswith("error: ") and error.count("\n") == 1
    assert not out.exists()


def test_the_results_page_names_what_is_missing_and_shows_what_is_there(tmp_path: Path):
    table = {
        "original": 0.92,
        "uniform": 0.70,
        "ddpg": [0.84],
        "random": [0.80],
        "reward_split": {"original": 0.99, "uniform": 0.73, "ddpg": [0.88], "random": [0.83]},
        "evaluation_seconds": {"ddpg": [300.0], "random": [290.0]},
        "threads": {"ddpg": [4], "random": [1]},
        "standard_error": {"reward": standard_error(0.73, 2000), "test": standard_error(0.7, 10_000)},
        "seconds_per_search": 310.0,
    }
    page = tmp_path / "page.md"
    write_main_job_page(page, {"resnet20_macs50": table})
    text = page.read_text()
    assert "84.00%" in text and "| seed 0 | +5.00 | +4.00 |" in text
    assert "Not measured yet: demo" in text and "Not measured yet: resnet20_latency" in text


def test_standard_error_of_a_share():
    assert standard_error(0.5, 100) == pytest.approx(0.05)

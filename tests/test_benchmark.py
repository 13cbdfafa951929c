"""The script that measures exported files in several fresh processes."""

import json
import signal
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from amc.data import load_data
from amc.errors import UserError
from amc.export import export_onnx
from amc.graph import trace_graph
from amc.targets import Target, Timing
from amc.targets.calibration import Profile
from amc.tasks import ClassificationTask
from scripts import benchmark as script
from scripts.cli import exit_code

FAKE = f"{__name__}:Fake"
MILLISECONDS = {"original": (2.0, 2.2, 2.4), "model": (1.0, 1.1, 1.2), "same": (2.0, 2.2, 2.4)}
"""What each fake process measures."""


class Fake(Target):
    """A target whose processes and figures are made up; it counts instructions."""

    name, profile, runtime_version = "fake", Profile(width_multiple=8), "1.0"
    unit, file_suffix = "M instructions", ".tflite"
    measured = 0
    reliable = True

    def measure(self, files, *, time_limit_s=1.0):
        if any(not Path(file).read_text() for file in files):
            raise UserError("fake cannot use an empty file.")
        costs = [MILLISECONDS[Path(file).read_text()][Fake.measured] for file in files]
        Fake.measured += 1
        return [Timing(cost, (cost, cost), cost / costs[0], Fake.reliable, 1) for cost in costs]

    def run(self, file, inputs):
        """Logits of class 0 for the original, of class 1 for any other file."""
        wanted = 0 if Path(file).read_text() == "original" else 1
        return np.eye(10, dtype=np.float32)[np.full(len(inputs), wanted)]


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An export folder of the fake target, and a copy of the original by another name."""
    monkeypatch.setattr(Fake, "measured", 0)
    export = tmp_path / "export"
    export.mkdir()
    for name, content in (("original", "original"), ("model_int8", "model"), ("copy", "same")):
        (export / f"{name}.tflite").write_text(content)
    return export


def call(*arguments: object) -> int:
    return exit_code(script.main, [str(argument) for argument in arguments])


def test_figures_of_all_processes_on_paper_and_in_json(
    folder: Path, tmp_path: Path, monkeypatch, capsys
) -> None:
    monkeypatch.setattr(script, "weight_bits_of", lambda file: [4] if "int8" in file.name else [])
    out = tmp_path / "figures.json"
    files = [folder / f"{name}.tflite" for name in ("original", "model_int8", "copy")]
    assert call(*files, "--target", FAKE, "--processes", 3, "--out", out) == 0
    figures = json.loads(out.read_text())
    original, model, copy = figures["rows"]
    assert (figures["target"], figures["runtime"], figures["unit"]) == (FAKE, "1.0", "M instructions")
    assert figures["machine"]["cpu"] and figures["date"].endswith("+00:00") and figures["data"] is None
    assert original["latency"] == 2.2 and "ratio" not in original and original["bytes"] == 8
    assert [process["best"] for process in model["processes"]] == [1.0, 1.1, 1.2]
    assert [process["ratio"] for process in model["processes"]] == [0.5, 0.5, 0.5]
    assert (model["latency"], model["ratio"], model["verdict"]) == (1.1, 0.5, "faster")
    assert model["ratio_cv"] == pytest.approx(0) and model["score"] is None
    assert (copy["ratio"], copy["verdict"]) == (1.0, "no difference")
    said = capsys.readouterr().out
    for part in ("M instructions", "1.000..1.200", "0.500", "2.00x", "0.0%", "faster", "no difference"):
        assert part in said
    assert "3 fresh processes" in said and "accuracy" not in said
    assert "Weights of 4 bits save bytes" in figures["note"] and figures["note"] in said


def test_an_export_folder_stands_for_its_files(folder: Path, tmp_path: Path) -> None:
    out = tmp_path / "figures.json"
    assert call(folder, "--target", FAKE, "--processes", 2, "--out", out) == 0
    rows = json.loads(out.read_text())["rows"]
    assert [Path(row["file"]).name for row in rows] == ["original.tflite", "model_int8.tflite"]


def test_accuracy_stands_beside_the_latency(folder: Path, tmp_path: Path, capsys) -> None:
    out = tmp_path / "figures.json"
    data = ("--data", "digits", "--side", 8)
    assert call(folder, "--target", FAKE, "--processes", 2, *data, "--out", out) == 0
    figures = json.loads(out.read_text())
    labels = load_data("digits", side=8).split("test").labels
    shares = [float((labels == digit).float().mean()) for digit in (0, 1)]
    assert [row["score"] for row in figures["rows"]] == pytest.approx(shares)
    assert (figures["data"], figures["split"], figures["images"]) == ("digits", "test", 360)
    said = capsys.readouterr().out
    assert all(f"{share:.2%}" in said for share in shares) and "360 test images of digits" in said


def test_files_of_one_name_are_told_apart(folder: Path, tmp_path: Path, capsys) -> None:
    other = tmp_path / "original.tflite"
    other.write_text("model")
    assert call(folder / "original.tflite", other, "--target", FAKE, "--processes", 2) == 0
    names = [line.split("│")[1].strip() for line in capsys.readouterr().out.splitlines() if "│" in line]
    assert names == ["export/original.tflite", "original.tflite"]


def test_a_busy_machine_is_mentioned(folder: Path, monkeypatch, capsys) -> None:
    monkeypatch.setattr(Fake, "reliable", False)
    assert call(folder, "--target", FAKE, "--processes", 2) == 0
    said = " ".join(capsys.readouterr().out.replace("│", " ").split())
    assert "unreliable in 2 of 2: busy machine" in said


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["export/original.tflite"], "at least one file to compare it with"),
        (["export/original.tflite", "nowhere.tflite"], "no model file nowhere.tflite"),
        (["export/original.tflite", "model.onnx"], "fake reads .tflite files"),
        (["empty"], "empty is no complete export: it must hold original.tflite"),
        (["export", "--processes", "1"], "at least 2"),
        (["export", "--target", "openvine"], "did you mean 'openvino'"),
        (["export", "--data", "cifra10"], "no data set 'cifra10'"),
        (["export", "--out", "nowhere/figures.json"], "no folder nowhere"),
        (["export", "--out", "model.onnx"], "model.onnx exists: pass --force"),
        (["export", "--out", "empty", "--force"], "empty exists"),
    ],
)
def test_bad_input_is_one_sentence_before_anything_is_measured(
    arguments, said, folder: Path, tmp_path: Path, monkeypatch, capsys
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty").mkdir()
    (tmp_path / "model.onnx").write_text("model")
    assert call(*(["--target", FAKE] if "--target" not in arguments else []), *arguments) == 2
    error = capsys.readouterr().err.strip()
    assert error.startswith("error: ") and said in error and len(error.splitlines()) == 1
    assert Fake.measured == 0


def test_earlier_figures_are_kept_until_new_ones_are_there(folder: Path, tmp_path: Path) -> None:
    out = tmp_path / "figures.json"
    out.write_text("earlier")
    options = ("--target", FAKE, "--processes", 2, "--out", out, "--force")
    (folder / "model.tflite").write_text("")
    assert call(folder, *options) == 2 and out.read_text() == "earlier"
    (folder / "model.tflite").unlink()
    assert call(folder, *options) == 0 and json.loads(out.read_text())["rows"]


def test_ctrl_c_ends_cleanly(folder: Path, tmp_path: Path, monkeypatch, capsys) -> None:
    closed = []
    monkeypatch.setattr(Fake, "measure", lambda *_, **__: signal.raise_signal(signal.SIGINT))
    monkeypatch.setattr(Fake, "close", lambda self: closed.append(True))
    out = tmp_path / "figures.json"
    # A job that a shell started in the background ignores SIGINT, and so would these tests in it.
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        assert call(folder, "--target", FAKE, "--out", out) == 130
    finally:
        signal.signal(signal.SIGINT, before)
    assert "interrupted" in capsys.readouterr().err and closed and not out.exists()


def test_real_files_in_a_real_runtime(tmp_path: Path) -> None:
    networks = {}
    for name, channels in (("small", 4), ("large", 64)):
        torch.manual_seed(0)
        layers = nn.Conv2d(1, channels, 3), nn.ReLU(), nn.Flatten(), nn.Linear(36 * channels, 10)
        networks[name] = trace_graph(nn.Sequential(*layers).eval())
        export_onnx(networks[name], torch.zeros(1, 1, 8, 8), tmp_path / f"{name}.onnx")
    files, out = (tmp_path / "large.onnx", tmp_path / "small.onnx"), tmp_path / "figures.json"
    options = ("--target", "onnxruntime", "--processes", 2, "--data", "digits", "--side", 8, "--out", out)
    assert call(*files, *options) == 0
    large, small = json.loads(out.read_text())["rows"]
    assert 0 < small["latency"] < large["latency"] and small["ratio"] < 1
    task = ClassificationTask(load_data("digits", side=8))
    assert large["score"] == pytest.approx(task.score(networks["large"], "test"), abs=0.01)

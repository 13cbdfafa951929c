"""The script that scores and times exported files, and `export_model`, which writes and checks them."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from amc.data import load_data
from amc.errors import UserError
from amc.export import export_onnx
from amc.export.check import Agreement
from amc.export.model import export_model, judge, without_quantization
from amc.graph import trace_graph
from amc.quantization.modules import ActivationQuantizer, UniformWeightQuantizer, with_quantized_weight
from amc.tasks import ClassificationTask
from amc.training import Recipe, fit
from scripts import evaluate as script
from scripts.cli import exit_code
from scripts.evaluate import InTarget


def call(*arguments: object) -> int:
    return exit_code(script.main, [str(argument) for argument in arguments])


def small_network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(
        *(ActivationQuantizer(), nn.Conv2d(1, 16, 3, stride=2, padding=1), nn.BatchNorm2d(16), nn.ReLU()),
        *(ActivationQuantizer(), nn.Flatten(), nn.Linear(256, 10)),
    )


@pytest.fixture(scope="module")
def networks() -> dict[str, nn.Module]:
    """A trained network for digits of 8 pixels, in floats and in 4-bit weights and 8-bit activations."""
    data = load_data("digits", side=8)
    model = small_network()
    fit(model, data, Recipe(epochs=4, lr=0.05))
    quantized = small_network()
    quantized.load_state_dict(model.state_dict())
    for index in (1, 6):
        quantizer = UniformWeightQuantizer(4, quantized[index].weight.shape[0])
        quantizer.fit(quantized[index].weight)
        quantized[index] = with_quantized_weight(quantized[index], quantizer)
    for index in (0, 4):
        quantized[index].bits, quantized[index].calibrating = 8, True
    with torch.no_grad():
        quantized.eval()(data.calibration(200, 200)[0])
    return {"original": trace_graph(model), "compressed": trace_graph(quantized)}


@pytest.fixture(scope="module")
def files(networks: dict[str, nn.Module], tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("files")
    one = torch.zeros(1, 1, 8, 8)
    return {name: export_onnx(net, one, folder / f"{name}.onnx").path for name, net in networks.items()}


def score(network: nn.Module, split: str = "test") -> float:
    return ClassificationTask(load_data("digits", side=8)).score(network, split)


# ---- the script -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("target", ["onnxruntime", "openvino"])
def test_scores_and_times_a_file_beside_its_reference(
    target, networks, files, tmp_path: Path, capsys
) -> None:
    out = tmp_path / "figures.json"
    arguments = ("--file", files["compressed"], "--reference", files["original"], "--side", 8)
    assert call(*arguments, "--target", target, "--json", out) == 0
    figures = json.loads(out.read_text())
    original, compressed = figures["rows"]
    assert [original["name"], compressed["name"]] == ["original", "compressed"]
    assert original["score"] == score(networks["original"]) > 0.8
    assert compressed["score"] == pytest.approx(score(networks["compressed"]), abs=0.01)
    assert compressed["bytes"] == files["compressed"].stat().st_size
    assert original["latency"]["ratio"] == 1.0 and original["verdict"] is None
    ratio = compressed["latency"]["best"] / original["latency"]["best"]
    assert compressed["latency"]["ratio"] == pytest.approx(ratio)
    assert compressed["verdict"] in ("faster", "slower", "no difference")
    assert (figures["target"], figures["split"], figures["images"]) == (target, "test", 360)
    assert figures["unit"] == "ms"
    said = capsys.readouterr().out
    assert "Weights of 4 bits save bytes" in figures["note"] and figures["note"] in said
    assert f"{original['score']:.2%}" in said and f"{1 / ratio:.2f}x" in said and "360 test images" in said


def test_another_split_without_latency_or_reference(networks, files, tmp_path: Path) -> None:
    out = tmp_path / "figures.json"
    arguments = ("--file", files["original"], "--side", 8, "--target", "onnxruntime", "--split", "reward")
    assert call(*arguments, "--no-latency", "--json", out) == 0
    figures = json.loads(out.read_text())
    (row,) = figures["rows"]
    assert row["score"] == score(networks["original"], "reward") and figures["images"] == 240
    assert row["name"] == "file" and row["latency"] is None and row["verdict"] is None


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"--file": "nowhere.onnx"}, "no model file nowhere.onnx"),
        ({"--reference": "nowhere.onnx"}, "no model file nowhere.onnx"),
        ({"--json": "nowhere/figures.json"}, "no folder nowhere"),
        ({"--target": "openvine"}, "did you mean 'openvino'"),
        ({"--data": "cifra10"}, "no data set 'cifra10'"),
        ({"--side": "16"}, "its input is"),
        ({"--file": "TEXT"}, "onnxruntime cannot use"),
    ],
)
def test_bad_input_is_one_sentence(changed, said, files, tmp_path: Path, capsys) -> None:
    text = tmp_path / "text.onnx"
    text.write_text("no model")
    options = {"--file": files["original"], "--side": "8", "--target": "onnxruntime", **changed}
    options = {key: text if value == "TEXT" else value for key, value in options.items()}
    assert call(*(part for option in options.items() for part in option)) == 2
    error = capsys.readouterr().err.strip()
    assert error.startswith("error: ") and said in error and len(error.splitlines()) == 1


def test_any_task_can_score_a_file() -> None:
    class Bright:
        def run(self, file: Path, inputs: np.ndarray) -> np.ndarray:
            assert inputs.dtype == np.float32 and file == Path("x.onnx")
            return np.stack([inputs.mean((1, 2, 3)), -inputs.mean((1, 2, 3))], axis=1)

    images = torch.tensor([2.0, -1.0])[:, None, None, None].expand(-1, 1, 3, 3)
    assert InTarget(Bright(), Path("x.onnx"))(images).argmax(1).tolist() == [0, 1]


# ---- writing the files ----------------------------------------------------------------------------------


def images() -> Tensor:
    return load_data("digits", side=8).normalised("test")


def test_export_model_writes_and_checks_both_files(networks, tmp_path: Path) -> None:
    calibration = load_data("digits", side=8).calibration(400, 200)
    floats, int8 = export_model(
        networks["compressed"], tmp_path, images(), calibration=calibration, drop=0.0, policy_digest="abc"
    )
    assert (floats.path.name, int8.path.name) == ("model.onnx", "model_int8.onnx")
    assert (floats.verdict, int8.verdict) == ("passed", "passed")
    assert floats.quantization == {"weights": {}, "activations": {}}
    assert int8.quantization == {"weights": {4: 2}, "activations": {8: 2}}
    assert set(int8.agreement) == {"onnxruntime", "openvino"}
    assert int8.to_json()["agreement"]["openvino"]["same_decisions"] >= 0.99 and int8.size < floats.size
    assert json.dumps(int8.to_json())


def test_a_network_in_floats_has_one_file(networks, tmp_path: Path) -> None:
    (tmp_path / "model_int8.onnx").write_text("of an earlier policy")
    (floats,) = export_model(networks["original"], tmp_path, images(), calibration=[], drop=0.0)
    assert floats.verdict == "passed" and [path.name for path in tmp_path.iterdir()] == ["model.onnx"]


def test_without_quantization_the_statistics_are_its_own(networks) -> None:
    calibration = load_data("digits", side=8).calibration(400, 200)
    quantized = networks["compressed"]
    state = {name: value.clone() for name, value in quantized.state_dict().items()}
    floats = without_quantization(quantized, calibration)
    assert not [m for m in floats.modules() if isinstance(m, ActivationQuantizer) and m.enabled]
    convolved = floats.get_submodule("1")(torch.cat(calibration))
    norm = floats.get_submodule("2")
    assert torch.allclose(norm.running_mean, convolved.mean((0, 2, 3)), atol=1e-5)
    assert not torch.allclose(norm.running_mean, state["2.running_mean"], atol=1e-5)
    assert all(torch.equal(value, state[name]) for name, value in quantized.state_dict().items())


@pytest.mark.parametrize(
    ("error", "same", "quantized", "drop", "verdict"),
    [
        (1e-5, 1.0, False, 0.0, "passed"),
        (1e-3, 1.0, False, 0.0, "failed"),
        (1e-3, 1.0, False, 0.5, "failed"),
        (0.1, 0.995, True, 0.01, "passed"),
        (0.1, 0.98, True, 0.01, "failed"),
        (0.1, 0.98, True, 0.06, "reported"),
    ],
)
def test_verdicts(error: float, same: float, quantized: bool, drop: float, verdict: str) -> None:
    good = Agreement(0.0, 1.0)
    assert judge({"a": good, "b": Agreement(error, same)}, quantized, drop) == verdict


def test_export_needs_its_folder(networks, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no folder"):
        export_model(networks["original"], tmp_path / "none", images(), calibration=[], drop=0.0)

"""The target litert: running and timing .tflite files in the measuring process, and exporting for it."""

import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from agents.export import export_run
from agents.run import load_run
from amc.errors import UserError
from amc.export import check_export
from amc.export.model import export_model, formats_for
from amc.graph import trace_graph
from amc.targets import Target, get_target, list_targets
from amc.targets.cache import JsonCache
from amc.targets.saturation import saturation_error, weight_bits_exact
from tests.test_export import NETWORKS, images, prepared, quantize
from tests.test_run import ROOT, call

pytest.importorskip("ai_edge_litert.interpreter")


@pytest.fixture(scope="module")
def target() -> Iterator[Target]:
    """One measuring process for all tests."""
    with get_target("litert") as target:
        yield target


@pytest.fixture(scope="module")
def file(target: Target, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small float network for images [3, 16, 16]."""
    path = tmp_path_factory.mktemp("litert") / "model.tflite"
    target.export(trace_graph(prepared(NETWORKS["resnet"])), images(1), path)
    return path


def test_it_is_known_by_name() -> None:
    assert "litert" in list_targets()


@pytest.mark.parametrize("count", [1, 7, 105])
def test_runs_any_number_of_images(count: int, target: Target, file: Path) -> None:
    net, x = prepared(NETWORKS["resnet"]), images(count)
    np.testing.assert_allclose(target.run(file, x.numpy()), net(x).detach().numpy(), atol=1e-4)


def test_images_in_and_out_have_their_channels_first(target: Target, tmp_path: Path) -> None:
    net = nn.Conv2d(3, 5, (3, 1))
    target.export(trace_graph(nn.Sequential(net)), images(1), tmp_path / "a.tflite")
    found = target.run(tmp_path / "a.tflite", images(4).numpy())
    assert found.shape == (4, 5, 14, 16)
    np.testing.assert_allclose(found, net(images(4)).detach().numpy(), atol=1e-5)


def test_vectors_stay_what_they_are(target: Target, tmp_path: Path) -> None:
    net, x = nn.Linear(6, 4), torch.randn(3, 6)
    target.export(trace_graph(nn.Sequential(net)), x, tmp_path / "a.tflite")
    np.testing.assert_allclose(
        target.run(tmp_path / "a.tflite", x.numpy()), net(x).detach().numpy(), atol=1e-5
    )


def test_measures_a_larger_network_as_slower(target: Target, tmp_path: Path) -> None:
    """Two hundred times the work: no load on the machine can hide that."""
    files = [tmp_path / "small.tflite", tmp_path / "large.tflite"]
    for path, width in zip(files, (4, 64), strict=True):
        net = nn.Sequential(nn.Conv2d(3, width, 3), nn.Conv2d(width, width, 3), nn.Conv2d(width, 4, 3))
        target.export(trace_graph(net), images(1, 32), path)
    reference, candidate = target.measure(files, time_limit_s=3)
    assert reference.ratio == 1.0 and reference.best > 0 and candidate.ratio > 3


def test_running_does_not_disturb_measuring(target: Target, file: Path) -> None:
    """A session is resized for many images; timing stays at one."""
    (before,) = target.measure([file], time_limit_s=2)
    target.run(file, images(100).numpy())
    (after,) = target.measure([file], time_limit_s=2)
    assert after.best < 20 * before.best


def test_wrong_input_is_one_sentence(target: Target, file: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="its input is Nx3x16x16, the data are 2x3x8x8"):
        target.run(file, images(2, 8).numpy())
    with pytest.raises(UserError, match="no model file"):
        target.run(tmp_path / "none.tflite", images(1).numpy())
    (tmp_path / "bad.tflite").write_bytes(b"not a model at all")
    with pytest.raises(UserError, match=r"litert cannot use .*bad\.tflite"):
        target.measure([tmp_path / "bad.tflite"])


def test_a_missing_package_names_the_command(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("amc.targets.litert_cpu.installed_version", lambda name: None)
    with pytest.raises(UserError, match=r'pip install "amc-compress\[litert\]"'):
        get_target("litert").measure([file])
    with pytest.raises(UserError, match=r'pip install "amc-compress\[litert\]"'):
        check_export(file, prepared(NETWORKS["resnet"]), images(1))


def test_the_self_check_runs_in_its_own_format(target: Target, tmp_path: Path) -> None:
    assert weight_bits_exact(target, JsonCache(tmp_path)) == (8 if saturation_error(target) <= 1 else 7)


# ---- what a run leaves ----------------------------------------------------------------------------------


def test_export_model_writes_and_checks_every_format(tmp_path: Path) -> None:
    net = trace_graph(quantize(prepared(NETWORKS["resnet"]), 6))
    files = export_model(
        net, tmp_path, images(), calibration=[images()], drop=0.0, formats=formats_for(".tflite")
    )
    names = [file.path.name for file in files]
    assert names == ["model.onnx", "model_int8.onnx", "model.tflite", "model_int8.tflite"]
    assert [list(file.agreement) for file in files[2:]] == [["litert"], ["litert"]]
    assert [file.verdict for file in files[::2]] == ["passed", "passed"]
    assert files[3].agreement["litert"].same_decisions >= 0.95 and files[3].size < files[2].size
    floats = trace_graph(prepared(NETWORKS["resnet"]))
    export_model(floats, tmp_path, images(), calibration=[], drop=0.0, formats=(".tflite",))
    assert not (tmp_path / "model_int8.tflite").exists()


def test_an_onnx_target_gets_no_other_format() -> None:
    assert formats_for(".onnx") == formats_for(".own") == (".onnx",)


def test_a_run_for_litert_leaves_tflite_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)  # the tiny network is given by an import path of the tests
    options = ["--runs", tmp_path, "--name", "tiny", "--evaluations", "3", "--budget", "macs=0.5"]
    bits = ["--weight-bits", "8", "--activation-bits", "8"]
    assert call(*options, *bits, "--target", "litert", "--width-multiple", "1") == 0
    run = load_run(tmp_path / "tiny")
    exported = export_run(run)
    run.problem.close()
    written = {path.name for path in exported.paths if path.suffix == ".tflite"}
    assert written == {"original.tflite", "model.tflite", "model_int8.tflite"}
    figures = json.loads((exported.folder / "export.json").read_text())["files"]
    assert {f["path"]: list(f["agreement"]) for f in figures}["model_int8.tflite"] == ["litert"]
    assert all(f["verdict"] != "failed" for f in figures)

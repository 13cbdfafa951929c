"""Iterative fine-grained pruning: stages down to a policy, resumed exactly, zeros in the files."""

from pathlib import Path

import onnx
import pytest
import torch
from onnx import numpy_helper

from agents.run import Run, load_run
from amc.errors import UserError
from amc.files import read_json
from amc.package import load_package
from scripts import prune_iteratively as script
from scripts.cli import exit_code
from scripts.prune_iteratively import PruneIteratively, at_density, overall_density, stages_of
from tests.test_run import FAKE, ROOT, call


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished search for densities."""
    root = tmp_path_factory.mktemp("sparse")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("AMC_CACHE_DIR", str(root / "cache"))
        patch.chdir(ROOT)
        given = (
            "--budget",
            "nonzeros=0.2",
            "--evaluations",
            3,
            "--runs",
            root,
            "--name",
            "run",
            "--target",
            FAKE,
        )
        assert call(*given) == 0
    return root / "run"


@pytest.fixture
def run(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Run:
    monkeypatch.chdir(ROOT)
    return load_run(folder)


def weights(model: torch.nn.Module, run: Run) -> dict[str, torch.Tensor]:
    return {v.name: model.get_submodule(v.name).get_parameter("weight") for v in run.network.layers}


def test_stages_keep_the_proportions_of_the_policy(run: Run):
    policy = run.best_policy
    final = policy.values("density")
    before = dict.fromkeys(final, 100)
    for percent in (50, 35, 25):
        stage = at_density(run, policy, percent)
        assert percent - 3 < overall_density(run, stage) <= percent
        densities = stage.values("density")
        assert all(final[name] <= densities[name] <= before[name] for name in final)
        factor = max(densities[name] / final[name] for name in final)
        assert all(d == 100 or d >= factor * final[name] - 2 for name, d in densities.items())
        before = densities


def test_stages_must_fall_and_end_above_the_policy(run: Run):
    with pytest.raises(UserError, match="must fall"):
        PruneIteratively(run.folder, stages=(35, 50))
    with pytest.raises(UserError, match="must end above that"):
        stages_of(PruneIteratively(run.folder, stages=(50, 20)), run, run.best_policy)


def test_interrupted_stages_end_as_uninterrupted_ones(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    given = ["--run", str(run.folder), "--stages", "50", "--epochs", "2", "--batch-size", "20"]
    assert exit_code(script.main, [*given, "--out", str(tmp_path / "whole")]) == 0

    train, calls = script.train, []

    def cut(*arguments: object) -> None:
        calls.append(arguments)
        train(*arguments)  # type: ignore[arg-type]
        if len(calls) == 2:  # the last stage has a checkpoint, and no score yet
            raise KeyboardInterrupt

    monkeypatch.setattr(script, "train", cut)
    pieces = [*given, "--out", str(tmp_path / "pieces")]
    assert exit_code(script.main, pieces) == 130
    assert exit_code(script.main, pieces) == 2  # an unfinished one is not started anew without being asked to
    monkeypatch.setattr(script, "train", train)
    assert exit_code(script.main, [*pieces, "--resume"]) == 0
    models = [load_package(tmp_path / name, run.network).module for name in ("whole", "pieces")]
    one, other = (weights(model, run) for model in models)
    assert all(torch.equal(one[name], other[name]) for name in one)
    assert not list((tmp_path / "pieces").glob("*stage*"))
    kept = sum(int(weight.count_nonzero()) for weight in one.values())
    assert kept == run.evaluator.costs_of(run.best_policy)["nonzeros"]
    figures, pieced = (read_json(tmp_path / name / "fine_tune.json") for name in ("whole", "pieces"))
    assert isinstance(figures, dict) and "50 % tuned" in figures["scores"]
    assert isinstance(pieced, dict) and pieced["scores"] == figures["scores"]
    graph = onnx.load(tmp_path / "whole" / "model.onnx").graph
    arrays = [numpy_helper.to_array(each) for each in graph.initializer]
    exported = sum(int((array != 0).sum()) for array in arrays if array.ndim in (2, 4))
    assert exported == kept

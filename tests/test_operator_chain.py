"""Every operator from the search to an exported file that a runtime reads."""

import json
from pathlib import Path

import pytest

from amc.policy import CompressionPolicy
from scripts import evaluate, export_policy, fine_tune
from scripts.cli import exit_code
from tests.test_run import ROOT, call

BUDGETS = {
    "filter-groups": ("macs=0.7",),
    "clustered-kernels": ("size=0.45", "--weight-bits", "32", "--activation-bits", "32"),
    "channel-svd": ("size=0.2", "--weight-bits", "6", "7", "--activation-bits", "8"),
    "spatial-svd": ("macs=0.7",),
}
"""That layers themselves cannot keep where all channels stay; in integers where bits count, at most 7
of them, which no CPU saturates."""


def run_script(script: object, *arguments: object) -> int:
    return exit_code(script.main, [str(argument) for argument in arguments])  # type: ignore[attr-defined]


def score(file: Path, folder: Path) -> float:
    data = ("--data", "tests.test_run:tiny_data", "--target", "onnxruntime", "--no-latency")
    assert run_script(evaluate, "--file", file, *data, "--json", folder / "score.json") == 0
    return float(json.loads((folder / "score.json").read_text())["rows"][0]["score"])


@pytest.mark.parametrize("operator", BUDGETS)
def test_what_a_search_replaces_is_exported_tuned_and_evaluated(
    operator: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.chdir(ROOT)
    search = ("--operators", operator, "--min-keep", "1.0", "--evaluations", "4", "--budget")
    assert call("--runs", tmp_path, "--name", "run", *search, *BUDGETS[operator]) == 0
    run = tmp_path / "run"
    best = CompressionPolicy.load(run / "policy.json")
    assert operator in {decision.operator for decision in best.decisions}

    assert run_script(export_policy, "--run", run) == 0
    assert CompressionPolicy.load(run / "export" / "policy.json") == best
    exported = json.loads((run / "outcomes.json").read_text())[-1]["test_score"]
    assert score(run / "export" / "model.onnx", tmp_path) == pytest.approx(exported, abs=0.04)

    assert run_script(fine_tune, "--run", run, "--epochs", "1", "--batch-size", "40") == 0
    tuned = json.loads((run / "fine_tuned" / "fine_tune.json").read_text())["scores"]["fine-tuned"]["test"]
    assert score(run / "fine_tuned" / "model.onnx", tmp_path) == pytest.approx(tuned, abs=0.04)

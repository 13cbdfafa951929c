"""What a report, a dry run and the end of a search say of settings and of blocks left out."""

import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from agents.config import AgentConfig
from agents.log import EvaluationLog
from agents.run_config import RunConfig, write_config
from amc.evaluate import Evaluation
from amc.models import build_model
from amc.network import trace
from amc.policy import REMOVED, CompressionPolicy, LayerDecision
from scripts.train_agent import describe_settings, left_out
from tests.test_report import CONFIG, COSTS, FACTS, make_run, report


def with_block_left_out(folder: Path, config: RunConfig = CONFIG, **facts: Any) -> Path:
    """A run whose only policy leaves conv2 out and keeps a third of the weights of conv1."""
    folder.mkdir(parents=True)
    write_config(folder, config, {**FACTS, **facts})
    decisions = (
        LayerDecision("conv1", {"width": 8, "weight_bits": 4, "density": 33}),
        LayerDecision("conv2", {}, REMOVED),
        LayerDecision("linear", {"width": 10, "weight_bits": 4, "density": 100}),
    )
    evaluation = Evaluation(CompressionPolicy("f" * 16, decisions), 0.9, COSTS, 0.5)
    EvaluationLog(folder / "evaluations.jsonl").add(evaluation, 0.0, {}, leads=True)
    return folder


def test_what_is_left_out_is_said_and_drawn(tmp_path: Path):
    config = replace(CONFIG, problem=replace(CONFIG.problem, drop_blocks=True))
    text, page = report(with_block_left_out(tmp_path / "run", config, blocks=["conv2", "conv9"]))
    assert "Blocks left out 1 of 2" in page.text
    row = page.cells[page.cells.index("conv2") :]
    assert row[:3] == ["conv2", "left out", "linear"]
    assert "33 %" in page.cells and "Dash: share of the single weights that stay" in page.text
    drawing = re.findall(r"<svg.*?</svg>", text, flags=re.DOTALL)[0]
    assert "left out" in drawing and "density of the weights" in drawing and "not quantized" not in drawing
    _, page = report(with_block_left_out(tmp_path / "other", config))
    assert "Blocks left out 1 layers" in page.text
    assert "Blocks left out" not in report(with_block_left_out(tmp_path / "third"))[1].text


def test_settings_that_change_what_figures_mean_are_said(tmp_path: Path):
    config = RunConfig(
        CONFIG.source,
        replace(CONFIG.problem, weight_quantizer="lq", tune_steps=30),
        AgentConfig(candidates=64),
        replace(CONFIG.search, workers=4),
    )
    _, page = report(make_run(tmp_path / "run", config=config))
    for words in (
        "Quantizers weights lq, activations uniform",
        "Searcher ddpg, seed 0, each proposal the best of 64 candidates",
        "2 s of measuring in 4 processes, 4 at once",
        "those after 30 steps of training and before fine-tuning",
    ):
        assert words in page.text
    plain = replace(CONFIG, agent=AgentConfig(algorithm="evolution"))
    _, page = report(make_run(tmp_path / "plain", config=plain))
    assert "Quantizers" not in page.text and "Searcher evolution, seed 0 Search" in page.text
    assert "those before fine-tuning" in page.text


def test_a_dry_run_and_a_search_say_the_same_settings_and_blocks(capsys: pytest.CaptureFixture[str]):
    config = replace(CONFIG, problem=replace(CONFIG.problem, weight_quantizer="lq"))
    describe_settings(replace(config, search=replace(CONFIG.search, proposals_per_round=3)))
    assert capsys.readouterr().out.splitlines() == [
        "searcher: td3, seed 3, each proposal the best of 256 candidates",
        "policies are scored before fine-tuning, 3 at once",
        "quantizers: weights lq, activations uniform",
    ]
    network = trace(build_model("digitsnet", 10, 1, 0.25), torch.zeros(1, 1, 16, 16))
    whole, shorter = (
        CompressionPolicy("f" * 16, rows)
        for rows in ((), tuple(LayerDecision(name, {}, REMOVED) for name in ("block3.conv1", "block3.conv2")))
    )
    assert left_out(network, whole) == "0 of 2 residual blocks"
    assert left_out(network, shorter) == "1 of 2 residual blocks: block3.conv1, block3.conv2"

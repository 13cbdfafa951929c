"""Reads back the TensorBoard events of a toy search, and looks at the figures."""

from pathlib import Path

import numpy as np
import pytest
from matplotlib.colors import to_rgba
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from agents.figures import best_so_far_figure, figure_image, operator_color, policy_figure
from agents.log import EvaluationLog
from agents.search import search
from agents.searcher import make_searcher
from agents.tensorboard import TensorBoardWriter
from amc.evaluate import Evaluation
from amc.policy import REMOVED, CompressionPolicy, LayerDecision
from tests.test_search import SMALL, ToyEvaluate, ToyReward, ToyWalk

WIDTHS = {f"layer{i}": 101 for i in range(6)}


def run_with_curves(folder: Path, evaluate: ToyEvaluate, close: bool) -> EvaluationLog:
    log = EvaluationLog(folder / "evaluations.jsonl")
    writer = TensorBoardWriter(folder, log, {"seed": 0, "budget": "macs|size", "sizes": (32, 32)}, WIDTHS)
    searcher = make_searcher(ToyWalk(), SMALL, 12)
    search(searcher, evaluate, ToyReward(), log, budget_evaluations=12, callbacks=[writer])
    if close:
        writer.close({"test_accuracy": 0.75})
    return log


def read(folder: Path) -> EventAccumulator:
    return EventAccumulator(str(folder), size_guidance={"images": 0, "tensors": 0, "scalars": 0}).Reload()


@pytest.fixture(scope="module")
def resumed(tmp_path_factory: pytest.TempPathFactory) -> tuple[EvaluationLog, EventAccumulator]:
    """A search interrupted after 8 evaluations, its events unclosed, and resumed."""
    folder = tmp_path_factory.mktemp("run")
    run_with_curves(folder, ToyEvaluate(interrupt_at=8), close=False)
    return run_with_curves(folder, ToyEvaluate(), close=True), read(folder)


def test_curves_count_evaluations_once_each(resumed: tuple[EvaluationLog, EventAccumulator]):
    log, events = resumed
    for tag, expected in {
        "search/reward": [row.reward for row in log.rows],
        "search/score": [row.score for row in log.rows],
        "search/best_reward": np.maximum.accumulate([row.reward for row in log.rows]),
        "costs/macs": [row.costs["macs"] for row in log.rows],
        "agent/sigma": [row.metrics["sigma"] for row in log.rows],
        "keep_ratio/layer3": [row.policy["layer3"].values["width"] / 101 for row in log.rows],
    }.items():
        scalars = events.Scalars(tag)
        assert [each.step for each in scalars] == list(range(1, 13)), tag
        assert [each.value for each in scalars] == pytest.approx(list(expected), rel=1e-5), tag
    assert "costs/latency" in events.Tags()["scalars"]
    losses = events.Scalars("agent/critic_loss")
    assert [each.step for each in losses] == list(range(6, 13))  # Training starts after the warm-up of 5.
    assert [each.step for each in events.Scalars("agent/actor_loss")] == list(range(6, 13))


def test_best_policy_is_a_picture_and_a_text(resumed: tuple[EvaluationLog, EventAccumulator]):
    log, events = resumed
    best = log.best()
    assert best is not None
    images = events.Images("best_policy")
    assert images[-1].step == best.index + 1 and images[-1].width > 300
    text = events.Tensors("best_policy/text_summary")[-1].tensor_proto.string_val[0].decode()
    assert f"evaluation {best.index + 1}" in text and '"format": "amc-policy"' in text


def test_configuration_is_a_table_and_hparams(resumed: tuple[EvaluationLog, EventAccumulator]):
    _, events = resumed
    table = events.Tensors("configuration/text_summary")[-1].tensor_proto.string_val[0].decode()
    assert "| budget | macs/size |" in table
    assert {"_hparams_/experiment", "_hparams_/session_start_info"} <= set(events.summary_metadata)
    assert events.Scalars("final/test_accuracy")[0].value == 0.75


def test_bits_are_drawn_and_widths_without_originals(tmp_path: Path):
    class Bits(ToyWalk):
        def policy(self) -> CompressionPolicy:
            rows = super().policy().decisions
            return CompressionPolicy(
                "toy", tuple(LayerDecision(r.point, {**r.values, "weight_bits": 4}) for r in rows)
            )

    log = EvaluationLog(tmp_path / "evaluations.jsonl")
    writer = TensorBoardWriter(tmp_path, log, {})
    searcher = make_searcher(Bits(), SMALL, 2)
    search(searcher, ToyEvaluate(), ToyReward(), log, budget_evaluations=2, callbacks=[writer])
    writer.close({})
    events = read(tmp_path)
    assert [each.value for each in events.Scalars("weight_bits/layer0")] == [4.0, 4.0]
    assert events.Scalars("width/layer0")[0].value == 51.0


def test_layers_that_are_left_out_have_a_ratio_of_zero(tmp_path: Path):
    policy = CompressionPolicy(
        "toy", (LayerDecision("stem", {"width": 8}), LayerDecision("block", {}, REMOVED))
    )
    log = EvaluationLog(tmp_path / "evaluations.jsonl")
    writer = TensorBoardWriter(tmp_path, log, {"drop_blocks": True}, {"stem": 16, "block": 16})
    writer(log.add(Evaluation(policy, 0.5, {}, 0.1), 0.0, {}, leads=True), log)
    writer.close({})
    events = read(tmp_path)
    for tag, value in {
        "keep_ratio/stem": 0.5,
        "keep_ratio/block": 0.0,
        "search/layers_left_out": 1.0,
    }.items():
        assert [each.value for each in events.Scalars(tag)] == [value]
    text = events.Tensors("best_policy/text_summary")[-1].tensor_proto.string_val[0].decode()
    assert "1 layers left out" in text


def test_policy_figure_draws_a_bar_a_layer():
    rows = [
        LayerDecision("stem", {"width": 8, "weight_bits": 8}),
        LayerDecision("block", {"width": 4, "weight_bits": 4}),
        LayerDecision("head", {"weight_bits": 32}),
    ]
    policy = CompressionPolicy("toy", tuple(rows))
    figure = policy_figure(policy, {"stem": 16, "block": 16}, "title")
    bars = figure.axes[0].patches
    assert [bar.get_height() for bar in bars] == [0.5, 0.25, 1.0]
    assert len({bar.get_facecolor() for bar in bars}) == 3
    image = figure_image(figure)
    assert image.dtype == np.uint8 and image.shape[2] == 3 and image.std() > 0
    assert [bar.get_height() for bar in policy_figure(policy).axes[0].patches] == [8, 4, 8]


def test_best_so_far_curve_never_falls():
    figure = best_so_far_figure({"ddpg": [0.0, 2.0, 1.0], "random": [0.0, -1.0, 0.5]})
    curves = [line.get_ydata().tolist() for line in figure.axes[0].lines]
    assert curves == [[0.0, 2.0, 2.0], [0.0, 0.0, 0.5]]


def test_layers_that_are_replaced_show_what_by_and_how_far():
    decisions = (
        LayerDecision("stem", {"width": 8, "amount": 4}, "filter-groups"),
        LayerDecision("block", {"width": 8}),
        LayerDecision("head", {"amount": 3}, "my_operators:KernelCrop"),
    )
    axes = policy_figure(CompressionPolicy("net", decisions), {"stem": 16, "block": 16}).axes[0]
    fields = axes.patches[3:]
    assert [field.get_facecolor() for field in fields] == [
        to_rgba(operator_color(name)) for name in ("filter-groups", "my_operators:KernelCrop")
    ]
    assert [text.get_text() for text in axes.texts] == ["4", "3"]
    named = [text.get_text() for text in axes.get_legend().get_texts()]
    assert named == ["not quantized", "filter-groups", "my_operators:KernelCrop"]

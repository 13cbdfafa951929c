import math
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from agents.compress import compress
from agents.config import SearchConfig
from amc.data import load_data
from amc.data.boxes import DetectionData
from amc.data.shapes import shapes
from amc.detection.agreement import same_detections
from amc.detection.assignment import assign
from amc.detection.average_precision import average_precision
from amc.detection.boxes import generalised_iou, iou, suppress
from amc.detection.decoding import Detections, decode
from amc.detection.loss import detection_loss, focal_loss
from amc.detection.maps import boxes_at, locations, stride_of
from amc.errors import UserError
from amc.export import export_onnx
from amc.export.check import check_export
from amc.models import build_model, list_models
from amc.network import trace
from amc.tasks import DetectionTask, Task, load_task
from amc.tasks.base import ModelCheck
from amc.training import Recipe, fit
from scripts import fine_tune, pretrain
from scripts.cli import exit_code

pytest.importorskip("pycocotools")


@pytest.fixture(scope="module")
def data() -> DetectionData:
    return shapes()


def some(data: DetectionData, train: int, rest: int = 20) -> DetectionData:
    """The first images of every split."""
    counts = {"train": train, "reward": rest, "test": rest}
    cut = {name: data.split(name).take(torch.arange(count)) for name, count in counts.items()}
    return replace(data, **cut, _normalised={})


def box(*corners: float) -> Tensor:
    return torch.tensor(corners, dtype=torch.float32)


# ---- boxes ----------------------------------------------------------------------------------------------


def test_overlaps_against_values_by_hand():
    one, other = box(0, 0, 2, 2), box(1, 0, 3, 2)
    assert iou(one, other) == pytest.approx(2 / 6)
    assert generalised_iou(one, other) == pytest.approx(2 / 6)  # nothing empty around them
    far = box(4, 0, 6, 2)
    assert iou(one, far) == 0
    assert generalised_iou(one, far) == pytest.approx(-4 / 12)


def greedy(boxes: Tensor, classes: Tensor, alive: Tensor, threshold: float) -> list[bool]:
    stays: list[bool] = []
    for i in range(len(boxes)):
        rivals = [j for j in range(i) if stays[j] and classes[j] == classes[i]]
        stays.append(bool(alive[i]) and all(iou(boxes[i], boxes[j]) <= threshold for j in rivals))
    return stays


def test_suppression_is_the_greedy_one():
    generator = torch.Generator().manual_seed(0)
    low = torch.rand(4, 60, 2, generator=generator) * 30
    boxes = torch.cat([low, low + 5 + 10 * torch.rand(4, 60, 2, generator=generator)], dim=2)
    classes = torch.randint(0, 2, (4, 60), generator=generator)
    alive = torch.rand(4, 60, generator=generator) < 0.9
    stays = suppress(boxes, classes, alive, 0.3)
    assert stays.tolist() == [greedy(*image, 0.3) for image in zip(boxes, classes, alive, strict=True)]
    assert 0 < int(stays.sum()) < int(alive.sum())


def test_what_is_suppressed_suppresses_nothing():
    boxes = torch.stack([box(0, 0, 10, 10), box(4, 0, 14, 10), box(8, 0, 18, 10)])[None]
    every = torch.ones(1, 3, dtype=torch.bool)
    assert suppress(boxes, torch.zeros(1, 3, dtype=torch.long), every, 0.4).tolist() == [[True, False, True]]
    assert suppress(boxes, torch.tensor([[0, 1, 0]]), every, 0.4).all()


# ---- assignment and loss --------------------------------------------------------------------------------


def test_locations_near_the_centre_answer_and_the_smaller_object_wins():
    points = locations(torch.zeros(1, 8, 8, 8), 4.0)
    labels = torch.tensor([[[0, 0, 0, 32, 32], [2, 12, 12, 20, 20], [-1, 0, 0, 32, 32]]], dtype=torch.float32)
    found = assign(labels, points, 4.0)
    classes = found.classes.reshape(8, 8)
    assert (classes[3:5, 3:5] == 2).all()
    # The large one keeps the ring of its centre that the small one leaves.
    assert torch.bincount(classes.flatten() + 1).tolist() == [48, 12, 0, 4]


def test_only_the_middle_of_an_object_answers_for_it():
    points = locations(torch.zeros(1, 8, 8, 8), 4.0)
    found = assign(torch.tensor([[[1.0, 0, 0, 32, 32]]]), points, 4.0)
    away = (points - 16).abs().amax(1)
    assert torch.equal(found.positive[0], away <= 6)
    assert (found.classes[0][found.positive[0]] == 1).all()


def test_an_object_smaller_than_a_cell_is_answered_for():
    points = locations(torch.zeros(1, 8, 8, 8), 4.0)
    found = assign(torch.tensor([[[1.0, 8.1, 8.1, 9.0, 9.0]]]), points, 4.0)
    assert found.positive.nonzero().tolist() == [[0, 2 * 8 + 2]]


def test_centredness_is_one_in_the_middle_and_falls_to_the_border():
    points = torch.tensor([[8.0, 8.0], [4.0, 8.0]])
    found = assign(torch.tensor([[[0.0, 0, 0, 16, 16]]]), points, 4.0)
    # Second: left 4, right 12, above and below equal: sqrt(1/3).
    assert found.centredness.tolist() == [pytest.approx([1.0, math.sqrt(1 / 3)])]


def test_focal_loss_against_values_by_hand():
    logits, wanted = torch.tensor([0.0, 0.0]), torch.tensor([1.0, 0.0])
    each = 0.25 * math.log(2)  # (1 - 0.5)^2 times -log 0.5
    assert float(focal_loss(logits, wanted)) == pytest.approx(0.25 * each + 0.75 * each)


def test_a_batch_without_objects_has_a_finite_loss_with_a_gradient():
    maps = torch.zeros(2, 8, 4, 4, requires_grad=True)
    loss = detection_loss(maps, torch.full((2, 1, 5), -1.0), 16)
    loss.backward()
    assert torch.isfinite(loss) and maps.grad is not None and torch.isfinite(maps.grad).all()


# ---- decoding and average precision ---------------------------------------------------------------------


def perfect_maps(labels: Tensor, classes: int, side: int) -> Tensor:
    """Maps that say exactly what is there."""
    maps = torch.full((len(labels), classes + 5, side // 4, side // 4), -12.0)
    points = locations(maps, 4.0)
    target = assign(labels, points, 4.0)
    flat = maps.flatten(2)
    for image, place in target.positive.nonzero().tolist():
        x1, y1, x2, y2 = target.boxes[image, place]
        x, y = points[place]
        flat[image, int(target.classes[image, place]), place] = 12.0
        distances = torch.stack([x - x1, y - y1, x2 - x, y2 - y]) / 4
        flat[image, classes : classes + 4, place] = distances.clamp(min=1e-3).log()
        flat[image, -1, place] = torch.logit(target.centredness[image, place].clamp(0.01, 0.99))
    return maps


def test_a_perfect_prediction_has_an_average_precision_of_one(data):
    labels = data.test.labels
    found = decode(perfect_maps(labels, 3, 64), 64, 64)
    result = average_precision(found, labels, 3)
    assert (result.coco, result.half) == pytest.approx((1.0, 1.0), abs=0.01)


def test_log_distances_mean_boxes_around_their_location():
    maps = torch.zeros(1, 6, 2, 3)
    assert stride_of(maps, 16) == 8
    points = locations(maps, 8.0)
    assert points[4].tolist() == [12, 12]
    logarithms = torch.tensor([0.5, 1.0, 1.5, 2.0]).log().expand(6, 4)
    assert boxes_at(points, logarithms, 8.0)[4].tolist() == pytest.approx([8, 4, 24, 28])


def detections(*rows: tuple[float, ...]) -> Detections:
    """Rows of score, class and corners."""
    table = torch.tensor(rows, dtype=torch.float32)
    return Detections(table[:, 2:], table[:, 0], table[:, 1].long())


def test_average_precision_against_a_value_by_hand():
    labels = torch.tensor([[[0, 0, 0, 10, 10], [0, 20, 20, 30, 30]]], dtype=torch.float32)
    found = detections((0.9, 0, 0, 0, 10, 10), (0.8, 0, 40, 40, 50, 50), (0.7, 0, 20, 20, 30, 30))
    # Precision is 1 up to a recall of 0.5 (51 of the 101 levels) and 2/3 beyond.
    wanted = (51 + 50 * 2 / 3) / 101
    result = average_precision([found], labels, 3)
    assert (result.coco, result.half) == pytest.approx((wanted, wanted))


def test_a_loose_box_counts_only_at_low_thresholds():
    labels = torch.tensor([[[1, 0, 0, 10, 10]]], dtype=torch.float32)
    result = average_precision([detections((0.9, 1, 0, 0, 10, 6.2))], labels, 3)
    assert (result.coco, result.half) == pytest.approx((3 / 10, 1.0))  # IoU 0.62: 0.5, 0.55 and 0.6


def test_the_wrong_class_counts_nothing_and_no_detection_is_zero():
    labels = torch.tensor([[[1, 0, 0, 10, 10]]], dtype=torch.float32)
    assert average_precision([detections((0.9, 0, 0, 0, 10, 10))], labels, 3).half == 0
    empty = Detections(torch.zeros(0, 4), torch.zeros(0), torch.zeros(0, dtype=torch.long))
    assert average_precision([empty], labels, 3).coco == 0


# Sure detections of the first side that the other may have: same place, class and a fair score.
SURE = (0.9, 1, 0, 0, 10, 10)


@pytest.mark.parametrize(
    ("other", "share"),
    [
        ((0.3, 1, 0, 0, 10, 9), 1.0),  # less sure and a bit smaller
        ((0.9, 2, 0, 0, 10, 10), 0.0),  # another class: neither side has the other's
        ((0.3, 1, 0, 0, 10, 7), 0.0),  # IoU 0.7
        ((0.1, 1, 0, 0, 10, 10), 0.0),  # hardly there
    ],
)
def test_a_detection_agrees_with_one_like_it(other: tuple[float, ...], share: float):
    assert same_detections([detections(SURE)], [detections(other)]) == share


def test_agreement_counts_the_sure_detections_of_both_sides():
    guess, far = (0.3, 0, 50, 50, 60, 60), (0.8, 1, 30, 30, 40, 40)
    assert same_detections([detections(SURE, guess)], [detections(SURE, far)]) == pytest.approx(2 / 3)
    assert same_detections([detections(guess)], [detections(guess)]) == 1.0
    nothing = Detections(torch.zeros(0, 4), torch.zeros(0), torch.zeros(0, dtype=torch.long))
    assert same_detections([detections(SURE)], [nothing]) == 0.0


def test_pycocotools_prints_nothing(capsys):
    labels = torch.tensor([[[1, 0, 0, 10, 10]]], dtype=torch.float32)
    average_precision([detections((0.9, 0, 0, 0, 10, 10))], labels, 3)
    assert capsys.readouterr() == ("", "")


def test_without_pycocotools_a_sentence_names_the_command(data, monkeypatch):
    monkeypatch.setitem(sys.modules, "pycocotools.coco", None)
    with pytest.raises(UserError, match=r'pip install "amc-compress\[detection\]"'):
        DetectionTask(data)


# ---- task and network -----------------------------------------------------------------------------------


def test_task_and_data_must_belong_together(data):
    assert isinstance(load_task("detection", data), Task)
    with pytest.raises(UserError, match="shapes has boxes: pass --task detection"):
        load_task("classification", data)
    with pytest.raises(UserError, match="digits has no boxes: choose shapes or voc"):
        load_task("detection", load_data("digits"))


def test_a_classifier_is_refused_before_any_work(data):
    task = DetectionTask(data)
    assert isinstance(task, ModelCheck)
    task.check(build_model("detector", 3, 3, 0.125), "detector")
    with pytest.raises(UserError, match=r"returns \[1, 3\] .* map \[1, 8, h, w\] is needed"):
        task.check(build_model("resnet20", 3), "resnet20")
    with pytest.raises(UserError, match="fails on an image of 3 x 64 x 64"):
        task.check(nn.Linear(2, 2), "linear")


def test_the_detector_is_listed_for_its_task_only():
    assert list_models("detection") == ["detector"]
    assert "detector" not in list_models() and "detector" in list_models(None)


def test_every_group_of_the_detector_but_its_output_can_be_pruned(data):
    network = trace(build_model("detector", 3, 3, 0.25), DetectionTask(data).example_input())
    assert network.frozen_reasons() == {"head": "its channels are the network's output"}
    assert len(network.layers) == 11


def test_the_exported_detector_gives_the_same_maps(data, tmp_path):
    torch.manual_seed(0)
    task = DetectionTask(data)
    network = trace(build_model("detector", 3, 3, 0.25), task.example_input())
    written = export_onnx(network.copy(), network.example, tmp_path / "detector.onnx")
    assert written.exporter == "amc"
    agreement = check_export(tmp_path / "detector.onnx", network.copy(), data.normalised("test")[:8])
    assert max(figures.relative_error for figures in agreement.values()) <= 1e-4


def test_maps_agree_if_they_mean_the_same_boxes(data):
    task = DetectionTask(data)
    maps = perfect_maps(data.test.labels, 3, 64)
    noisy = maps + 0.02 * torch.randn(maps.shape, generator=torch.Generator().manual_seed(0))
    assert task.agreement(maps, noisy) > 0.99
    assert task.agreement(maps, maps.roll(1, dims=3)) < 0.5  # a cell to the right
    assert task.agreement(maps, torch.full_like(maps, math.nan)) == 0.0


def test_a_check_of_a_file_asks_the_task(data, tmp_path):
    network = trace(build_model("detector", 3, 3, 0.125), DetectionTask(data).example_input())
    images = data.normalised("test")[:2]
    path = tmp_path / "detector.onnx"
    export_onnx(network.copy(), network.example, path)
    seen: list[tuple[int, ...]] = []

    def agree(expected: Tensor, said: Tensor) -> float:
        assert torch.allclose(expected, said, atol=1e-3)
        seen.append(tuple(said.shape))
        return 0.25

    figures = check_export(path, network.copy(), images, agree=agree)
    assert seen == [(2, 8, 16, 16)] * 2
    assert [each.same_decisions for each in figures.values()] == [0.25, 0.25]


def test_features_are_what_enters_the_head(data):
    model = build_model("detector", 3, 3, 0.25).eval()
    x = DetectionTask(data).example_input()
    features = DetectionTask(data).features(model, x)
    assert features.shape == (1, 16 * 16 * 16)
    maps = model.get_submodule("head")(features.unflatten(1, (16, 16, 16)))
    assert torch.allclose(maps, model(x), atol=1e-6)


@pytest.fixture(scope="module")
def trained(data) -> tuple[DetectionTask, nn.Module, list[float]]:
    task = DetectionTask(some(data, 100, 40))
    torch.manual_seed(0)
    model = build_model("detector", 3, 3, 0.25)
    epochs = fit(model, task.data, Recipe(10, batch_size=8, lr=0.05, weight_decay=1e-4), loss=task.loss)
    return task, model, [epoch.loss for epoch in epochs]


def test_the_loss_falls(trained):
    _, _, losses = trained
    assert losses[-1] < 0.75 * losses[0]


def test_a_short_training_beats_the_same_boxes_on_the_wrong_images(trained):
    task, model, _ = trained
    found = task.detect(model, task.data.normalised("test"))
    labels = task.data.test.labels
    right = average_precision(found, labels, 3).half
    chance = average_precision([*found[1:], found[0]], labels, 3).half
    assert right > 0.08 and right > 4 * chance
    assert task.score(model, "test") == average_precision(found, labels, 3).coco


def test_pretrain_saves_a_detector(data, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(pretrain, "load_data", lambda *_: some(data, 32, 8))
    out = tmp_path / "detector.safetensors"
    given = ["--model", "detector", "--task", "detection", "--data", "shapes", "--width", "0.125"]
    assert exit_code(pretrain.main, [*given, "--epochs", "1", "--device", "cpu", "--out", str(out)]) == 0
    assert "test mAP" in capsys.readouterr().out and out.is_file()
    smoothed = [*given, "--label-smoothing", "0.1", "--out", str(tmp_path / "other.safetensors")]
    assert exit_code(pretrain.main, smoothed) == 2


def test_a_detector_is_tuned_without_a_teacher_unless_one_is_asked_for(data, capsys):
    task = DetectionTask(data)
    options = fine_tune.FineTune(Path("run"))
    assert fine_tune.teachers_share(task, options) == 0.0
    assert capsys.readouterr().out == (
        "note: detection has no logits that a teacher could soften, so the labels alone teach.\n"
    )
    assert fine_tune.teachers_share(task, replace(options, alpha=0.0)) == 0.0
    assert capsys.readouterr().out == ""
    with pytest.raises(UserError, match="use --alpha 0 for detection"):
        fine_tune.teachers_share(task, replace(options, alpha=0.5))


@pytest.mark.slow
def test_a_search_compresses_a_detector(trained, tmp_path):
    task, model, _ = trained
    result = compress(
        model, task, budget="macs=0.5", search=SearchConfig(evaluations=4), folder=tmp_path / "run"
    )
    costs = [row.costs["macs"] for row in result.outcomes]
    assert max(costs[1:]) <= 0.5 * costs[0]
    assert [row.name for row in result.outcomes] == ["original", "uniform", "ddpg"]
    assert 0 <= task.score(result.model, "test") <= 1

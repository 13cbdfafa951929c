"""Example detections: kept, read again and drawn."""

import numpy as np
import pytest
import torch

from agents.report_boxes import boxes_caption, boxes_figure
from amc.detection.decoding import Detections
from amc.detection.examples import DetectionExamples, gather_examples, load_examples, save_examples
from amc.errors import UserError

LABELS = torch.tensor([[[0.0, 1, 1, 9, 9], [-1, 0, 0, 0, 0]], [[1, 2, 2, 5, 6], [0, 8, 8, 12, 12]]])


def examples() -> DetectionExamples:
    images = torch.zeros(2, 3, 16, 16, dtype=torch.uint8)
    boxes = torch.tensor([[1.0, 1, 9, 9], [2, 2, 4, 4]])
    first = Detections(boxes, torch.tensor([0.9, 0.1]), torch.tensor([0, 1]))
    nothing = Detections(torch.zeros(0, 4), torch.zeros(0), torch.zeros(0, dtype=torch.int64))
    found = {"original": [first, first], "ddpg": [nothing, nothing]}
    return gather_examples(images, LABELS, found, ("disc", "square"))


def test_only_sure_boxes_are_kept():
    kept = examples()
    np.testing.assert_allclose(kept.found["original"][:, 5], [0.9, 0.9])
    assert kept.found["original"][:, 6].tolist() == [0, 1]
    assert kept.found["ddpg"].shape == (0, 7)


def test_examples_are_read_as_they_were_written(tmp_path):
    path = tmp_path / "detections.npz"
    save_examples(path, examples())
    again = load_examples(path)
    assert again.names == ("disc", "square") and list(again.found) == ["original", "ddpg"]
    np.testing.assert_array_equal(again.found["original"], examples().found["original"])
    path.write_bytes(b"nonsense")
    with pytest.raises(UserError, match="does not hold example detections"):
        load_examples(path)


def test_every_label_and_every_found_box_is_drawn():
    panels = boxes_figure(examples()).axes
    assert [len(axes.patches) for axes in panels] == [1, 2, 1, 1, 0, 0]
    assert [axes.get_ylabel() for axes in panels] == ["labelled", "", "original", "", "ddpg", ""]
    assert panels[2].texts[0].get_text() == "disc 90"
    assert tuple(panels[2].patches[0].get_bbox().bounds) == (1, 1, 8, 8)
    assert "2 by original, 0 by ddpg" in boxes_caption(examples())

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from amc.data import load_data
from amc.data.boxes import BoxAugmentation, BoxSplit, DetectionData, pad_boxes
from amc.data.shapes import shapes
from amc.data.voc import voc
from amc.data.voc_files import read_annotation
from amc.errors import UserError

CHECKSUM = 44728.0


@pytest.fixture(scope="module")
def data() -> DetectionData:
    return shapes()


def test_shapes_are_the_same_every_time(data):
    # Read off once: another process, or another machine, must draw the same.
    assert float(data.test.labels.sum()) == CHECKSUM
    assert not torch.equal(shapes(seed=1).test.labels, data.test.labels)


def test_shapes_lie_inside_and_splits_differ(data):
    for name in ("train", "reward", "test"):
        rows = data.split(name).labels.flatten(0, 1)
        boxes = rows[rows[:, 0] >= 0][:, 1:]
        assert boxes.min() >= 0 and boxes.max() <= 64
        assert ((boxes[:, 2:] - boxes[:, :2]) >= 8).all()
        assert set(rows[:, 0].unique().tolist()) == {-1.0, 0.0, 1.0, 2.0}
    assert not torch.equal(data.reward.labels, data.test.labels)
    assert (len(data.train), len(data.reward), len(data.test)) == (600, 120, 120)


@pytest.mark.parametrize("side", [30, 66, 512])
def test_shapes_of_a_foreign_size_are_refused(side):
    with pytest.raises(UserError, match="32 to 256 pixels"):
        load_data("shapes", side=side)


def test_boxes_move_with_their_images():
    images = torch.zeros(32, 3, 16, 24, dtype=torch.uint8)
    images[:, :, 2:5, 3:9] = 255
    labels = pad_boxes(torch.tensor([[0.0, 3, 2, 9, 5]]).expand(32, 1, 5), 3)
    moved, boxes = BoxAugmentation(flip=True, upside_down=True).with_boxes(
        images, labels, torch.Generator().manual_seed(0)
    )
    seen = set()
    for image, (kind, x1, y1, x2, y2) in zip(moved, boxes[:, 0].int().tolist(), strict=True):
        assert kind == 0
        assert (image[:, y1:y2, x1:x2] == 255).all() and image.sum() == 3 * 18 * 255
        seen.add((x1, y1))
    assert seen == {(3, 2), (15, 2), (3, 11), (15, 11)}
    assert (boxes[:, 1:, 0] == -1).all()


def test_augmented_batches_are_reproducible_and_whole(data):
    small = replace(data, train=data.train.take(torch.arange(50)), _normalised={})
    first, second = (
        list(small.batches("train", 16, torch.Generator().manual_seed(3), augment=True, drop_last=True))
        for _ in range(2)
    )
    assert [len(x) for x, _ in first] == [16, 16, 16]
    assert all(
        torch.equal(a, b)
        for one, two in zip(first, second, strict=True)
        for a, b in zip(one, two, strict=True)
    )
    assert first[0][1].shape == (16, 5, 5)


def test_the_reward_split_can_be_given_back(data):
    whole = data.without_holdout()
    assert len(whole.train) == 720 and isinstance(whole.train, BoxSplit)


def annotation(*objects: tuple, size: tuple[int, int] = (40, 20)) -> str:
    parts = [
        f"<object><name>{name}</name><bndbox><xmin>{x1}</xmin><ymin>{y1}</ymin><xmax>{x2}</xmax>"
        f"<ymax>{y2}</ymax></bndbox></object>"
        for name, x1, y1, x2, y2 in objects
    ]
    about = f"<size><width>{size[0]}</width><height>{size[1]}</height></size>"
    return f"<annotation>{about}{''.join(parts)}</annotation>"


@pytest.fixture
def cells(tmp_path) -> Path:
    """Four images of 40 x 20 pixels in VOC's layout, in a folder below the one that is given."""
    root = tmp_path / "cells"
    for name in ("JPEGImages", "Annotations", "ImageSets/Main"):
        (root / name).mkdir(parents=True)
    for split, names in (("train", "ab"), ("val", "c"), ("test", "d")):
        (root / "ImageSets" / "Main" / f"{split}.txt").write_text("\n".join(names) + "\n")
    for name in "abcd":
        pixels = np.full((20, 40, 3), 7, dtype=np.uint8)
        Image.fromarray(pixels).save(root / "JPEGImages" / f"{name}.png")
        text = annotation(("red", 1, 1, 20, 10), ("blue", 21, 11, 40, 20), ("red", 5, 5, 5, 5))
        (root / "Annotations" / f"{name}.xml").write_text(text)
    return tmp_path


def test_voc_boxes_are_scaled_with_their_images(cells):
    data = voc(cells, side=80)
    assert (data.name, data.class_names, data.shape) == ("cells", ("blue", "red"), (3, 40, 80))
    assert (len(data.train), len(data.reward), len(data.test)) == (2, 1, 1)
    # From 1 and with both ends in VOC, from 0 here; the box without an area is left out.
    assert data.train.labels[0].tolist() == [[1, 0, 0, 40, 20], [0, 40, 20, 80, 40]]
    assert (data.train.images == 7).all()


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("<annotation>", "is not a VOC annotation"),
        ("<annotation><size></size></annotation>", "no size/width"),
        (annotation(("red", "one", 1, 2, 2)), "could not convert"),
        (annotation(("red", "nan", 1, 2, 2)), "no number"),
        (annotation(("", 1, 1, 9, 9)), "no name"),
        (annotation(size=(0, 20)), "an image of 0 x 20"),
        ("<!DOCTYPE a [<!ENTITY b 'c'>]><annotation>&b;</annotation>", "declares a document type"),
        ("x" * 2**21, "too large"),
    ],
)
def test_a_malformed_annotation_is_one_sentence(tmp_path, text, words):
    path = tmp_path / "a.xml"
    path.write_text(text)
    with pytest.raises(UserError, match=words) as caught:
        read_annotation(path)
    assert str(path) in str(caught.value) and "\n" not in str(caught.value)


def test_boxes_are_cut_to_the_image_and_degenerate_ones_counted(tmp_path):
    path = tmp_path / "a.xml"
    path.write_text(annotation(("red", 0, 0, 99, 99), ("red", 504, 3, 504, 3), ("red", 50, 1, 60, 9)))
    found = read_annotation(path)
    assert found.boxes == (("red", 0.0, 0.0, 40.0, 20.0),)
    assert found.skipped == 2


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (lambda root: (root / "ImageSets/Main/val.txt").unlink(), "The list .*val.txt cannot be read"),
        (lambda root: (root / "ImageSets/Main/val.txt").write_text("\n"), "is empty"),
        (lambda root: (root / "ImageSets/Main/val.txt").write_text("../../a\n"), "not the name of an image"),
        (lambda root: (root / "Annotations/d.xml").unlink(), "The annotation .*d.xml cannot be read"),
        (lambda root: (root / "JPEGImages/d.png").unlink(), "There is no image"),
        (lambda root: (root / "JPEGImages/d.png").write_text("no"), "cannot be read as an image"),
        (
            lambda root: (root / "Annotations/d.xml").write_text(annotation(("green", 1, 1, 9, 9))),
            "class 'green', which its training images lack",
        ),
    ],
)
def test_damaged_voc_data_are_one_sentence(cells, damage, words):
    damage(cells / "cells")
    with pytest.raises(UserError, match=words):
        load_data("voc", cells)


def test_a_folder_without_voc_data_is_named(tmp_path):
    with pytest.raises(UserError, match="holds no VOC data"):
        load_data("voc", tmp_path)
    with pytest.raises(UserError, match="There is no folder"):
        load_data("voc", tmp_path / "nothing")


def test_crops_are_the_objects_and_splits_share_no_image(cells):
    root = cells / "cells"
    for value, name in enumerate("abcd", start=1):
        pixels = np.full((20, 40, 3), 10 * value, dtype=np.uint8)
        pixels[:, 20:] += 100  # blue objects lie on the right
        Image.fromarray(pixels).save(root / "JPEGImages" / f"{name}.png")
    data = load_data("voc-crops", cells, side=16)
    assert (data.name, data.class_names, data.shape) == ("cells-crops", ("blue", "red"), (3, 16, 16))
    assert data.train.labels.tolist() == [1, 0, 1, 0] and data.test.labels.tolist() == [1, 0]
    # The square around a box of 20 x 10 fills the image's height of 20; only its border shows the other half.
    assert [int(crop.median()) for crop in data.train.images] == [10, 110, 20, 120]
    assert [int(crop[:, :, 2:-2].max()) for crop in data.reward.images] == [30, 130]
    assert load_data("voc-crops", cells).shape == (3, 64, 64)
    (root / "ImageSets/Main/test.txt").write_text("d\na\n")
    with pytest.raises(UserError, match="name the image 'a' more than once"):
        load_data("voc-crops", cells)

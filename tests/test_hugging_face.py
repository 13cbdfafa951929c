"""Data of the `datasets` library, from small ones that are written here."""

import importlib.util

import numpy as np
import pytest

from amc.data import load_data
from amc.data.hugging_face import hugging_face
from amc.errors import UserError

needs_hub = pytest.mark.extra("hub")


def write(folder, splits=("train", "test"), images: int = 10, label: str = "ClassLabel"):
    """A data set whose pixels all hold 20 times the label."""
    import datasets
    from PIL import Image

    kind = datasets.ClassLabel(names=["cat", "dog"]) if label == "ClassLabel" else datasets.Value("string")
    features = datasets.Features({"picture": datasets.Image(), "animal": kind})
    labels = [n % 2 for n in range(images)]
    pictures = [Image.fromarray(np.full((6, 9, 3), 20 * n, np.uint8)) for n in labels]
    rows = {"picture": pictures, "animal": labels if label == "ClassLabel" else ["x"] * images}
    part = datasets.Dataset.from_dict(rows, features=features)
    datasets.DatasetDict(dict.fromkeys(splits, part)).save_to_disk(str(folder))
    return folder


@needs_hub
def test_a_saved_data_set_becomes_three_splits(tmp_path):
    data = load_data(f"hf:{write(tmp_path / 'animals')}", side=8)
    assert (data.name, data.classes, data.class_names) == ("animals", 2, ("cat", "dog"))
    assert [len(data.split(name)) for name in ("train", "reward", "test")] == [8, 2, 10]
    assert data.shape == (3, 8, 8)
    assert (data.test.images[:, 0, 0, 0] == 20 * data.test.labels).all()


@needs_hub
def test_a_folder_of_images_is_read_by_the_library_too(tmp_path):
    from PIL import Image

    for part in ("train", "test"):
        for number, name in enumerate(("a", "b")):
            (tmp_path / part / name).mkdir(parents=True)
            for index in range(4):
                Image.new("RGB", (5, 5), (number, index, 0)).save(tmp_path / part / name / f"{index}.png")
    data = hugging_face(str(tmp_path), side=5)
    assert (data.class_names, len(data.test)) == (("a", "b"), 8)


@needs_hub
@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"splits": ("train",)}, "needs a split 'train' and one of test"),
        ({"label": "string"}, "one column of type ClassLabel and has 0; its columns are picture, animal"),
    ],
)
def test_a_data_set_that_does_not_fit_is_one_sentence(tmp_path, settings, said):
    with pytest.raises(UserError, match=said):
        hugging_face(str(write(tmp_path, **settings)))


@needs_hub
def test_too_many_pixels_are_refused_before_decoding(tmp_path):
    with pytest.raises(UserError, match=r"20 images of .* need 0\.0 GiB at 64 x 64 pixels"):
        hugging_face(str(write(tmp_path)), side=64, memory_limit_gib=1e-5)


@needs_hub
def test_a_name_that_cannot_be_loaded_is_one_sentence(tmp_path):
    with pytest.raises(UserError, match="cannot be loaded"):
        hugging_face(str(tmp_path / "nowhere"))


def test_a_missing_library_is_one_sentence(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UserError, match=r'pip install "amc-compress\[hub\]"'):
        hugging_face("beans")

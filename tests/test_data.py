import os
import pickle
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from amc.data import Augmentation, ImageData, Split, load_data
from amc.data.cifar10 import FOLDER, TEST_FILE, TRAIN_FILES
from amc.data.folder import folder
from amc.data.images import hold_out
from amc.errors import UserError


def numbered(count: int, side: int = 6) -> Split:
    """Images whose every pixel is their own index, labelled by index modulo 2."""
    index = torch.arange(count)
    images = index.to(torch.uint8)[:, None, None, None].expand(-1, 1, side, side).contiguous()
    return Split(images, index % 2)


def small_data(augmentation: Augmentation | None = None) -> ImageData:
    train, reward = hold_out(numbered(50), 10)
    test = Split(torch.full((4, 1, 6, 6), 255, dtype=torch.uint8), torch.tensor([0, 1, 0, 1]))
    return ImageData("small", 2, train, reward, test, (0.5,), (0.25,), augmentation or Augmentation())


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def test_hold_out_divides_without_overlap_and_always_alike():
    rest, held = hold_out(numbered(50), 10)
    again, _ = hold_out(numbered(50), 10)
    both = torch.cat([rest.images, held.images])[:, 0, 0, 0]
    assert (len(rest), len(held)) == (40, 10)
    assert both.sort().values.tolist() == list(range(50))
    assert torch.equal(rest.labels, rest.images[:, 0, 0, 0] % 2)
    assert torch.equal(rest.images, again.images)
    assert both.tolist() != list(range(50))


@pytest.mark.parametrize("count", [0, 50, 51])
def test_hold_out_refuses_to_empty_a_side(count):
    with pytest.raises(UserError, match="both parts need at least one"):
        hold_out(numbered(50), count)


def test_normalise_is_pixel_over_255_minus_mean_over_std():
    data = small_data()
    assert data.normalised("test")[0, 0, 0, 0].item() == (1 - 0.5) / 0.25
    assert data.normalise(torch.zeros(1, 1, 6, 6, dtype=torch.uint8)).unique().tolist() == [-2.0]
    assert data.normalised("test").dtype == torch.float32


def test_normalised_is_kept_and_can_be_channels_last():
    data = small_data()
    assert data.normalised("train") is data.normalised("train")
    colour = load_colour()
    last = colour.normalised("test", channels_last=True)
    assert last.is_contiguous(memory_format=torch.channels_last)
    assert torch.equal(last, colour.normalised("test"))


def test_normalised_in_inference_mode_can_be_trained_on_later():
    data = small_data()
    with torch.inference_mode():
        images = data.normalised("train")
    weight = torch.ones(1, 1, 3, 3, requires_grad=True)
    torch.nn.functional.conv2d(data.normalised("train"), weight).sum().backward()
    assert not images.is_inference()


def load_colour() -> ImageData:
    pixels = torch.randint(0, 256, (30, 3, 8, 8), dtype=torch.uint8, generator=generator())
    whole = Split(pixels, torch.arange(30) % 3)
    train, reward = hold_out(whole, 5)
    return ImageData("colour", 3, train, reward, whole, (0.5,) * 3, (0.5,) * 3, Augmentation(2, True))


@pytest.mark.parametrize(("drop_last", "sizes"), [(False, [16, 16, 8]), (True, [16, 16])])
def test_batches_cover_the_split_once(drop_last, sizes):
    data = small_data()
    seen = list(data.batches("train", 16, generator(), drop_last=drop_last))
    assert [len(labels) for _, labels in seen] == sizes
    pixels = torch.cat([((x[:, 0, 0, 0] * 0.25 + 0.5) * 255).round() for x, _ in seen]).tolist()
    assert len(set(pixels)) == len(pixels)
    assert set(pixels) <= set(data.train.images[:, 0, 0, 0].tolist())
    assert [p % 2 for p in pixels] == torch.cat([y for _, y in seen]).tolist()


def test_batches_without_a_generator_keep_the_stored_order():
    data = small_data()
    labels = torch.cat([y for _, y in data.batches("train", 7)])
    assert torch.equal(labels, data.train.labels)


def test_a_split_smaller_than_one_batch_is_given_whole():
    assert [len(y) for _, y in small_data().batches("test", 64, generator(), drop_last=True)] == [4]


def test_batches_depend_on_the_generator_alone():
    data = load_colour()

    def first(seed: int) -> torch.Tensor:
        return next(iter(data.batches("train", 20, generator(seed), augment=True)))[0]

    before = torch.get_rng_state()
    assert torch.equal(first(1), first(1))
    assert not torch.equal(first(1), first(2))
    assert torch.equal(torch.get_rng_state(), before)


def test_augmentation_is_one_of_the_crops_of_the_padded_image():
    image = torch.arange(1, 17, dtype=torch.uint8).reshape(1, 1, 4, 4)
    padded = torch.nn.functional.pad(image, [1] * 4)[0, 0]
    crops = [padded[r : r + 4, c : c + 4] for r in range(3) for c in range(3)]
    allowed = {tuple(v.flatten().tolist()) for crop in crops for v in (crop, crop.flip(1))}
    changed = Augmentation(1, True)(image.expand(2000, 1, 4, 4), generator())
    assert {tuple(one.flatten().tolist()) for one in changed} == allowed  # all 18 occur in 2,000 draws
    assert changed.dtype == torch.uint8


def test_shift_without_flip_never_mirrors():
    image = torch.zeros(1, 1, 4, 4, dtype=torch.uint8)
    image[..., 1] = 1
    image[..., 2] = 2
    changed = Augmentation(1, False)(image.expand(200, 1, 4, 4), generator())
    columns = changed[:, 0, 1].argmax(1)
    assert set(columns.tolist()) == {1, 2, 3}
    assert (changed[torch.arange(200), 0, 1, columns - 1] == 1).all()


def test_augmented_batches_have_the_plain_layout():
    # is_contiguous() is true for one channel under either layout, and convolutions go by the strides.
    data = small_data(Augmentation(1, True))
    images, _ = next(data.batches("train", 16, generator(), augment=True))
    assert images.stride() == (36, 36, 6, 1)
    assert data.calibration(16, 16)[0].stride() == (36, 36, 6, 1)
    assert next(load_colour().batches("train", 16, generator(), augment=True))[0].stride() == (192, 64, 8, 1)


def test_augmentation_treats_channels_alike():
    grey = torch.randint(0, 256, (20, 1, 8, 8), dtype=torch.uint8, generator=generator())
    changed = Augmentation(2, True)(grey.expand(-1, 3, -1, -1), generator())
    assert torch.equal(changed[:, 0], changed[:, 2])


def test_calibration_takes_training_images_only_and_each_once():
    data = small_data()
    batches = data.calibration(images=30, batch_size=20)
    pixels = ((torch.cat(batches)[:, 0, 0, 0] * 0.25 + 0.5) * 255).round()
    assert [len(batch) for batch in batches] == [20, 10]
    assert len(pixels.unique()) == 30
    assert not set(pixels.tolist()) & set(data.reward.images[:, 0, 0, 0].tolist())


@pytest.mark.parametrize("augment", [False, True])
def test_calibration_is_seeded_and_augmented_only_if_asked(augment: bool):
    data = load_colour()
    batch = data.calibration(25, 25, seed=3, augment=augment)[0]
    assert torch.equal(batch, data.calibration(25, 25, seed=3, augment=augment)[0])
    assert not torch.equal(batch, data.calibration(25, 25, seed=4, augment=augment)[0])
    plain = {tuple(one.flatten().tolist()) for one in data.normalised("train")}
    unchanged = sum(tuple(one.flatten().tolist()) in plain for one in batch)
    assert unchanged < 5 if augment else unchanged == 25


def test_without_holdout_gives_the_reward_images_back():
    whole = small_data().without_holdout()
    assert whole.train.images[:, 0, 0, 0].sort().values.tolist() == list(range(50))


@pytest.mark.parametrize(
    ("images", "labels", "said"),
    [
        (torch.zeros(2, 1, 4, 4), torch.zeros(2, dtype=torch.int64), "uint8 tensor"),
        (torch.zeros(2, 4, 4, dtype=torch.uint8), torch.zeros(2, dtype=torch.int64), "uint8 tensor"),
        (torch.zeros(2, 1, 4, 4, dtype=torch.uint8), torch.zeros(3, dtype=torch.int64), "Labels must"),
        (torch.zeros(2, 1, 4, 4, dtype=torch.uint8), torch.zeros(2), "Labels must"),
    ],
)
def test_a_split_refuses_wrong_tensors(images, labels, said):
    with pytest.raises(UserError, match=said):
        Split(images, labels)


def test_labels_beyond_the_classes_are_refused():
    train, reward = hold_out(numbered(50), 10)
    with pytest.raises(UserError, match=r"labels of small do not lie in 0\.\.0"):
        ImageData("small", 1, train, reward, reward, (0.5,), (0.5,))


def test_digits_are_1797_images_in_three_splits():
    data = load_data("digits")
    assert [len(data.train), len(data.reward), len(data.test)] == [1197, 240, 360]
    assert data.shape == (1, 32, 32)
    assert load_data("digits", side=8).shape == (1, 8, 8)
    training = data.normalised("train")
    assert abs(training.mean().item()) < 0.01
    assert abs(training.std().item() - 1) < 0.01


def test_digits_at_8_pixels_are_the_originals():
    data = load_data("digits", side=8)
    pixels = torch.cat([part.images for part in (data.train, data.reward, data.test)]).float()
    levels = (pixels * 16 / 255).round()
    assert levels.unique().tolist() == list(range(17))
    assert levels.sum().item() == 561718  # of all pixels that scikit-learn ships


def test_digits_refuse_a_side_below_the_original():
    with pytest.raises(UserError, match="not to 4"):
        load_data("digits", side=4)


def write_cifar(root: Path, bytes_keys: bool = True, protocol: int = 2, images: int = 20) -> Path:
    target = root / FOLDER
    target.mkdir()
    draw = np.random.default_rng(0)
    for name in (*TRAIN_FILES, TEST_FILE):
        pixels = draw.integers(0, 256, (images, 3072), dtype=np.uint8)
        batch = {"data": pixels, "labels": [int(i) for i in draw.integers(0, 10, images)]}
        keyed = {key.encode() if bytes_keys else key: value for key, value in batch.items()}
        (target / name).write_bytes(pickle.dumps(keyed, protocol=protocol))
    return target


@pytest.mark.parametrize("bytes_keys", [True, False])
@pytest.mark.parametrize("protocol", [0, 2, 4, 5])
def test_cifar10_reads_every_protocol(tmp_path, bytes_keys, protocol):
    target = write_cifar(tmp_path, bytes_keys, protocol)
    data = load_data("cifar10", tmp_path)
    assert [len(data.train), len(data.reward), len(data.test)] == [90, 10, 20]
    stored = pickle.loads((target / TEST_FILE).read_bytes())
    pixels = stored[b"data" if bytes_keys else "data"]
    assert torch.equal(data.test.images, torch.from_numpy(pixels.reshape(-1, 3, 32, 32)))
    assert load_data("cifar10", target).name == "cifar10"


def test_cifar10_reads_what_python_2_wrote(tmp_path):
    target = write_cifar(tmp_path, images=4)
    # What Python 2 and NumPy 1 write for {'data': zeros((1, 3072), uint8), 'labels': [7]}: byte strings
    # throughout, and the array function under its old name.
    pixels = b"T" + (3072).to_bytes(4, "little") + b"\x00" * 3072
    array = (
        b"cnumpy.core.multiarray\n_reconstruct\n(cnumpy\nndarray\nK\x00\x85U\x01btR"
        b"(K\x01K\x01M\x00\x0c\x86cnumpy\ndtype\n(U\x02u1K\x00K\x01tR(K\x03U\x01|NNNJ\xff\xff\xff\xff"
        b"J\xff\xff\xff\xffK\x00tb\x89" + pixels + b"tb"
    )
    (target / TEST_FILE).write_bytes(b"\x80\x02}(U\x04data" + array + b"U\x06labels]K\x07au.")
    data = load_data("cifar10", tmp_path).test
    assert data.labels.tolist() == [7]
    assert data.images.shape == (1, 3, 32, 32)


class Hostile:
    def __init__(self, function, *arguments):
        self.call = (function, arguments)

    def __reduce__(self):
        return self.call


def test_a_hostile_pickle_is_refused_and_nothing_runs(tmp_path):
    target = write_cifar(tmp_path)
    witness = tmp_path / "witness"
    (target / "data_batch_3").write_bytes(pickle.dumps(Hostile(os.mkdir, str(witness))))
    with pytest.raises(UserError, match=r"asks for (posix|nt)\.mkdir, and only NumPy arrays"):
        load_data("cifar10", tmp_path)
    assert not witness.exists()
    pickle.loads((target / "data_batch_3").read_bytes())
    assert witness.exists()  # an ordinary unpickler would have run it


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"", "EOFError"),
        (b"\x89PNG not a pickle", "not a CIFAR-10 batch"),
        (pickle.dumps([1]), "a list, not a dict"),
        (pickle.dumps({"labels": [1]}), "'data' must be uint8"),
        (pickle.dumps({"data": np.zeros((2, 3072), np.int64), "labels": [1, 2]}), "'data' must be uint8"),
        (pickle.dumps({"data": np.zeros((2, 3071), np.uint8), "labels": [1, 2]}), "'data' must be uint8"),
        (pickle.dumps({"data": np.zeros((2, 3072), np.uint8), "labels": [1]}), "must hold 2 whole numbers"),
        (pickle.dumps({"data": np.zeros((2, 3072), np.uint8), "labels": [1, "x"]}), "2 whole numbers"),
        (pickle.dumps({"data": np.zeros((2, 3072), np.uint8), "labels": [1, 10]}), r"lie in 0\.\.9"),
        (pickle.dumps({"data": np.array([None])}), "arrays of kind 'O8' are not admitted"),
    ],
)
def test_a_foreign_cifar_file_is_one_sentence(tmp_path, content, said):
    (write_cifar(tmp_path) / TEST_FILE).write_bytes(content)
    with pytest.raises(UserError, match=said) as caught:
        load_data("cifar10", tmp_path)
    assert "\n" not in str(caught.value)


def test_missing_cifar10_says_where_it_looked(tmp_path):
    with pytest.raises(UserError, match=f"{tmp_path / FOLDER} and {tmp_path} .*--data-root"):
        load_data("cifar10", tmp_path)
    (write_cifar(tmp_path) / "data_batch_4").unlink()
    with pytest.raises(UserError, match="incomplete: data_batch_4 is missing"):
        load_data("cifar10", tmp_path)


def write_folder(root: Path, images: int = 4) -> Path:
    for part in ("train", "val"):
        for shade, name in ((50, "dark"), (200, "light")):
            (root / part / name).mkdir(parents=True)
            for i in range(images):
                suffix = "png" if i % 2 else "JPG"
                Image.new("L", (30, 20), shade).save(root / part / name / f"{i}.{suffix}")
    return root


def test_folder_reads_classes_in_alphabetical_order(tmp_path):
    data = load_data(str(write_folder(tmp_path)), side=10)
    assert (data.classes, data.class_names, data.shape) == (2, ("dark", "light"), (3, 10, 10))
    assert [len(data.train), len(data.reward), len(data.test)] == [7, 1, 8]
    for part in (data.train, data.reward, data.test):
        bright = part.images.float().mean((1, 2, 3))
        assert torch.allclose(bright, torch.where(part.labels == 1, 200.0, 50.0), atol=2)


def test_folder_covers_the_square_and_crops_the_centre(tmp_path):
    write_folder(tmp_path)
    wide = np.zeros((10, 30, 3), np.uint8)
    wide[:, 10:20] = 255
    Image.fromarray(wide).save(tmp_path / "val" / "dark" / "0.png")
    data = folder(tmp_path, side=10)
    brightest = data.test.images.float().mean((1, 2, 3)).max()
    assert brightest == 255


def test_folder_too_large_for_memory_is_refused_before_decoding(tmp_path):
    write_folder(tmp_path)
    (tmp_path / "train" / "dark" / "1.png").write_bytes(b"broken")
    with pytest.raises(UserError, match=r"16 images .* need 0\.0 GiB at 100 x 100 .* limit is 0\.0001 GiB"):
        folder(tmp_path, side=100, memory_limit_gib=0.0001)


def test_folder_names_the_image_that_does_not_decode(tmp_path):
    write_folder(tmp_path)
    (tmp_path / "train" / "dark" / "1.png").write_bytes(b"broken")
    with pytest.raises(UserError, match=r"1\.png cannot be read as an image"):
        folder(tmp_path, side=8)


def test_folder_layout_mistakes_are_one_sentence(tmp_path):
    with pytest.raises(UserError, match="has no folder 'train'"):
        folder(tmp_path)
    (write_folder(tmp_path) / "val" / "grey").mkdir()
    with pytest.raises(UserError, match="class 'grey', which the train folder lacks"):
        folder(tmp_path)
    (tmp_path / "train" / "grey").mkdir()
    with pytest.raises(UserError, match=r"grey holds no \.png or \.jpg"):
        folder(tmp_path)


def test_unknown_data_is_one_sentence(tmp_path):
    with pytest.raises(UserError, match="no data set 'digit': choose digits, cifar10"):
        load_data("digit")
    with pytest.raises(UserError, match="no data set"):
        load_data(str(tmp_path / "nowhere"))


def test_data_from_an_import_path(tmp_path, monkeypatch):
    code = (
        "from amc.data.digits import digits\n"
        "def make(side=8):\n    return digits(side)\n"
        "def wrong():\n    return 3\n"
        "def broken():\n    raise RuntimeError('no disk')\n"
    )
    (tmp_path / "own_data_for_test.py").write_text(code)
    monkeypatch.chdir(tmp_path)
    assert load_data("own_data_for_test:make").shape == (1, 8, 8)
    assert load_data("own_data_for_test:make", side=9).shape == (1, 9, 9)
    with pytest.raises(UserError, match="returned a int"):
        load_data("own_data_for_test:wrong")
    with pytest.raises(UserError, match="failed: RuntimeError: no disk"):
        load_data("own_data_for_test:broken")


@pytest.mark.slow
def test_real_cifar10():
    root = os.environ.get("AMC_DATA_ROOT")
    if not root:
        pytest.skip("AMC_DATA_ROOT names no folder with cifar-10-batches-py")
    data = load_data("cifar10", root)
    assert [len(data.train), len(data.reward), len(data.test)] == [45000, 5000, 10000]
    counts = data.train.labels.bincount() + data.reward.labels.bincount()
    assert counts.tolist() == [5000] * 10
    assert data.test.labels.bincount().tolist() == [1000] * 10

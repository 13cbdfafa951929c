"""The embedded default for detection: discs, squares and triangles on noisy ground, drawn on demand."""

import numpy as np
import torch

from amc.data.boxes import BoxAugmentation, BoxSplit, DetectionData, pad_boxes
from amc.errors import UserError

CLASSES = ("disc", "square", "triangle")
TRAIN_IMAGES, REWARD_IMAGES, TEST_IMAGES = 600, 120, 120
LARGEST_COUNT = 5
SMALLEST, LARGEST = 8, 26
"""Side of a shape's box in pixels on a canvas of 64."""
LARGEST_OVERLAP = 0.15
"""Share of the smaller of two boxes that may lie in the other."""
LEAST_CONTRAST = 40.0
"""Grey levels, as distance in colour space, between a shape and the mean of its ground."""
TRIES = 40


def shapes(side: int = 64, seed: int = 0) -> DetectionData:
    """840 generated colour images with one to five shapes: 600 to train, 120 for the reward, 120 to test.

    Args:
        side: height and width in pixels, a multiple of 4 from 32 to 256; shapes grow with it.
        seed: another seed draws another set; a network must be judged on the set it was not trained on.

    Raises:
        UserError: `side` is out of range.
    """
    if not 32 <= side <= 256 or side % 4:
        raise UserError(f"Shapes are drawn on canvases of 32 to 256 pixels, in steps of 4, not on {side}.")
    counts = {"train": TRAIN_IMAGES, "reward": REWARD_IMAGES, "test": TEST_IMAGES}
    splits = {
        name: _draw_split(np.random.default_rng([seed, number]), count, side)
        for number, (name, count) in enumerate(counts.items())
    }
    return DetectionData(
        name="shapes",
        classes=len(CLASSES),
        train=splits["train"],
        reward=splits["reward"],
        test=splits["test"],
        # Of all pixels at a side of 64, rounded.
        mean=(0.5, 0.5, 0.5),
        std=(0.19, 0.19, 0.19),
        augmentation=BoxAugmentation(flip=True),
        class_names=CLASSES,
    )


def _draw_split(rng: np.random.Generator, count: int, side: int) -> BoxSplit:
    drawn = [_draw_image(rng, side) for _ in range(count)]
    pixels = torch.from_numpy(np.stack([image for image, _ in drawn])).permute(0, 3, 1, 2).contiguous()
    boxes = [pad_boxes(torch.from_numpy(rows), LARGEST_COUNT) for _, rows in drawn]
    return BoxSplit(pixels, torch.stack(boxes))


def _draw_image(rng: np.random.Generator, side: int) -> tuple[np.ndarray, np.ndarray]:
    """One image, uint8 [side, side, 3], and its objects, float32 [n, 5]."""
    image = _ground(rng, side)
    rows: list[tuple] = []
    for _ in range(int(rng.integers(1, LARGEST_COUNT + 1))):
        box = _free_box(rng, side, [row[1:] for row in rows])
        if box is None:
            continue
        kind = int(rng.integers(len(CLASSES)))
        image = np.where(_mask(kind, box, side)[..., None], _colour(rng, image, box), image)
        rows.append((kind, *box))
    noisy = image + rng.normal(0.0, 12.0, image.shape)
    return noisy.clip(0, 255).round().astype(np.uint8), np.array(rows, dtype=np.float32)


def _ground(rng: np.random.Generator, side: int) -> np.ndarray:
    """A colour gradient between four random corners; float64 [side, side, 3]."""
    corners = rng.uniform(30.0, 225.0, (2, 2, 3))
    along = np.linspace(0.0, 1.0, side)
    rows = corners[0] * (1 - along)[:, None, None] + corners[1] * along[:, None, None]
    ground: np.ndarray = rows[:, :1] * (1 - along)[None, :, None] + rows[:, 1:] * along[None, :, None]
    return ground


def _free_box(rng: np.random.Generator, side: int, taken: list[tuple]) -> tuple | None:
    """A square (x1, y1, x2, y2) that hardly touches the others; None where there is no room."""
    for _ in range(TRIES):
        size = int(rng.integers(SMALLEST * side // 64, LARGEST * side // 64 + 1))
        x, y = (int(v) for v in rng.integers(0, side - size + 1, 2))
        box = (x, y, x + size, y + size)
        if all(_shared(box, other) <= LARGEST_OVERLAP for other in taken):
            return box
    return None


def _shared(one: tuple, other: tuple) -> float:
    """Common area as a share of the smaller box."""
    wide = max(0, min(one[2], other[2]) - max(one[0], other[0]))
    high = max(0, min(one[3], other[3]) - max(one[1], other[1]))
    smaller = min((one[2] - one[0]) ** 2, (other[2] - other[0]) ** 2)
    return float(wide * high / smaller)


def _mask(kind: int, box: tuple, side: int) -> np.ndarray:
    """The pixels of a shape that fills its box; bool [side, side]."""
    x1, y1, x2, y2 = box
    y, x = np.mgrid[:side, :side] + 0.5
    inside: np.ndarray = (x > x1) & (x < x2) & (y > y1) & (y < y2)
    if CLASSES[kind] == "disc":
        return np.hypot(x - (x1 + x2) / 2, y - (y1 + y2) / 2) <= (x2 - x1) / 2
    if CLASSES[kind] == "triangle":
        return inside & (np.abs(x - (x1 + x2) / 2) <= (y - y1) / 2 + 0.5)
    return inside


def _colour(rng: np.random.Generator, image: np.ndarray, box: tuple) -> np.ndarray:
    """A random colour that stands out from what lies under the box; float64 [3]."""
    below = image[int(box[1]) : int(box[3]), int(box[0]) : int(box[2])].mean((0, 1))
    while True:
        colour = rng.uniform(0.0, 255.0, 3)
        if np.linalg.norm(colour - below) >= LEAST_CONTRAST:
            return colour

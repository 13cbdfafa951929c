"""Windows that slide over an image: TFLite knows "SAME" and "VALID" where torch counts pixels of padding."""

from dataclasses import dataclass
from typing import Any

import numpy as np

from amc.export.tflite.graph import TfliteGraph
from amc.export.value import Value

SAME, VALID = 0, 1
"""Values of the schema's Padding."""

Pair = tuple[int, ...]
NO_PADS = ((0, 0), (0, 0))


@dataclass(frozen=True)
class Window:
    """How a window moves; pairs are height and width.

    Attributes:
        result: shape of what it gives in the traced network.
        kernel, stride, dilation: its size and steps.
        pads: pixels before and after, of the height and of the width.
        implicit: whether the operator's own "SAME" treats padding as torch does.
        fill: what the padding holds otherwise.
    """

    result: tuple[int, ...]
    kernel: Pair
    stride: Pair
    dilation: Pair = (1, 1)
    pads: tuple[Pair, Pair] = NO_PADS
    implicit: bool = True
    fill: float = 0.0


def slide(g: TfliteGraph, x: Value, window: Window) -> tuple[Value, dict[str, Any]]:
    """What the window slides over, padded if need be, and the operator's settings.

    "SAME" puts the smaller half of its padding in front, so that for a stride of 2 and an even size it is not
    what torch does; then the padding becomes an operator of its own.
    """
    settings = {"strideH": window.stride[0], "strideW": window.stride[1], "padding": VALID}
    pads = needed_pads(x.shape[2:], window)
    if pads == NO_PADS:
        return x, settings
    if window.implicit and pads == same_pads(x.shape[2:], window):
        return x, {**settings, "padding": SAME}
    (top, bottom), (left, right) = pads
    return pad(g, x, [0, 0, top, left], [0, 0, bottom, right], window.fill), settings


def needed_pads(sizes: Pair, window: Window) -> tuple[Pair, Pair]:
    """The padding without pixels that no window reaches."""
    totals = _reach(sizes, window)
    (top, left), (height, width) = (pads[0] for pads in window.pads), totals
    return (top, max(height - top, 0)), (left, max(width - left, 0))


def same_pads(sizes: Pair, window: Window) -> tuple[Pair, Pair] | None:
    """What "SAME" pads; None where its result would have another size."""
    if any(end != -(-n // s) for n, end, s in zip(sizes, window.result[2:], window.stride, strict=True)):
        return None
    height, width = (max(total, 0) for total in _reach(sizes, window))
    return (height // 2, height - height // 2), (width // 2, width - width // 2)


def _reach(sizes: Pair, window: Window) -> tuple[int, int]:
    """By how much the windows reach beyond the image, both sides together."""
    height, width = (
        (end - 1) * s + (k - 1) * d + 1 - n
        for n, end, k, s, d in zip(
            sizes, window.result[2:], window.kernel, window.stride, window.dilation, strict=True
        )
    )
    return height, width


def pad(g: TfliteGraph, x: Value, before: list[int], after: list[int], fill: float) -> Value:
    """A tensor with a frame of one value; amounts by axis of the traced network, batch first."""
    shape = tuple(n + b + a for n, b, a in zip(x.shape, before, after, strict=True))
    amounts = np.array([before, after], np.int32).T
    stored = g.stored(amounts[[0, 2, 3, 1]] if len(shape) == 4 else amounts)
    never_below = x.grid is not None and x.grid.zero_point == 0
    if fill == 0.0 or (fill < 0.0 and never_below):
        return g.move("PAD", x, stored, shape=shape)
    return g.add("PADV2", g.floats(x), stored, g.stored(np.array([fill], np.float32)), shape=shape)

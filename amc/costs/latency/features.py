"""What the latency of a network depends on: a vector of non-negative numbers per policy.

Additive lookup tables of single layers miss whole-network latencies by -10 to +69 %, so nothing is looked up
here: the weights of these features are fitted to whole networks. Every feature grows with every width, hence
so does a prediction with non-negative weights.
"""

from collections.abc import Hashable, Mapping
from functools import lru_cache

import numpy as np

from amc.costs.latency.tensors import find_tensors
from amc.costs.symbolic import Geometry
from amc.network import Layer
from amc.quantization.points import point_bits
from amc.quantization.uniform import NOT_QUANTIZED
from amc.space import Space

LAYER_FEATURES = 9
"""Of a layer: MACs with input and output channels rounded up to the target's step and to twice that (four
combinations), elements read, elements written (with both roundings), and 1."""

FORMATS = 2
"""A layer runs in integers (0) or in floats (1)."""


class LatencyFeatures:
    """Features of complete policies of one space.

    Layers of one kind, kernel, stride and input size form a class. A class has `LAYER_FEATURES` for its
    layers that run in integers and again for those in floats, and so has each kind as a whole. Then come,
    for tensors at the border between integers and floats and for sums, concatenations and pools, their
    elements and their number.

    Args:
        space: the legal policies.
        steps: channel steps of the target for (integers, floats).
    """

    def __init__(self, space: Space, steps: tuple[int, int]):
        self.space, self.steps = space, np.array(steps, dtype=float)
        self.geometry = Geometry(space)
        self.tensors = find_tensors(space)
        layers = space.network.layers
        self._classes = _membership([_class_of(layer) for layer in layers], [layer.kind for layer in layers])
        self._in_pixels = np.array([float(np.prod(layer.in_shape)) for layer in layers])
        self._depthwise = np.array([layer.kind == "depthwise" for layer in layers])
        self._formats = lru_cache(4096)(self._formats_of)

    @property
    def size(self) -> int:
        """Entries of a feature vector."""
        return FORMATS * self._classes.shape[0] * LAYER_FEATURES + self._border_size

    @property
    def _border_size(self) -> int:
        return 2 * self._formats(self._bits(self.space.smallest)).border.shape[0]

    def of(self, table: np.ndarray) -> np.ndarray:
        """The features of a complete table [points, knobs]; float64 [size]."""
        widths = table[:, self.space.column("width")].astype(float)
        formats = self._formats(self._bits(table))
        layers = self._layers(widths, formats.step)
        by_format = [
            self._classes @ (layers * chosen[:, None]) for chosen in (formats.integer, ~formats.integer)
        ]
        elements = self.tensors.elements(widths)
        border = [formats.border @ elements, formats.border.sum(axis=1)]
        return np.concatenate([np.ravel(part) for part in (*by_format, *border)])

    def _layers(self, widths: np.ndarray, step: np.ndarray) -> np.ndarray:
        """The features of every layer, float64 [points, 9]."""
        geometry = self.geometry
        channels = np.where(self._depthwise, widths, geometry.constant + geometry.matrix @ widths)
        inputs = [_round_up(channels, step), _round_up(channels, 2 * step)]
        outputs = [_round_up(widths, step), _round_up(widths, 2 * step)]
        macs = [
            np.where(self._depthwise, 1.0, read) * written * geometry.kernel * geometry.pixels
            for read in inputs
            for written in outputs
        ]
        elements = [read * self._in_pixels for read in inputs] + [w * geometry.pixels for w in outputs]
        return np.stack([*macs, *elements, np.ones_like(widths)], axis=1)

    def _bits(self, table: np.ndarray) -> bytes:
        columns = [self.space.column("weight_bits"), self.space.column("activation_bits")]
        return table[:, columns].astype(np.int8).tobytes()

    def _formats_of(self, bits: bytes) -> "Formats":
        table = np.frombuffer(bits, dtype=np.int8).reshape(-1, 2)
        network = self.space.network
        names = [layer.name for layer in network.layers]
        decided = dict(zip(names, (int(value) for value in table[:, 1]), strict=True))
        enabled = {name: b < NOT_QUANTIZED for name, b in point_bits(network.points, decided).items()}
        integer = np.asarray((table < NOT_QUANTIZED).all(axis=1))
        return Formats(integer, np.where(integer, *self.steps), self._borders(integer, enabled))

    def _borders(self, integer: np.ndarray, enabled: Mapping[str, bool]) -> np.ndarray:
        """Which tensors are [quantized, restored, merged in integers, in floats, across]; [5, tensors]."""
        tensors = self.tensors
        stored = np.array([enabled.get(point, False) for point in tensors.point])
        written = tensors.writer >= 0
        codes = written & integer[tensors.writer]
        read = np.array([all(enabled[p] for p in points) if points else False for points in tensors.operands])
        return np.stack(
            [
                written & ~codes & stored,
                codes & ~stored,
                ~written & read & stored,
                ~written & ~read & ~stored,
                ~written & (read != stored),
            ]
        ).astype(float)


class Formats:
    """In which format each layer runs, and what that costs at the borders.

    Attributes:
        integer: bool [points].
        step: channel step of each layer, float64 [points].
        border: float64 [5, tensors], see `LatencyFeatures`.
    """

    def __init__(self, integer: np.ndarray, step: np.ndarray, border: np.ndarray):
        self.integer, self.step, self.border = integer, step, border


def _class_of(layer: Layer) -> tuple[Hashable, ...]:
    return (layer.kind, layer.kernel, layer.stride, layer.in_shape)


def _membership(*keys: list) -> np.ndarray:
    """Which layers belong to which class, for each list of keys; 0/1 [classes, points]."""
    rows = [[key == own for own in part] for part in keys for key in dict.fromkeys(part)]
    return np.array(rows, dtype=float)


def _round_up(channels: np.ndarray, step: np.ndarray) -> np.ndarray:
    return np.ceil(channels / step) * step

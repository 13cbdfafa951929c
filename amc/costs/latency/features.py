"""What the latency of a network depends on: a vector of non-negative numbers per policy.

Additive lookup tables of single layers miss whole-network latencies by -10 to +69 %, so nothing is looked up
here: the weights of these features are fitted to whole networks. Every feature grows with every width, hence
so does a prediction with non-negative weights.
"""

from collections.abc import Hashable, Mapping
from dataclasses import replace
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

    Attributes:
        specific: which features are those of one class, the others being of a whole kind or of borders;
            bool [size].
    """

    def __init__(self, space: Space, steps: tuple[int, int]):
        self.space, self.steps = space, np.array(steps, dtype=float)
        self.geometry = Geometry(space)
        self.tensors = find_tensors(space)
        layers = space.network.layers
        classes = [_class_of(layer) for layer in layers]
        self._classes = _membership(classes, [layer.kind for layer in layers])
        self._in_pixels = np.array([float(np.prod(layer.in_shape)) for layer in layers])
        self._depthwise = np.array([layer.kind == "depthwise" for layer in layers])
        self._formats = lru_cache(4096)(self._formats_of)
        of_class = np.arange(len(self._classes)) < len(set(classes))
        of_layers = np.tile(np.repeat(of_class, LAYER_FEATURES), FORMATS)
        self.specific = np.concatenate([of_layers, np.zeros(self._border_size, dtype=bool)])

    @property
    def size(self) -> int:
        """Entries of a feature vector."""
        return FORMATS * self._classes.shape[0] * LAYER_FEATURES + self._border_size

    @property
    def _border_size(self) -> int:
        return 2 * self._formats(self._bits(self.space.smallest), frozenset()).border.shape[0]

    def of(self, table: np.ndarray) -> np.ndarray:
        """The features of a complete table [points, knobs]; float64 [size]."""
        formats = self._formats(self._bits(table), frozenset(self.space.left_out(table)))
        layers = self._layers(table, formats.step) * formats.present[:, None]
        by_format = [
            self._classes @ (layers * chosen[:, None]) for chosen in (formats.integer, ~formats.integer)
        ]
        elements = self.tensors.elements(table[:, self.space.column("width")])
        border = [formats.border @ elements, formats.border.sum(axis=1)]
        return np.concatenate([np.ravel(part) for part in (*by_format, *border)])

    def _layers(self, table: np.ndarray, step: np.ndarray) -> np.ndarray:
        """The features of every layer, float64 [points, 9]."""
        geometry, widths = self.geometry, table[:, self.space.column("width")].astype(float)
        channels = np.where(self._depthwise, widths, geometry.inputs(table))
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

    def _formats_of(self, bits: bytes, left_out: frozenset[str]) -> "Formats":
        table = np.frombuffer(bits, dtype=np.int8).reshape(-1, 2)
        network = self.space.network
        gone = {name for b in network.blocks if b.name in left_out for name in b.layers}
        names = [layer.name for layer in network.layers]
        decided = {name: int(bits) for name, bits in zip(names, table[:, 1], strict=True) if name not in gone}
        points = [replace(p, layers=tuple(n for n in p.layers if n in decided)) for p in network.points]
        enabled = {name: b < NOT_QUANTIZED for name, b in point_bits(points, decided).items()}
        integer = np.asarray((table < NOT_QUANTIZED).all(axis=1))
        present = np.array([name in decided for name in names], dtype=float)
        border = self._borders(integer, enabled) * [block not in left_out for block in self.tensors.block]
        return Formats(integer, present, np.where(integer, *self.steps), border)

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
        present: 1 for layers that are there, 0 for those that are left out; float64 [points].
        step: channel step of each layer, float64 [points].
        border: float64 [5, tensors], see `LatencyFeatures`.
    """

    def __init__(self, integer: np.ndarray, present: np.ndarray, step: np.ndarray, border: np.ndarray):
        self.integer, self.present, self.step, self.border = integer, present, step, border


def _class_of(layer: Layer) -> tuple[Hashable, ...]:
    return (layer.kind, layer.kernel, layer.stride, layer.in_shape)


def _membership(*keys: list) -> np.ndarray:
    """Which layers belong to which class, for each list of keys; 0/1 [classes, points]."""
    rows = [[key == own for own in part] for part in keys for key in dict.fromkeys(part)]
    return np.array(rows, dtype=float)


def _round_up(channels: np.ndarray, step: np.ndarray) -> np.ndarray:
    return np.ceil(channels / step) * step

"""What the latency of a network depends on: a vector of non-negative numbers per policy.

Additive lookup tables of single layers miss whole-network latencies by -10 to +69 %, so nothing is looked up
here: the weights of these features are fitted to whole networks. Every feature grows with every width, hence
so does a prediction with non-negative weights.
"""

from collections.abc import Mapping
from dataclasses import replace
from functools import lru_cache

import numpy as np

from amc.costs.latency.parts import Class, Replacements, block_of, class_of, rounded
from amc.costs.latency.tensors import find_tensors
from amc.costs.symbolic import Geometry
from amc.decomposition.knobs import ORIGINAL
from amc.quantization.points import point_bits
from amc.quantization.uniform import NOT_QUANTIZED
from amc.space import Space

LAYER_FEATURES = 9
"""Of a layer: MACs with input and output channels rounded up to the target's step and to its block (four
combinations), elements read, elements written (with both roundings), and 1."""

FORMATS = 2
"""A layer runs in integers (0) or in floats (1)."""


class LatencyFeatures:
    """Features of complete policies of one space.

    Layers of one kind, kernel, input and output size form a class; so do the convolutions that operators
    put in their place, and the kinds of those are told from each other by their groups. A class has
    `LAYER_FEATURES` for its layers that run in integers and again for those in floats, and so has each kind
    as a whole. Then come, for tensors at the border between integers and floats and for sums, concatenations
    and pools, their elements and their number.

    Args:
        space: the legal policies.
        steps: channel steps of the target for (integers, floats).

    Attributes:
        specific: which features are those of one class, the others being of a whole kind or of borders;
            bool [size].
        replacements: what operators put in the place of layers; None without a choice of them.
    """

    def __init__(self, space: Space, steps: tuple[int, int]):
        self.space, self.steps = space, np.array(steps, dtype=float)
        self.geometry = Geometry(space)
        self.tensors = find_tensors(space)
        layers = space.network.layers
        self.replacements = Replacements(space) if space.chooses else None
        own = [class_of(layer) for layer in layers]
        classes = [*dict.fromkeys([*own, *(self.replacements.classes if self.replacements else ())])]
        places = {each: place for place, each in enumerate(classes)}
        if self.replacements is not None:
            self.replacements.number(places)
        self._own = np.array([places[each] for each in own])
        self._kinds = _kinds(classes)
        self._in_pixels = np.array([float(np.prod(layer.in_shape)) for layer in layers])
        self._depthwise = np.array([layer.kind == "depthwise" for layer in layers])
        self._formats = lru_cache(4096)(self._formats_of)
        of_class = np.repeat([True, False], self._kinds.shape[::-1])
        of_layers = np.tile(np.repeat(of_class, LAYER_FEATURES), FORMATS)
        self.specific = np.concatenate([of_layers, np.zeros(self._border_size, dtype=bool)])

    @property
    def size(self) -> int:
        """Entries of a feature vector."""
        return FORMATS * sum(self._kinds.shape) * LAYER_FEATURES + self._border_size

    @property
    def _border_size(self) -> int:
        return 2 * self._formats(self._bits(self.space.smallest), frozenset()).border.shape[0]

    def of(self, table: np.ndarray) -> np.ndarray:
        """The features of a complete table [points, knobs]; float64 [size]."""
        formats = self.formats(table)
        layers = self.layers(table, formats.step) * formats.present[:, None]
        by_class = np.zeros((FORMATS, self._kinds.shape[1], LAYER_FEATURES))
        format_of = np.where(formats.integer, 0, 1)
        if self.replacements is not None:
            self._replace(by_class, layers, table, formats)
        np.add.at(by_class, (format_of, self._own), layers)
        by_format = (part for each in by_class for part in (each, self._kinds @ each))
        elements = self.tensors.elements(table[:, self.space.column("width")])
        border = [formats.border @ elements, formats.border.sum(axis=1)]
        return np.concatenate([np.ravel(part) for part in (*by_format, *border)])

    def _replace(
        self, by_class: np.ndarray, layers: np.ndarray, table: np.ndarray, formats: "Formats"
    ) -> None:
        """Move what operators replace from the layers to the classes of its parts, in place."""
        assert self.replacements is not None
        operators, amounts = (table[:, self.space.column(name)].tolist() for name in ("operator", "amount"))
        widths, inputs = self.geometry.widths(table), self.geometry.inputs(table)
        for row in np.flatnonzero(formats.present).tolist():
            if operators[row] != ORIGINAL:
                option, step = (operators[row], amounts[row]), float(formats.step[row])
                found = self.replacements.of(row, option, int(inputs[row]), int(widths[row]), step)
                np.add.at(by_class[0 if formats.integer[row] else 1], found.classes, found.values)
                layers[row] = 0.0

    def unit_costs(self, weights: np.ndarray) -> np.ndarray:
        """What one unit of every feature of a layer costs, by its class: float64 [formats, classes, 9].

        Args:
            weights: of all features, [size].
        """
        whole = weights[: self.size - self._border_size].reshape(FORMATS, -1, LAYER_FEATURES)
        count = self._kinds.shape[1]
        return np.asarray(whole[:, :count] + self._kinds.T @ whole[:, count:])

    def layer_costs(self, table: np.ndarray, units: np.ndarray) -> np.ndarray:
        """What layers cost as if nothing replaced them, without borders; float64 [points]."""
        formats = self.formats(table)
        values = self.layers(table, formats.step) * formats.present[:, None]
        own = units[np.where(formats.integer, 0, 1), self._own]
        return np.asarray((values * own).sum(axis=1))

    def formats(self, table: np.ndarray) -> "Formats":
        """In which format each layer runs."""
        return self._formats(self._bits(table), frozenset(self.space.left_out(table)))

    def layers(self, table: np.ndarray, step: np.ndarray) -> np.ndarray:
        """The features of every layer as if nothing replaced it, float64 [points, 9]."""
        geometry, widths = self.geometry, table[:, self.space.column("width")].astype(float)
        channels = np.where(self._depthwise, widths, geometry.inputs(table))
        block = block_of(step)
        inputs = [rounded(channels, step), rounded(channels, block)]
        outputs = [rounded(widths, step), rounded(widths, block)]
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


def _kinds(classes: list[Class]) -> np.ndarray:
    """Which classes belong to which kind; 0/1 [kinds, classes]."""
    names = [kind for kind, _ in classes]
    return np.array([[kind == own for own in names] for kind in dict.fromkeys(names)], dtype=float)

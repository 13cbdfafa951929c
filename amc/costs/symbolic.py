"""Costs computed from shapes alone: MACs, parameters, size in bytes, bit-operations.

Each is monotone in every entry of a policy's table, so the cost of the cheapest and the costliest
completion bound what a partial policy can still reach.
"""

from collections.abc import Callable
from typing import Protocol

import numpy as np

from amc.errors import UserError
from amc.graph import ChannelPad
from amc.groups import COMPRESSIBLE, NORMS
from amc.network import Network
from amc.quantization.uniform import NOT_QUANTIZED
from amc.space import Partial, Space

FLOAT_BYTES = 4
KNOBS_OF = {
    "macs": ("width",),
    "params": ("width",),
    "size": ("width", "weight_bits"),
    "bops": ("width", "weight_bits", "activation_bits"),
}
ALIASES = {"flops": "macs", "parameters": "params", "bytes": "size", "bit-operations": "bops"}
"""Accepted names; FLOPs are 2 x MACs, so a fraction of one is the same fraction of the other."""


class Cost(Protocol):
    """A number that a budget can bound: all that the environment asks of it."""

    name: str
    knobs: frozenset[str]

    def of(self, table: np.ndarray) -> float:
        """The cost of a complete table [points, knobs]."""

    def lower_bound(self, partial: Partial) -> float:
        """No completion of `partial` costs less."""

    def upper_bound(self, partial: Partial) -> float:
        """No completion of `partial` costs more."""


class Geometry:
    """How the widths of a network's groups become the shapes of its layers.

    Input channels of a layer are `constant + matrix @ widths`, with the widths of all layers; a layer
    behind a concatenation has several entries in its row, one behind a flatten has height x width.
    """

    def __init__(self, space: Space):
        network, count = space.network, len(space.points)
        self.space = space
        self.matrix = np.zeros((count, count))
        self.constant = np.array([float(_inputs(network, row)) for row in range(count)])
        self.pixels = np.array([float(layer.out_size) for layer in network.layers])
        self.kernel = np.array([float(layer.kernel) for layer in network.layers])
        self.has_bias = np.array([float(layer.has_bias) for layer in network.layers])
        self.folded = np.array([float(layer.has_bias or bool(layer.norm)) for layer in network.layers])
        folded_norms = {layer.norm for layer in network.layers}
        self.norms, self.norms_constant = np.zeros((2, count)), np.zeros(2)  # [all, standing alone]
        self._other = _other_parameters(network)
        norm_sizes = _norm_sizes(network)
        for name, size in norm_sizes.items():
            self.norms_constant += size * np.array([1.0, name not in folded_norms])
        for group in network.groups:
            column = space.row(group.name)
            for member in group.members:
                taken = group.channels * member.repeats
                if member.side == "in":
                    if not isinstance(network.module.get_submodule(member.module), ChannelPad):
                        row = space.row(member.module)
                        self.matrix[row, column] += member.repeats
                        self.constant[row] -= taken
                elif member.module in norm_sizes:
                    standing = np.array([1.0, member.module not in folded_norms])
                    self.norms[:, column] += member.repeats * standing
                    self.norms_constant -= taken * standing

    def weights(self, widths: np.ndarray) -> np.ndarray:
        """Weight elements of every layer [points] for output widths [points]."""
        return widths * (self.constant + self.matrix @ widths) * self.kernel

    def norm_channels(self, widths: np.ndarray) -> np.ndarray:
        """Channels of [all batch norms, those that are not folded into a layer]."""
        return self.norms_constant + self.norms @ widths

    @property
    def other_parameters(self) -> int:
        """Elements of parameters that no policy changes, such as those of a PReLU."""
        return self._other


def _inputs(network: Network, row: int) -> int:
    layer = network.layers[row]
    return 1 if layer.kind == "depthwise" else layer.in_channels


def _norm_sizes(network: Network) -> dict[str, int]:
    modules = network.module.named_modules()
    return {name: m.num_features for name, m in modules if isinstance(m, NORMS) and m.affine}


def _other_parameters(network: Network) -> int:
    total = 0
    for module in network.module.modules():
        if not isinstance(module, COMPRESSIBLE + NORMS) and not isinstance(module, ChannelPad):
            total += sum(p.numel() for p in module.parameters(recurse=False))
    return total


class SymbolicCost:
    """One of the closed-form costs of a network.

    Args:
        name: "macs", "params", "size" or "bops".
        space: the policies it is asked about.
    """

    def __init__(self, name: str, space: Space, geometry: Geometry | None = None):
        if name not in KNOBS_OF:
            raise UserError(f"There is no cost {name!r}; there are {', '.join(KNOBS_OF)} and latency.")
        self.name = name
        self.knobs = frozenset(KNOBS_OF[name])
        self.space = space
        self.geometry = geometry or Geometry(space)
        self._formula: Callable[[np.ndarray], float] = getattr(self, f"_{name}")

    def of(self, table: np.ndarray) -> float:
        """The cost of a complete table [points, knobs]."""
        return float(self._formula(table))

    def lower_bound(self, partial: Partial) -> float:
        """Cost of the cheapest completion."""
        return self.of(partial.filled(self.space.smallest))

    def upper_bound(self, partial: Partial) -> float:
        """Cost of the costliest completion."""
        return self.of(partial.filled(self.space.largest))

    def _widths(self, table: np.ndarray) -> np.ndarray:
        return table[:, self.space.column("width")].astype(float)

    def _macs(self, table: np.ndarray) -> float:
        return float(self.geometry.weights(self._widths(table)) @ self.geometry.pixels)

    def _params(self, table: np.ndarray) -> float:
        widths, geometry = self._widths(table), self.geometry
        norms = 2 * geometry.norm_channels(widths)[0]
        return float(
            geometry.weights(widths).sum() + widths @ geometry.has_bias + norms + geometry.other_parameters
        )

    def _size(self, table: np.ndarray) -> float:
        """Packed codes, one scale a channel, biases with batch norm folded in; bytes."""
        widths, geometry = self._widths(table), self.geometry
        bits = table[:, self.space.column("weight_bits")]
        codes = np.ceil(geometry.weights(widths) * bits / 8).sum()
        scales = (widths * (bits != NOT_QUANTIZED)).sum()
        standing = 2 * geometry.norm_channels(widths)[1]
        floats = scales + widths @ geometry.folded + standing + geometry.other_parameters
        return float(codes + FLOAT_BYTES * floats)

    def _bops(self, table: np.ndarray) -> float:
        """Sum of MACs x weight bits x activation bits."""
        bits = table[:, self.space.column("weight_bits")] * table[:, self.space.column("activation_bits")]
        return float(self.geometry.weights(self._widths(table)) * bits @ self.geometry.pixels)


def symbolic_costs(space: Space) -> dict[str, SymbolicCost]:
    """Every closed-form cost of a space, by name."""
    geometry = Geometry(space)
    return {name: SymbolicCost(name, space, geometry) for name in KNOBS_OF}


def original_table(network: Network, space: Space) -> np.ndarray:
    """The table of the uncompressed network: all channels, nothing quantized."""
    return space.original()

"""Costs computed from shapes alone: MACs, parameters, size in bytes, bit-operations, non-zero weights.

Each is monotone in every entry of a policy's table, so the cost of the cheapest and the costliest
completion bound what a partial policy can still reach.
"""

from collections.abc import Callable, Mapping
from typing import Protocol

import numpy as np

from amc.costs.replaced import ReplacedLayers, Replacement
from amc.errors import UserError
from amc.graph import ChannelPad, FixedStage
from amc.groups import COMPRESSIBLE, NORMS
from amc.network import Network
from amc.own_tensors import own_tensors
from amc.quantization.protocol import FLOAT_BYTES, Quantizer
from amc.quantization.registry import QuantizerNames, activation_quantizer, weight_quantizer
from amc.quantization.uniform import NOT_QUANTIZED
from amc.retrieval.code_knob import CodeKnob
from amc.space import Partial, Space

KNOBS_OF = {
    "macs": ("block", "operator", "amount", "code", "width"),
    "params": ("block", "operator", "amount", "code", "width"),
    "size": ("block", "operator", "amount", "code", "width", "weight_bits"),
    "bops": ("block", "operator", "amount", "code", "width", "weight_bits", "activation_bits"),
    "nonzeros": ("block", "density"),
}
"""The knobs that a cost brings to life; widths count in all where another cost has made them alive."""
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

    def cheapest(self, partial: Partial) -> np.ndarray:
        """A completion that costs the lower bound, int64 [points, knobs]."""


class Geometry:
    """How the widths of a network's groups become the shapes of its layers.

    Input channels of a layer are `constant + matrix @ widths`, with the widths of all layers; a layer
    behind a concatenation has several entries in its row, one behind a flatten has height x width.
    Everything inside a residual block counts only while the block is there.
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
        self.normed = np.array([bool(layer.norm) for layer in network.layers])
        norm_sizes = _norm_sizes(network)
        norm_row = {name: row for row, name in enumerate(norm_sizes)}
        self._norms = np.zeros((len(norm_sizes), count))
        self._norms_constant = np.array([float(size) for size in norm_sizes.values()])
        folded_norms = {layer.norm for layer in network.layers}
        self._standing = np.array([float(name not in folded_norms) for name in norm_sizes])
        affine = [_affine(network, name) for name in norm_sizes]
        self._affine = np.array(affine, dtype=float)
        block_of = _block_of_module(network)
        self._layer_block = np.array([block_of.get(layer.name, -1) for layer in network.layers])
        self._norm_block = np.array([block_of.get(name, -1) for name in norm_sizes], dtype=int)
        self._other = _other_tensors(network, block_of)
        self._code = _code_of(space)
        for group in network.groups:
            column = space.row(group.name)
            for member in group.members:
                taken = group.channels * member.repeats
                if member.side == "in":
                    if not isinstance(network.module.get_submodule(member.module), ChannelPad):
                        row = space.row(member.module)
                        shared = network.layer_groups(member.module)
                        self.matrix[row, column] += member.repeats / shared
                        self.constant[row] -= taken / shared
                elif member.module in norm_sizes:
                    self._norms[norm_row[member.module], column] += member.repeats
                    self._norms_constant[norm_row[member.module]] -= taken

    def widths(self, table: np.ndarray) -> np.ndarray:
        """Output channels of every layer, 0 for those that are left out; float64 [points]."""
        widths = self._outputs(table)
        present = self._present(table)
        return widths if present is None else widths * present[self._layer_block]

    def weights(self, table: np.ndarray) -> np.ndarray:
        """Weight elements of every layer; float64 [points]."""
        return self.widths(table) * self.inputs(table) * self.kernel

    def inputs(self, table: np.ndarray) -> np.ndarray:
        """Input channels of every layer, 1 for a depthwise one; float64 [points]."""
        inputs = self.constant + self.matrix @ table[:, self.space.column("width")].astype(float)
        return np.rint(inputs)  # a third is no float

    def norm_channels(self, table: np.ndarray) -> tuple[float, float]:
        """Channels of all batch norms with parameters, and of those that are not folded into a layer."""
        channels = self._norms_constant + self._norms @ self._outputs(table)
        present = self._present(table)
        channels = channels if present is None else channels * present[self._norm_block]
        return float(channels @ self._affine), float(channels @ self._standing)

    def other(self, table: np.ndarray) -> tuple[float, float]:
        """Elements of parameters that no width changes, such as a PReLU's, and bytes with their buffers."""
        present = self._present(table)
        elements, size = self._other.sum(axis=0) if present is None else present @ self._other
        return float(elements), float(size)

    def _outputs(self, table: np.ndarray) -> np.ndarray:
        """Output channels as if every block were kept; the layers that make a code have those of its bits."""
        outputs = table[:, self.space.column("width")].astype(float)
        if self._code is not None:
            entry, rows, a_bit = self._code
            outputs[rows] = a_bit * table[entry]
        return outputs

    def _present(self, table: np.ndarray) -> np.ndarray | None:
        """1 for each residual block that is kept, 0 for one that is not, and a last 1; None if all are."""
        gone = self.space.gone_blocks(table)
        return None if gone is None or not gone.any() else np.append(~gone, True).astype(float)


def _block_of_module(network: Network) -> dict[str, int]:
    """Path of each module inside a residual block to the number of the block."""
    number = {name: index for index, block in enumerate(network.blocks) for name in block.nodes}
    nodes = network.module.graph.nodes
    return {str(n.target): number[n.name] for n in nodes if n.op == "call_module" and n.name in number}


def _code_of(space: Space) -> tuple[tuple[int, int], np.ndarray, np.ndarray] | None:
    """Where tables have the bits of a code, the rows of the layers that make it, and their outputs a bit."""
    for column, knob in enumerate(space.knobs):
        if isinstance(knob, CodeKnob):
            a_bit = knob.outputs([layer.name for layer in space.network.layers])
            rows = np.array([space.row(name) for name in a_bit])
            return (space.row(knob.codebooks.layer), column), rows, np.array([*a_bit.values()], dtype=float)
    return None


def _inputs(network: Network, row: int) -> int:
    layer = network.layers[row]
    return 1 if layer.kind == "depthwise" else layer.in_channels


def _norm_sizes(network: Network) -> dict[str, int]:
    modules = network.module.named_modules()
    return {name: m.num_features for name, m in modules if isinstance(m, NORMS)}


def _affine(network: Network, norm: str) -> bool:
    return bool(network.module.get_submodule(norm).affine)


def _other_tensors(network: Network, block_of: Mapping[str, int]) -> np.ndarray:
    """Parameters, and bytes with buffers, by residual block, last outside of any; float64 [blocks + 1, 2]."""
    totals = np.zeros((len(network.blocks) + 1, 2))
    for name, module in network.module.named_modules():
        if not isinstance(module, (*COMPRESSIBLE, *NORMS, ChannelPad, FixedStage, Quantizer)):
            parameters = sum(p.numel() for p in module.parameters(recurse=False))
            size = sum(tensor.numel() * tensor.element_size() for tensor in own_tensors(module))
            totals[block_of.get(name, -1)] += parameters, size
    return totals


class SymbolicCost:
    """One of the closed-form costs of a network.

    Args:
        name: "macs", "params", "size", "bops" or "nonzeros"; the last where the space has densities.
        space: the policies it is asked about.
        geometry: of the space, where it is known already.
        quantizers: say what they store and how wide the operands are; uniform by default.
    """

    def __init__(
        self,
        name: str,
        space: Space,
        geometry: Geometry | None = None,
        quantizers: QuantizerNames | None = None,
    ):
        if name not in KNOBS_OF:
            raise UserError(f"There is no cost {name!r}; there are {', '.join(KNOBS_OF)} and latency.")
        self.name = name
        self.knobs = frozenset(KNOBS_OF[name])
        self.space = space
        self.geometry = geometry or Geometry(space)
        names = quantizers or QuantizerNames()
        self._weights = weight_quantizer(names.weights)
        self._weight_operand = _operand_bits(self._weights.operand_bits)
        self._input_operand = _operand_bits(activation_quantizer(names.activations).operand_bits)
        self._layers: Callable[[np.ndarray], np.ndarray] = getattr(self, f"_{name}")
        self._rest: Callable[[np.ndarray], float] = getattr(self, f"_{name}_rest")
        self.replaced = ReplacedLayers(space, getattr(self, f"_{name}_price")) if space.chooses else None

    def of(self, table: np.ndarray) -> float:
        """The cost of a complete table [points, knobs]."""
        costs = self._layers(table)
        if self.replaced is not None:
            costs = self.replaced.of(costs, table, self.geometry.widths(table), self.geometry.inputs(table))
        return float(costs.sum()) + self._rest(table)

    def lower_bound(self, partial: Partial) -> float:
        """Cost of the cheapest completion."""
        return self._extreme(partial, self.space.smallest, most=False)[1]

    def upper_bound(self, partial: Partial) -> float:
        """Cost of the costliest completion."""
        return self._extreme(partial, self.space.largest, most=True)[1]

    def cheapest(self, partial: Partial) -> np.ndarray:
        """The cheapest completion, int64 [points, knobs]."""
        return self._extreme(partial, self.space.smallest, most=False)[0]

    def _extreme(self, partial: Partial, rest: np.ndarray, most: bool) -> tuple[np.ndarray, float]:
        table = self.space.completed(partial, rest)
        costs = self._layers(table)
        if self.replaced is not None:
            widths, inputs = self.geometry.widths(table), self.geometry.inputs(table)
            self.replaced.complete(partial, table, costs, widths, inputs, most)
        return table, float(costs.sum()) + self._rest(table)

    def _macs(self, table: np.ndarray) -> np.ndarray:
        return self.geometry.weights(table) * self.geometry.pixels

    def _macs_rest(self, table: np.ndarray) -> float:
        return self.space.network.fixed_macs

    def _macs_price(self, new: Replacement) -> float:
        return new.cost.macs

    def _params(self, table: np.ndarray) -> np.ndarray:
        return self.geometry.weights(table)

    def _params_rest(self, table: np.ndarray) -> float:
        geometry = self.geometry
        biases = geometry.widths(table) @ geometry.has_bias
        norms = 2 * geometry.norm_channels(table)[0]
        return float(biases + norms + geometry.other(table)[0])

    def _params_price(self, new: Replacement) -> float:
        return new.cost.params - new.outputs * new.layer.has_bias

    def _size(self, table: np.ndarray) -> np.ndarray:
        """Bytes of the weights in a package (`amc.package`), as their quantizer stores them."""
        geometry = self.geometry
        bits = table[:, self.space.column("weight_bits")]
        weights, widths = geometry.weights(table), geometry.widths(table)
        return self._weights.charged_bytes(weights, widths, bits, geometry.normed)

    def _size_rest(self, table: np.ndarray) -> float:
        """Biases with batch norm folded in, and what no width changes."""
        geometry = self.geometry
        floats = geometry.widths(table) @ geometry.folded + 2 * geometry.norm_channels(table)[1]
        return float(FLOAT_BYTES * floats + geometry.other(table)[1])

    def _size_price(self, new: Replacement) -> float:
        """The norm behind the layer is that of the last part."""
        parts, normed_layer = new.cost.parts, new.layer.norm is not None
        if not parts:
            # The norm's factors stay beside codebooks, which cannot take them in.
            return new.cost.size + FLOAT_BYTES * new.outputs * (normed_layer - new.layer.has_bias)
        weights = np.array([float(part.weights) for part in parts])
        channels = np.array([float(part.channels) for part in parts])
        normed = np.array([False] * (len(parts) - 1) + [normed_layer])
        bits = np.full(len(parts), new.weight_bits)
        return float(self._weights.charged_bytes(weights, channels, bits, normed).sum())

    def _bops(self, table: np.ndarray) -> np.ndarray:
        """MACs x bits of a weight x bits of an activation, as they are multiplied."""
        weights = self._weight_operand[table[:, self.space.column("weight_bits")]]
        inputs = self._input_operand[table[:, self.space.column("activation_bits")]]
        return self._macs(table) * weights * inputs

    def _bops_rest(self, table: np.ndarray) -> float:
        return self.space.network.fixed_macs * NOT_QUANTIZED**2

    def _bops_price(self, new: Replacement) -> float:
        bits = self._weight_operand[new.weight_bits] * self._input_operand[new.input_bits]
        return float(new.cost.macs * bits)

    def _nonzeros(self, table: np.ndarray) -> np.ndarray:
        """Weights of layers that are not zero, as `amc.pruning.fine_grained.kept_weights` counts them."""
        total = self.geometry.weights(table)
        kept = np.floor(total * table[:, self.space.column("density")] / 100)
        return np.maximum(kept, np.minimum(total, 1.0))

    def _nonzeros_rest(self, table: np.ndarray) -> float:
        return 0.0


def _operand_bits(of: Callable[[int], float]) -> np.ndarray:
    """Bits of an operand by the bits that were chosen; float64 [33]."""
    return np.array([of(bits) for bits in range(NOT_QUANTIZED)] + [float(NOT_QUANTIZED)])


def symbolic_costs(space: Space, quantizers: QuantizerNames | None = None) -> dict[str, SymbolicCost]:
    """Every closed-form cost of a space, by name; under uniform quantizers unless others are named."""
    geometry = Geometry(space)
    sparse = any(knob.name == "density" for knob in space.knobs)
    names = [name for name in KNOBS_OF if sparse or name != "nonzeros"]
    return {name: SymbolicCost(name, space, geometry, quantizers) for name in names}


def original_table(network: Network, space: Space) -> np.ndarray:
    """The table of the uncompressed network: all channels, nothing quantized."""
    return space.original()

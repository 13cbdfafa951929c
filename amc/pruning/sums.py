"""Layers that end in a sum, as the last one of a residual branch does, and the run that refits them.

What reaches the rest of the network is the sum, so such a layer can make up for the other summand's errors
too: He, Zhang and Sun, "Channel Pruning for Accelerating Very Deep Neural Networks" (ICCV 2017, section 3.3).
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from torch import Tensor, fx

from amc.blocks import is_sum
from amc.graph import module_of, shape_of
from amc.groups import maps_channels
from amc.network import Network
from amc.quantization.protocol import PointQuantizer

Values = Callable[[str], Tensor]
"""Name of a node in the graph to its value in this run."""


@dataclass(frozen=True)
class Summand:
    """Where a layer's outputs go.

    Attributes:
        norm: path of the batch norm on the way, if there is one.
        other: name of the node that gives the other summand.
    """

    norm: str | None
    other: str


def summands(network: Network) -> dict[str, Summand]:
    """Path of every layer whose outputs go into a sum and nowhere else, to what it is added to.

    Of two such layers that meet in one sum, the one that runs last is listed: it knows the other's errors.
    """
    order = {node: place for place, node in enumerate(network.module.graph.nodes)}
    found: dict[str, Summand] = {}
    for total in filter(is_sum, order):
        first, second = total.all_input_nodes
        if shape_of(first) != shape_of(second):
            continue
        ends = [(_layer_before(end, network), other) for end, other in ((first, second), (second, first))]
        known = [(layer, other) for layer, other in ends if layer is not None and _ahead(other, layer, order)]
        if known:
            layer, other = max(known, key=lambda pair: order[pair[0]])
            name = str(layer.target)
            found[name] = Summand(network.layer(name).norm, other.name)
    return found


def _layer_before(end: fx.Node, network: Network) -> fx.Node | None:
    """The layer that a summand comes from, with at most its batch norm and a quantization point between."""
    node, names = end, {layer.name: layer for layer in network.layers}
    while len(node.users) == 1 and node.op == "call_module":
        name = str(node.target)
        if name in names:
            norm = names[name].norm
            return node if norm is None or maps_channels(network.module.get_submodule(norm)) else None
        source = node.all_input_nodes[0]
        layer = names.get(str(source.target)) if source.op == "call_module" else None
        if not isinstance(module_of(node), PointQuantizer) and not (layer and layer.norm == name):
            return None
        node = source
    return None


def _ahead(node: fx.Node, layer: fx.Node, order: Mapping[fx.Node, int]) -> bool:
    """Whether a value can be had before a layer runs, without changing any other value."""
    if order[node] < order[layer]:
        return True
    module = module_of(node)
    in_place = module is None or getattr(module, "inplace", False)
    return node is not layer and not in_place and all(_ahead(v, layer, order) for v in node.all_input_nodes)


class WatchedRun(fx.Interpreter):
    """Runs a graph; before some of its modules do, somebody sees their inputs and may change the modules.

    Args:
        module: the graph.
        before: module path to what is called with the module's input and with `Values`, which computes what
            has not been reached yet.
    """

    def __init__(self, module: fx.GraphModule, before: Mapping[str, Callable[[Tensor, Values], None]]):
        super().__init__(module)
        self.before = before
        self.named = {node.name: node for node in module.graph.nodes}

    def run_node(self, n: fx.Node) -> object:
        """The value of a node; one that was asked for earlier is not computed again."""
        if n in self.env:
            return self.env[n]
        called = self.before.get(str(n.target)) if n.op == "call_module" else None
        if called is not None:
            called(self.env[n.all_input_nodes[0]], lambda name: self._value(self.named[name]))
        return super().run_node(n)

    def _value(self, node: fx.Node) -> Tensor:
        if node not in self.env:
            for source in node.all_input_nodes:
                self._value(source)
            self.env[node] = self.run_node(node)
        return self.env[node]

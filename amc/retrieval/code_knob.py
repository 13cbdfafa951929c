"""Length of a code as a decision: which layers make it, and the knob that chooses how many bits it keeps.

A code loses whole sub-vectors: their entries of the embedding, their codebooks, and 4 bits each. What is left
is a network for a shorter code, so that score, loss, export and package need not know about it.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import nn

from amc.errors import UserError
from amc.groups import Group, is_grouped
from amc.network import Network
from amc.retrieval.code import Code, code_of_outputs
from amc.space import DecisionPoint, Partial

CODE = "code"


@dataclass(frozen=True)
class Codebooks:
    """Where a network keeps its codebooks.

    Attributes:
        layer: path of the convolution in groups, one a codebook, that multiplies sub-vectors with words.
        group: name of the group of the embedding's entries.
        sources: paths of the layers and batch norms that hold an output for each entry of the embedding.
        code: shape of the whole code.
    """

    layer: str
    group: str
    sources: tuple[str, ...]
    code: Code

    @property
    def bits_each(self) -> int:
        """Bits of one sub-vector."""
        return self.code.bits // self.code.subspaces


def find_codebooks(network: Network) -> Codebooks:
    """Look for the codebooks of a traced retrieval network (`amc.models.retrieval`).

    Raises:
        UserError: the network has none, or something else reads the embedding.
    """
    code = code_of_outputs(int(network.module(network.example).shape[1]))
    for layer in network.layers if code else ():
        module = network.module.get_submodule(layer.name)
        if code is not None and isinstance(module, nn.Conv2d) and _multiplies_words(module, code):
            group = _group_read_by(network, layer.name)
            if group is not None:
                sources = [name for name in group.producers() if name != layer.name]
                return Codebooks(layer.name, group.name, tuple(sources), code)
    raise UserError("This network has no codebooks of which some could go; --model NAME-pqn48 has.")


def _multiplies_words(module: nn.Conv2d, code: Code) -> bool:
    wanted = (code.subspaces * code.words, code.size, 1, 1)
    alone = code.subspaces == 1 and module.groups == 1
    return tuple(module.weight.shape) == wanted and (is_grouped(module) or alone)


def _group_read_by(network: Network, layer: str) -> Group | None:
    """The group that a layer reads, if each of its channels is one output of everything else it reaches."""
    for group in network.groups:
        others = [member for member in group.members if member.module != layer]
        reads = any((member.module, member.side) == (layer, "in") for member in group.members)
        straight = torch.arange(group.channels)[:, None]
        if reads and all(m.side != "in" and torch.equal(m.positions, straight) for m in others):
            return group
    return None


class CodeKnob:
    """How many bits of a code stay; decided at its codebooks, and at no other point.

    Args:
        codebooks: of the network.
    """

    name = CODE
    implied_by: tuple[str, Mapping[int, int]] | None = None
    reference_is_fixed = False

    def __init__(self, codebooks: Codebooks):
        self.codebooks = codebooks
        each = codebooks.bits_each
        self.choices = tuple(range(each, codebooks.code.bits + 1, each))

    def values(self, point: DecisionPoint, partial: Partial | None) -> tuple[int, ...]:
        """Bits of one sub-vector, of two, and so on; 0 where there is no code."""
        return self.choices if point.name == self.codebooks.layer else (0,)

    def decided_at(self, point: DecisionPoint) -> str:
        """The point itself."""
        return point.name

    def thresholds(self, point: DecisionPoint) -> tuple[float, ...]:
        """The common fraction is the share of the bits, rounded down."""
        values = self.values(point, None)
        return (0.0, *(bits / self.choices[-1] for bits in values[1:]))

    def outputs(self, layers: Sequence[str]) -> dict[str, int]:
        """Outputs that a bit of code stands for, of those of the layers that lose any."""
        code, each = self.codebooks.code, self.codebooks.bits_each
        a_bit = {**dict.fromkeys(self.codebooks.sources, code.size // each)}
        a_bit[self.codebooks.layer] = code.words // each
        return {name: count for name, count in a_bit.items() if name in layers}

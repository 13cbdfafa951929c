"""Shorter codes: which sub-vectors stay, and the network without the others."""

from collections.abc import Mapping

import torch
from torch import Tensor, fx, nn

from amc.compress import Phase
from amc.errors import UserError
from amc.network import Network
from amc.policy import CompressionPolicy
from amc.retrieval.average_precision import mean_average_precision
from amc.retrieval.code_knob import CODE, Codebooks, CodeKnob, find_codebooks
from amc.retrieval.quantize import hard_codes
from amc.retrieval.scores import leave_one_out
from amc.slicing import slice_module
from amc.space import Knob

RANKED_IMAGES = 500
"""Labelled images that the order of sub-vectors is found on."""


def rank_subvectors(table: Tensor, labels: Tensor) -> Tensor:
    """Sub-vectors in the order in which they are to be kept, int64 [M].

    The first is the one whose codes alone find the most, each next one that which helps those before it most:
    sub-vectors repeat each other, so their own worth would keep several that say the same.

    Args:
        table: inner products of N images with all words, [N, M, K].
        labels: int64 [N].
    """
    codes = hard_codes(table)
    alone = [table[:, part].index_select(1, codes[:, part]) for part in range(table.shape[1])]
    relevant = leave_one_out(labels[:, None] == labels[None])
    total, order = torch.zeros_like(alone[0]), list[int]()
    while len(order) < len(alone):
        rest = [part for part in range(len(alone)) if part not in order]
        found = [mean_average_precision(leave_one_out(total + alone[part]), relevant) for part in rest]
        order.append(rest[max(range(len(rest)), key=found.__getitem__)])
        total = total + alone[order[-1]]
    return torch.tensor(order)


class CodeLength:
    """Leaves out the least useful sub-vectors of a code.

    Args:
        codebooks: of the network.
        order: sub-vectors, most useful first, int64; as many as any policy keeps.
    """

    phase = Phase.STRUCTURE

    def __init__(self, codebooks: Codebooks, order: Tensor):
        self.codebooks, self.order = codebooks, order
        self.knobs: tuple[Knob, ...] = (CodeKnob(codebooks),)

    def kept(self, network: Network, policy: CompressionPolicy) -> dict[str, Tensor]:
        """Name of the embedding's group to the sorted indices of its entries that the policy keeps."""
        stay, size = self._subvectors(policy), self.codebooks.code.size
        return {self.codebooks.group: (stay[:, None] * size + torch.arange(size)).reshape(-1)}

    def apply(self, model: fx.GraphModule, network: Network, policy: CompressionPolicy) -> None:
        """Slice what makes the embedding, and the codebooks."""
        stay, code = self._subvectors(policy), self.codebooks.code
        if len(stay) == code.subspaces:
            return
        for name in self.codebooks.sources:
            module = model.get_submodule(name)
            side = "both" if isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d) else "out"
            slice_module(module, side, self.kept(network, policy)[self.codebooks.group])
        words = model.get_submodule(self.codebooks.layer)
        assert isinstance(words, nn.Conv2d)
        rows = (stay[:, None] * code.words + torch.arange(code.words)).reshape(-1)
        words.groups = len(stay)
        slice_module(words, "out", rows)
        words.in_channels = len(stay) * code.size

    def _subvectors(self, policy: CompressionPolicy) -> Tensor:
        """Sorted indices of the sub-vectors that a policy keeps."""
        bits = policy[self.codebooks.layer].values.get(CODE, self.codebooks.code.bits)
        return self.order[: bits // self.codebooks.bits_each].sort().values


def code_of_kept(
    network: Network, policy: CompressionPolicy, kept: Mapping[str, Tensor]
) -> CodeLength | None:
    """What shortens the code as it was done before; None where a policy says nothing about a code.

    Args:
        network: the original.
        policy: its decisions.
        kept: group name to the sorted indices of the channels that were left.

    Raises:
        UserError: the embedding does not fit the policy.
    """
    if not policy.values(CODE):
        return None
    codebooks = find_codebooks(network)
    left = kept[codebooks.group]
    length = CodeLength(codebooks, left[:: codebooks.code.size] // codebooks.code.size)
    if not torch.equal(length.kept(network, policy)[codebooks.group], left):
        raise UserError("The kept sub-vectors of the code are not those of its policy.")
    return length

"""Which residual blocks matter: how much a block changes the tensor that passes through it."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor, fx

from amc.graph import shape_of
from amc.network import Network


def block_changes(network: Network, batches: Sequence[Tensor]) -> dict[str, float]:
    """Relative change of its tensor by each residual block, 1 - cosine of the tensor before and after.

    The measure of Men et al. ("ShortGPT", 2024, equation 1) for layers of transformers, on channels x pixels
    of one image: a block that hardly turns its tensor is hardly missed.

    Args:
        network: the traced network.
        batches: unlabeled images [N, C, H, W].

    Returns:
        Block name to the mean over images, from 0 (nothing changes) to 2.
    """
    recorder = _Recorder(network)
    with torch.no_grad():
        for batch in batches:
            recorder.run(batch)
    return {name: total / max(recorder.images, 1) for name, total in recorder.changes.items()}


class _Recorder(fx.Interpreter):
    """Runs a network and adds up how much each block turns its tensor."""

    def __init__(self, network: Network):
        super().__init__(network.copy(), garbage_collect_values=True)
        self._blocks = {block.sum: block for block in network.blocks}
        self.changes = {block.name: 0.0 for block in network.blocks}
        self.images = 0

    def run(self, *args: Tensor) -> Tensor:  # type: ignore[override]
        """Add one batch."""
        self.images += len(args[0])
        return super().run(*args)

    def run_node(self, n: fx.Node) -> Tensor:
        """Run a node; at the sum of a block compare it with its operands."""
        value: Tensor = super().run_node(n)
        block = self._blocks.get(n.name)
        if block is not None:
            before = next(i for i in n.all_input_nodes if i.name not in block.nodes)
            cosine = torch.cosine_similarity(self.env[before].flatten(1), value.flatten(1))
            self.changes[block.name] += float((1.0 - cosine).sum())
        return value


def deepest_blocks(network: Network, share: float, batches: Sequence[Tensor]) -> frozenset[str]:
    """The blocks that a policy of a given depth keeps: of each tensor shape the same share.

    Args:
        network: the traced network.
        share: of the blocks to keep, 0 to 1; rounded up for each shape.
        batches: unlabeled images.

    Returns:
        Names of the blocks that change their tensors most.
    """
    if share >= 1.0:
        return frozenset(block.name for block in network.blocks)
    changes = block_changes(network, batches)
    shapes = {node.name: shape_of(node) for node in network.module.graph.nodes}
    kept: set[str] = set()
    for shape in dict.fromkeys(shapes[block.sum] for block in network.blocks):
        stage = [block.name for block in network.blocks if shapes[block.sum] == shape]
        kept |= set(sorted(stage, key=lambda name: -changes[name])[: math.ceil(share * len(stage))])
    return frozenset(kept)

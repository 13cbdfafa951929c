"""Functions that clip what they are given to [0, a ceiling]: ReLU and ReLU6."""

import torch
from torch import fx, nn
from torch.nn import functional as F

from amc.graph import target_of

CEILINGS = {
    **dict.fromkeys((nn.ReLU, F.relu, F.relu_, torch.relu, torch.relu_, "relu", "relu_"), float("inf")),
    **dict.fromkeys((nn.ReLU6, F.relu6), 6.0),
}


def ceiling_of(module: nn.Module, node: fx.Node) -> float | None:
    """Where a node of a graph clips from above; None if it is no such function.

    Args:
        module: owner of the graph's modules.
        node: any node.
    """
    return CEILINGS.get(target_of(module, node)) if node.op.startswith("call") else None

"""Losses over all triplets of a batch: anchor, an image of its class, an image of another class.

M sub-vectors of length 1 have inner products of at most M. With few of them the sigmoid of a difference is
nearly a straight line, and a line does not mind classes that merge as long as others are far away: on 8-pixel
digits ten epochs at 12 bits end at an mAP of 0.52, and at 0.87 with four times the slope. So similarities of
codes of every length are brought to one range, that of 48 bits, where the losses are the paper's.
"""

import torch
from torch import Tensor

from amc.retrieval.code import Said
from amc.retrieval.quantize import ALPHA, soft_assignment, soft_vectors

REACH = 12.0
"""The largest similarity in a loss, M = 12 sub-vectors that agree."""


def triplet_loss(similarity: Tensor, labels: Tensor) -> Tensor:
    """Mean of sigmoid(sim(anchor, negative) - sim(anchor, positive)) over all triplets; a scalar.

    The sigmoid keeps a few hopeless triplets from dominating. A batch without a triplet has loss 0.

    Args:
        similarity: [B, B], anchors in rows.
        labels: int64 [B].
    """
    same = labels[:, None] == labels[None]
    positive = same & ~torch.eye(len(labels), dtype=torch.bool, device=labels.device)
    triplets = positive[:, :, None] & ~same[:, None, :]
    wrong = torch.sigmoid(similarity[:, None, :] - similarity[:, :, None])
    return (wrong * triplets).sum() / triplets.sum().clamp(min=1)


def asymmetric_triplet_loss(outputs: Said, labels: Tensor, alpha: float = ALPHA) -> Tensor:
    """The anchor as it is, the others softly quantized, as in a search (the paper's loss); a scalar.

    The similarity sum_m <x_m, s_m> is the anchor's table weighted by the others' assignments.

    Args:
        outputs: of B images.
        labels: int64 [B].
        alpha: sharpness of the assignment.
    """
    assigned = soft_assignment(outputs.table, alpha)
    return triplet_loss(_similarity(outputs.table, assigned), labels)


def symmetric_triplet_loss(outputs: Said, labels: Tensor, words: Tensor, alpha: float = ALPHA) -> Tensor:
    """All three softly quantized; a scalar. What the paper compares its asymmetric loss with.

    Args:
        outputs: of B images.
        labels: int64 [B].
        words: [M, K, S].
        alpha: sharpness of the assignment.
    """
    quantized = soft_vectors(soft_assignment(outputs.table, alpha), words)
    return triplet_loss(_similarity(quantized, quantized), labels)


def float_triplet_loss(outputs: Said, labels: Tensor) -> Tensor:
    """Nothing quantized; a scalar. For embeddings that are quantized only after training."""
    return triplet_loss(_similarity(outputs.vectors, outputs.vectors), labels)


def _similarity(anchors: Tensor, others: Tensor) -> Tensor:
    """Inner products of all pairs, [B, M, ...] each, in the range of `REACH`; [B, B]."""
    return REACH / anchors.shape[1] * (anchors.flatten(1) @ others.flatten(1).T)

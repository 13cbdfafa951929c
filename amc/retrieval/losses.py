"""Losses over all triplets of a batch: anchor, an image of its class, an image of another class."""

import torch
from torch import Tensor

from amc.retrieval.code import Said
from amc.retrieval.quantize import ALPHA, soft_assignment, soft_vectors


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
    return triplet_loss(outputs.table.flatten(1) @ assigned.flatten(1).T, labels)


def symmetric_triplet_loss(outputs: Said, labels: Tensor, words: Tensor, alpha: float = ALPHA) -> Tensor:
    """All three softly quantized; a scalar. What the paper compares its asymmetric loss with.

    Args:
        outputs: of B images.
        labels: int64 [B].
        words: [M, K, S].
        alpha: sharpness of the assignment.
    """
    quantized = soft_vectors(soft_assignment(outputs.table, alpha), words).flatten(1)
    return triplet_loss(quantized @ quantized.T, labels)


def float_triplet_loss(outputs: Said, labels: Tensor) -> Tensor:
    """Nothing quantized; a scalar. For embeddings that are quantized only after training."""
    vectors = outputs.vectors.flatten(1)
    return triplet_loss(vectors @ vectors.T, labels)

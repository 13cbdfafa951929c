"""Image retrieval with product quantization networks: codes, soft quantization, losses, search and mAP.

Yu, Yuan, Fang and Jin, "Product Quantization Network for Fast Image Retrieval" (ECCV 2018). The network gives
an image's look-up table (`amc.retrieval.code`); everything else happens outside the traced part.
"""

from amc.retrieval.average_precision import mean_average_precision
from amc.retrieval.code import Code, Said, said
from amc.retrieval.losses import asymmetric_triplet_loss
from amc.retrieval.quantize import hard_codes, soft_assignment
from amc.retrieval.scores import asymmetric_scores, leave_one_out

__all__ = [
    "Code",
    "Said",
    "asymmetric_scores",
    "asymmetric_triplet_loss",
    "hard_codes",
    "leave_one_out",
    "mean_average_precision",
    "said",
    "soft_assignment",
]

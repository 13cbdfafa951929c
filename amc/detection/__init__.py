"""One-stage detection without anchors: boxes, assignment, loss, decoding and average precision.

The network gives raw maps (`amc.detection.maps`); everything else happens outside the traced part.
"""

from amc.detection.average_precision import AveragePrecision, average_precision
from amc.detection.decoding import Detections, decode
from amc.detection.loss import detection_loss

__all__ = ["AveragePrecision", "Detections", "average_precision", "decode", "detection_loss"]

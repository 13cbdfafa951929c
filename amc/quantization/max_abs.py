"""Max-abs scaling of weights: the largest weight of a channel gets the largest code and nothing is clipped.

What the other quantizers are compared with.
"""

from torch import Tensor

from amc.quantization.modules import UniformWeightQuantizer
from amc.quantization.uniform import SMALLEST_SCALE, weight_levels


class MaxAbsWeightQuantizer(UniformWeightQuantizer):
    """Uniform codes under the scale max |W| / L of each channel."""

    name = "max-abs"

    def fit(self, x: Tensor) -> None:
        """Take the largest magnitude of every channel."""
        self.scale.copy_(x.detach().abs().flatten(1).amax(dim=1) / weight_levels(self.bits))
        self.scale.clamp_min_(SMALLEST_SCALE)

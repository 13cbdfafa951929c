"""What a target gains from channel counts and bit widths.

These are facts from a table, held as data: a calibration run on the user's own machine replaces the
`Profile` of a target and nothing else changes.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True)
class Profile:
    """Which layer shapes and bits pay off on a target.

    Attributes:
        width_multiple: the channel step to use when one number has to serve all layers.
        fast_bits: bit widths that are faster than the next wider one; 32 is not quantized.
        width_multiple_at: the channel step at particular weight bits, where it differs.
        source: where the facts come from, for reports.
    """

    width_multiple: int
    fast_bits: tuple[int, ...] = (8, 32)
    width_multiple_at: Mapping[int, int] = field(default_factory=dict)
    source: str = "static"

    def multiple_for(self, bits: int) -> int:
        """Return the channel step of a layer whose weights have `bits` bits."""
        return self.width_multiple_at.get(bits, self.width_multiple)


# No runtime here has convolution kernels below 8 bits: fewer bits save bytes, never time.
#
# ONNX Runtime: fp32 kernels work on blocks of 16 channels, and some counts between two blocks are slower than
# the next block. int8 kernels want multiples of 4 on AVX512-VNNI. On AVX2 28 channels take longer than 32, 44
# longer than 48 and 60 longer than 64, while 40 and 56 cost no more than 36 and 52. The default is 8: under a
# latency goal the layers are int8, and 8 avoids every one of those dents without the coarseness of 16, which
# leaves no choice at all in a layer of 16 channels.
ONNXRUNTIME = Profile(width_multiple=8, width_multiple_at={32: 16})

# OpenVINO: plateaus of 8 channels, int8 and fp32 alike; nothing is gained between them.
OPENVINO = Profile(width_multiple=8)

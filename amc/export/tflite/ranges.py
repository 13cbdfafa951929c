"""Which ratios of scales the int8 kernels of XNNPACK accept.

Beyond them it refuses the whole file or leaves the operator to slower kernels. Trained networks stay inside,
but a layer whose channels have all died gives zeros only, and its grid has a step of next to nothing.
"""

import numpy as np

RANGES = {
    "CONV_2D": (0.0, 2.0**8),
    "ADD": (2.0**-10, 2.0**8),
    "SUB": (2.0**-10, 2.0**8),
    "MUL": (2.0**-16, 2.0**8),
    "MEAN": (2.0**-8, 2.0**8),
}
"""The least ratio, and the first that is too large, of what an operator computes to its result's scale.

The convolution stands for all layers.
"""


def in_range(op: str, ratios: np.ndarray | float) -> bool:
    """Whether an operator can run in int8 with these ratios."""
    low, high = RANGES[op]
    return bool(np.all(np.greater_equal(ratios, low) & np.less(ratios, high)))

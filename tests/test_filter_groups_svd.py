"""The factors of filter groups against others of the same size."""

import pytest
import torch

from amc.decomposition.filter_groups import FilterGroups
from tests.test_filter_groups import conv_of


@pytest.mark.parametrize("size", [1, 2, 4, 8])
def test_the_svd_beats_random_groups_of_equal_size(size: int):
    """Even where the 1 x 1 convolution behind random first factors is the best there is for them."""
    weight = conv_of(16, 16).weight.detach().double()
    blocks = weight.reshape(16, 16 // size, -1).transpose(0, 1)
    found = FilterGroups().factors(weight, size).squared_error(weight)
    for seed in range(5):
        generator = torch.Generator().manual_seed(seed)
        random = torch.randn(len(blocks), blocks.shape[2], size, generator=generator, dtype=torch.float64)
        basis = torch.linalg.qr(random).Q
        left_out = blocks - blocks @ basis @ basis.mT
        assert found < 0.9 * float(left_out.square().sum())

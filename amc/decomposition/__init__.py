"""Operators that replace a convolution: low-rank chains, filter groups, clustered kernels."""

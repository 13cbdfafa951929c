"""Compression of trained CNNs: tracing, policies, pruning, quantization, costs, targets and export."""

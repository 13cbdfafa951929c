"""Quantizers: pure numerics on tensors, and small modules that hold their state."""
